"""The candidate service's servicer: one strategy a call."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from feed.v1.candidate_pb2 import (
    DESCRIPTOR,
    RETRIEVAL_STRATEGY_DISCOVERY,
    RETRIEVAL_STRATEGY_SOCIAL,
    GetCandidatesRequest,
    GetCandidatesResponse,
)
from feed.v1.candidate_pb2_grpc import (
    CandidateServiceServicer,
    add_CandidateServiceServicer_to_server,
)
from feed.v1.common_pb2 import Candidates, CandidateSource, Reader

from candidate_svc.discovery import Discovery, Wanted
from candidate_svc.recall import RecallProbe
from candidate_svc.rules import Candidate
from candidate_svc.social import Social
from mesh import metrics, telemetry
from mesh.errors import InvalidArgument
from mesh.ids import now_ms
from mesh.packing import unpack
from mesh.server import GrpcServer
from mesh.settings import Settings
from stores.connect import Connections
from stores.mailboxes.timelines import Timelines

_MS_PER_DAY = 86_400_000
_DEFAULT_LIMIT = 100
_MAX_LIMIT = 500


class CandidateService(CandidateServiceServicer):
    """feed.v1.CandidateService.

    Args:
        social: Retrieves followed authors' posts.
        discovery: Retrieves strangers' posts.
        discovery_days: How old a stranger's post may be.
    """

    def __init__(self, social: Social, discovery: Discovery, discovery_days: int) -> None:
        self._social = social
        self._discovery = discovery
        self._discovery_days = discovery_days

    async def GetCandidates(
        self, request: GetCandidatesRequest, context: object
    ) -> GetCandidatesResponse:
        """Candidates of one strategy, best first."""
        _require_valid(request)
        limit = request.limit or _DEFAULT_LIMIT
        degraded: list[str] = []
        if request.strategy == RETRIEVAL_STRATEGY_SOCIAL:
            retrieved = await self._social.retrieve(request.reader, limit, degraded)
        else:
            wanted = self._wanted(request.reader, limit, degraded)
            retrieved = await self._discovery.retrieve(wanted)
        _tell(retrieved)
        return GetCandidatesResponse(candidates=_columns(retrieved), degraded=degraded)

    def _wanted(self, reader: Reader, limit: int, degraded: list[str]) -> Wanted:
        return Wanted(
            vector=unpack(reader.interest_vector),
            limit=limit,
            created_after_ms=now_ms() - self._discovery_days * _MS_PER_DAY,
            excluded=frozenset((reader.user_id, *reader.following_ids, *reader.blocked_ids)),
            degraded=degraded,
        )


def _require_valid(request: GetCandidatesRequest) -> None:
    if not request.reader.user_id:
        raise InvalidArgument("no reader", fields={"reader.user_id": "is missing"})
    if request.strategy not in (RETRIEVAL_STRATEGY_SOCIAL, RETRIEVAL_STRATEGY_DISCOVERY):
        raise InvalidArgument(
            "an unknown strategy", fields={"strategy": f"{request.strategy} is not known"}
        )
    if request.limit > _MAX_LIMIT:
        raise InvalidArgument(
            "the limit is too high",
            fields={"limit": f"{request.limit} is not in 1..{_MAX_LIMIT}"},
        )
    unpack(request.reader.interest_vector)


def _columns(candidates: Sequence[Candidate]) -> Candidates:
    return Candidates(
        post_ids=[each.post_id for each in candidates],
        author_ids=[each.author_id for each in candidates],
        sources=[each.source for each in candidates],
        retrieval_scores=[each.score for each in candidates],
    )


def _tell(candidates: Sequence[Candidate]) -> None:
    """Counts the candidates in the metrics and on the span."""
    counts = {
        CandidateSource.Name(source).removeprefix("CANDIDATE_SOURCE_").lower(): count
        for source, count in Counter(each.source for each in candidates).items()
    }
    for name, count in counts.items():
        metrics.FEED_CANDIDATES.labels(name).inc(count)
    telemetry.annotate({f"feed.candidates.out.{name}": count for name, count in counts.items()})


@asynccontextmanager
async def server(settings: Settings, stores: Connections) -> AsyncIterator[GrpcServer]:
    """The candidate service, serving within the block."""
    chance = random.Random(settings.random_seed)
    async with RecallProbe(stores.vectors(), settings.recall_sample, chance) as probe:
        discovery = Discovery(
            stores.vectors(),
            stores.features(),
            stores.posts(),
            probe,
            exploration_share=settings.exploration_share,
            chance=chance,
        )
        social = Social(Timelines(stores.mailboxes(), stores.posts()), stores.posts())
        servicer = CandidateService(social, discovery, settings.discovery_days)
        name = DESCRIPTOR.services_by_name["CandidateService"].full_name
        async with GrpcServer(
            "candidate_svc",
            f"{settings.host}:{settings.candidate_port}",
            [(add_CandidateServiceServicer_to_server, servicer, name)],
            settings,
        ) as running:
            yield running

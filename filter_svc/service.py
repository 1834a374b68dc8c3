"""The filter service's servicer: messages in, rules, messages out."""

from collections import Counter

from feed.v1.filter_pb2 import (
    DESCRIPTOR,
    FilterCandidatesRequest,
    FilterCandidatesResponse,
    ListSeenRequest,
    ListSeenResponse,
    SeenPosts,
    Verdict,
)
from feed.v1.filter_pb2_grpc import FilterServiceServicer, add_FilterServiceServicer_to_server

from filter_svc.rules import Candidate, Facts, Judgement, judge
from filter_svc.seen import list_seen
from mesh import metrics, telemetry
from mesh.columns import require_equal_lengths
from mesh.errors import InvalidArgument
from mesh.ids import now_ms
from mesh.server import GrpcServer
from mesh.settings import Settings
from stores.connect import Connections
from stores.impressions.port import ImpressionStore, RecentSeen, Seen

_MS_PER_HOUR = 3_600_000
_DEFAULT_MAX_KEPT = 150


class FilterService(FilterServiceServicer):
    """feed.v1.FilterService.

    Args:
        impressions: The long memory of what was shown.
        recent: The short one.
        seen_hours: For how long a seen post stays away.
    """

    def __init__(self, impressions: ImpressionStore, recent: RecentSeen, seen_hours: int) -> None:
        self._impressions = impressions
        self._recent = recent
        self._seen_hours = seen_hours

    async def ListSeen(self, request: ListSeenRequest, context: object) -> ListSeenResponse:
        """What the reader saw in the window."""
        if not request.reader_id:
            raise InvalidArgument("no reader", fields={"reader_id": "is missing"})
        degraded: list[str] = []
        seen = await list_seen(
            self._impressions,
            self._recent,
            reader_id=request.reader_id,
            since_ms=now_ms() - self._seen_hours * _MS_PER_HOUR,
            degraded=degraded,
        )
        telemetry.annotate({"feed.seen.posts": len(seen)})
        return ListSeenResponse(
            seen=SeenPosts(
                post_ids=[each.post_id for each in seen],
                counts=[each.count for each in seen],
                last_seen_ms=[each.last_seen_ms for each in seen],
            ),
            degraded=degraded,
        )

    async def FilterCandidates(
        self, request: FilterCandidatesRequest, context: object
    ) -> FilterCandidatesResponse:
        """The fate of every candidate."""
        if not request.reader.user_id:
            raise InvalidArgument("no reader", fields={"reader.user_id": "is missing"})
        require_equal_lengths(request.candidates, "candidates")
        require_equal_lengths(request.seen, "seen")
        fates = judge(_candidates(request), _facts(request))
        _tell(fates)
        return FilterCandidatesResponse(
            verdicts=[fate.verdict for fate in fates], penalties=[fate.penalty for fate in fates]
        )


def _candidates(request: FilterCandidatesRequest) -> list[Candidate]:
    columns = request.candidates
    rows = zip(columns.post_ids, columns.author_ids, columns.sources, strict=True)
    return [Candidate(index, *row) for index, row in enumerate(rows)]


def _facts(request: FilterCandidatesRequest) -> Facts:
    seen = zip(request.seen.post_ids, request.seen.counts, request.seen.last_seen_ms, strict=True)
    return Facts(
        reader_id=request.reader.user_id,
        following=frozenset(request.reader.following_ids),
        blocked=frozenset(request.reader.blocked_ids),
        seen={post_id: Seen(post_id, count, last_ms) for post_id, count, last_ms in seen},
        now_ms=now_ms(),
        page_size=request.page_size,
        max_kept=request.max_kept or _DEFAULT_MAX_KEPT,
    )


def _tell(fates: list[Judgement]) -> None:
    """Counts the verdicts in the metrics and on the span."""
    counts = {
        Verdict.Name(verdict).removeprefix("VERDICT_").lower(): count
        for verdict, count in Counter(fate.verdict for fate in fates).items()
    }
    for name, count in counts.items():
        metrics.FEED_VERDICTS.labels(name).inc(count)
    telemetry.annotate({f"feed.verdict.{name}": count for name, count in counts.items()})


def server(settings: Settings, stores: Connections) -> GrpcServer:
    """The filter service, to be entered."""
    servicer = FilterService(stores.impressions(), stores.recent_seen(), settings.seen_hours)
    name = DESCRIPTOR.services_by_name["FilterService"].full_name
    return GrpcServer(
        "filter_svc",
        f"{settings.host}:{settings.filter_port}",
        [(add_FilterServiceServicer_to_server, servicer, name)],
        settings,
    )

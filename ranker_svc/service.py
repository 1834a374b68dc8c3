"""The ranker service's servicer: features, model, penalties."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import numpy as np
from feed.v1.ranker_pb2 import DESCRIPTOR, RankCandidatesRequest, RankCandidatesResponse
from feed.v1.ranker_pb2_grpc import RankerServiceServicer, add_RankerServiceServicer_to_server
from numpy.typing import NDArray

from mesh import deadlines, telemetry
from mesh.columns import require_equal_lengths
from mesh.degrade import best_effort
from mesh.errors import Internal, InvalidArgument
from mesh.ids import now_ms
from mesh.packing import unpack
from mesh.server import GrpcServer
from mesh.settings import Settings
from ranker_svc.features import CATEGORICAL, COLUMN, DENSE, Features, Subject, build, fetch
from ranker_svc.recent_posts import RecentPosts
from ranker_svc.scorers import heuristic
from ranker_svc.scorers.connect import open_lineup
from ranker_svc.scorers.port import CurrentLineup, Lineup, Scorer
from ranker_svc.shadow import Shadowing
from stores.connect import Connections
from stores.features.port import FeatureStore

MAX_CANDIDATES = 150
_TIMEOUT_S = 1.0

Scores = NDArray[np.float32]


class RankerService(RankerServiceServicer):
    """feed.v1.RankerService.

    Scores are what the model says, 0 to 1, less the candidate's penalty.

    Args:
        features: What is known of readers and posts.
        recent_posts: What was looked up a moment ago.
        current: The models; the heuristic takes their place when they fail or are late.
        shadowing: Where the line-up's shadow scores, too.
    """

    def __init__(
        self,
        features: FeatureStore,
        recent_posts: RecentPosts,
        current: CurrentLineup,
        shadowing: Shadowing,
    ) -> None:
        self._features = features
        self._recent_posts = recent_posts
        self._current = current
        self._shadowing = shadowing

    async def RankCandidates(
        self, request: RankCandidatesRequest, context: object
    ) -> RankCandidatesResponse:
        """A score for every candidate."""
        subject = _subject(request)
        degraded: list[str] = []
        known = await fetch(self._features, self._recent_posts, subject, degraded)
        hits = sum(post is not None for post in known.posts)
        features = build(subject, known, now_ms())
        lineup = self._current()
        with telemetry.span("score candidates"):
            scores, version = await _score(lineup, features, degraded)
            telemetry.annotate({"feed.model.version": version})
        self._shadowing.sample(lineup, features, scores, version)
        if request.penalties:
            scores = scores - np.nan_to_num(np.array(request.penalties, np.float32))
        telemetry.annotate(
            {
                "feed.model.version": version,
                "feed.candidates.ranked": len(subject.post_ids),
                "feed.features.hits": hits,
                "feed.features.misses": len(subject.post_ids) - hits,
                "feed.features.recent": known.recent,
            }
        )
        return RankCandidatesResponse(
            scores=scores.tolist(),
            model_version=version,
            degraded=degraded,
            topic_similarities=features.dense[:, COLUMN["topic_similarity"]].tolist(),
            author_affinities=features.dense[:, COLUMN["affinity"]].tolist(),
            dense_names=DENSE,
            dense=features.dense.astype("<f4", copy=False).tobytes(),
            id_names=CATEGORICAL,
            ids=features.ids.astype("<i8", copy=False).tobytes(),
        )


async def _score(lineup: Lineup, features: Features, degraded: list[str]) -> tuple[Scores, str]:
    """Scores in 0..1, and whose they are: the first model's that answers, or the heuristic's."""
    for scorer in lineup.scorers if len(features) else ():
        is_last = scorer is lineup.scorers[-1]
        scores = await best_effort(
            _checked(scorer, features),
            None,
            backend="model",
            degraded=degraded,
            # What comes after it needs time, too.
            timeout_s=deadlines.remaining(_TIMEOUT_S) * (0.8 if is_last else 0.6),
        )
        if scores is not None:
            return _in_range(scores), scorer.version
    return _in_range(heuristic.score(features.dense)), heuristic.VERSION


async def _checked(scorer: Scorer, features: Features) -> Scores:
    scores = await scorer.score(features)
    if scores.shape != (len(features),):
        raise Internal(f"{scorer.version} gave scores of shape {scores.shape}")
    return scores


def _in_range(scores: Scores) -> Scores:
    """0 for what is no number, so that it comes last and no sum with it is lost."""
    return np.clip(np.nan_to_num(scores, nan=0.0), 0, 1)


def _subject(request: RankCandidatesRequest) -> Subject:
    reader, candidates = request.reader, request.candidates
    if not reader.user_id:
        raise InvalidArgument("no reader", fields={"reader.user_id": "is missing"})
    count = require_equal_lengths(candidates, "candidates")
    if count > MAX_CANDIDATES:
        raise InvalidArgument(
            "too many candidates",
            fields={"candidates": f"has {count} where at most {MAX_CANDIDATES} are ranked"},
        )
    if len(request.penalties) not in (0, count):
        raise InvalidArgument(
            "the penalties do not fit the candidates",
            fields={"penalties": f"has {len(request.penalties)} where {count} were expected"},
        )
    return Subject(
        reader_id=reader.user_id,
        interest=unpack(reader.interest_vector),
        follower_count=reader.follower_count,
        avg_engagement_rate=reader.avg_engagement_rate,
        post_ids=list(candidates.post_ids),
        author_ids=list(candidates.author_ids),
        sources=list(candidates.sources),
    )


@asynccontextmanager
async def server(settings: Settings, stores: Connections) -> AsyncIterator[GrpcServer]:
    """The ranker service, serving within the block.

    Raises `ValueError` when FEED_MODEL_URL is wrong or its model does not load.
    """
    async with (
        open_lineup(settings.url(settings.model_url), stores.registry()) as current,
        Shadowing(Random()) as shadowing,
    ):
        recent_posts = RecentPosts(settings.post_features_s)
        servicer = RankerService(stores.features(), recent_posts, current, shadowing)
        name = DESCRIPTOR.services_by_name["RankerService"].full_name
        async with GrpcServer(
            "ranker_svc",
            f"{settings.host}:{settings.ranker_port}",
            [(add_RankerServiceServicer_to_server, servicer, name)],
            settings,
        ) as running:
            yield running

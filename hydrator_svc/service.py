"""The hydrator service's servicer: orders a feed and shows its first page."""

import random

from feed.v1.common_pb2 import (
    CANDIDATE_SOURCE_DISCOVERY,
    CANDIDATE_SOURCE_EXPLORATION,
    CANDIDATE_SOURCE_POPULAR,
)
from feed.v1.hydrator_pb2 import (
    DESCRIPTOR,
    PLACEMENT_EXPLORATION,
    HydrateFeedRequest,
    HydrateFeedResponse,
    HydratePostsRequest,
    HydratePostsResponse,
)
from feed.v1.hydrator_pb2_grpc import HydratorServiceServicer, add_HydratorServiceServicer_to_server

from hydrator_svc.hydration import Hydration, Page
from hydrator_svc.rerank import Bounds, Exploration, Item, rerank
from mesh import telemetry
from mesh.columns import require_equal_lengths
from mesh.errors import InvalidArgument
from mesh.server import GrpcServer
from mesh.settings import Settings
from stores.connect import Connections

_DEFAULT_LIMIT = 20
_MAX_LIMIT = 100
_STRANGERS = frozenset(
    (CANDIDATE_SOURCE_DISCOVERY, CANDIDATE_SOURCE_POPULAR, CANDIDATE_SOURCE_EXPLORATION)
)


class HydratorService(HydratorServiceServicer):
    """feed.v1.HydratorService.

    Args:
        hydration: Reads the posts.
        share_min: Least share of strangers' posts on a page, 0 to 1.
        share_max: Greatest share.
        exploration: How far chance has a say in the order.
    """

    def __init__(
        self, hydration: Hydration, share_min: float, share_max: float, exploration: Exploration
    ) -> None:
        self._hydration = hydration
        self._share_min = share_min
        self._share_max = share_max
        self._exploration = exploration

    async def HydrateFeed(
        self, request: HydrateFeedRequest, context: object
    ) -> HydrateFeedResponse:
        """The whole order, and the posts of its first page."""
        items = _items(request)
        limit = _limit(request.limit)
        bounds = Bounds(limit, self._share_min, self._share_max)
        placed = rerank(items, bounds, self._exploration)
        order = [each.index for each in placed]
        candidates = request.candidates
        page = await self._hydration.page(
            [candidates.post_ids[index] for index in order],
            limit,
            reader_id=request.reader.user_id,
            author_ids=[candidates.author_ids[index] for index in order],
        )
        _tell(page)
        explored = sum(each.placement == PLACEMENT_EXPLORATION for each in placed)
        telemetry.annotate({"feed.explored": explored})
        return HydrateFeedResponse(
            order=order,
            placements=[each.placement for each in placed],
            posts=page.posts,
            consumed=page.consumed,
            propensities=[each.propensity for each in placed],
            pool_sizes=[len(each.pool) for each in placed],
            pool=[index for each in placed for index in each.pool],
        )

    async def HydratePosts(
        self, request: HydratePostsRequest, context: object
    ) -> HydratePostsResponse:
        """The posts in the order given."""
        page = await self._hydration.page(
            request.post_ids, _limit(request.limit), reader_id=request.reader_id
        )
        _tell(page)
        return HydratePostsResponse(posts=page.posts, consumed=page.consumed)


def _items(request: HydrateFeedRequest) -> list[Item]:
    if not request.reader.user_id:
        raise InvalidArgument("no reader", fields={"reader.user_id": "is missing"})
    count = require_equal_lengths(request.candidates, "candidates")
    if len(request.scores) != count:
        raise InvalidArgument(
            "the scores do not fit the candidates",
            fields={"scores": f"has {len(request.scores)} where {count} were expected"},
        )
    columns = request.candidates
    rows = zip(columns.author_ids, columns.sources, request.scores, strict=True)
    return [
        Item(index, author_id, source in _STRANGERS, score)
        for index, (author_id, source, score) in enumerate(rows)
    ]


def _limit(asked: int) -> int:
    if asked > _MAX_LIMIT:
        raise InvalidArgument(
            "the limit is too high", fields={"limit": f"{asked} is not in 1..{_MAX_LIMIT}"}
        )
    return asked or _DEFAULT_LIMIT


def _tell(page: Page) -> None:
    """Puts what became of the page on the span."""
    telemetry.annotate(
        {
            "feed.page.posts": len(page.posts),
            "feed.page.missing": page.consumed - len(page.posts),
        }
    )


def server(settings: Settings, stores: Connections) -> GrpcServer:
    """The hydrator service, to be entered."""
    hydration = Hydration(stores.posts(), stores.users(), stores.media())
    servicer = HydratorService(
        hydration,
        settings.discovery_share_min,
        settings.discovery_share_max,
        Exploration(settings.epsilon, settings.epsilon_pool, random.Random(settings.random_seed)),
    )
    name = DESCRIPTOR.services_by_name["HydratorService"].full_name
    return GrpcServer(
        "hydrator_svc",
        f"{settings.host}:{settings.hydrator_port}",
        [(add_HydratorServiceServicer_to_server, servicer, name)],
        settings,
    )

"""Post features of the last moments."""

from dataclasses import dataclass

import numpy as np
from feed.v1.ranker_pb2 import RankCandidatesResponse
from feed.v1.ranker_pb2_grpc import RankerServiceStub
from numpy.typing import NDArray

from mesh.channels import call
from ranker_svc.recent_posts import RecentPosts
from ranker_svc.service import server
from stores.connect import Connections
from stores.features.port import PostFeatures
from tests.fixtures.sql import fresh_id, fresh_ids
from tests.services.conftest import Serve
from tests.services.test_ranker import request_for


def dense(answer: RankCandidatesResponse) -> NDArray[np.float32]:
    return np.frombuffer(answer.dense, "<f4").reshape(-1, len(answer.dense_names))


POST = PostFeatures(author_id=1, like_count=2, has_media=False, viewer_count=3, embedding=None)


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_post_is_known_for_as_long_as_it_may_be() -> None:
    clock = Clock()
    recent = RecentPosts(2.0, clock=clock)
    recent.keep([7], [POST])
    clock.now += 1.9
    assert recent.of([7, 8]) == {7: POST}
    clock.now += 0.1
    assert recent.of([7]) == {}


def test_a_post_without_features_is_not_kept() -> None:
    recent = RecentPosts(2.0)
    recent.keep([7], [None])
    assert recent.of([7]) == {}


def test_nothing_is_kept_for_no_time() -> None:
    recent = RecentPosts(0)
    recent.keep([7], [POST])
    assert recent.of([7]) == {}


def test_those_asked_for_longest_ago_are_given_up() -> None:
    recent = RecentPosts(2.0, capacity=2)
    recent.keep([1, 2], [POST, POST])
    recent.of([1])
    recent.keep([3], [POST])
    assert recent.of([1, 2, 3]).keys() == {1, 3}


async def test_a_second_reader_is_ranked_by_what_the_first_one_looked_up(
    serve: Serve, stores: Connections
) -> None:
    [known, new], author = fresh_ids(2), fresh_id()
    await stores.features().put_post(known, author_id=author, has_media=True)
    async with serve(server, post_features_s=600.0) as channel:
        stub = RankerServiceStub(channel)
        first = await call(stub.RankCandidates, request_for([known, new], [author] * 2), timeout=5)
        await stores.features().put_post(new, author_id=author, has_media=True)
        await stores.features().put_like_counts({known: 9, new: 9})
        again = await call(stub.RankCandidates, request_for([known, new], [author] * 2), timeout=5)
    likes = list(first.dense_names).index("like_count")
    assert dense(first)[:, likes].tolist() == [0, 0]
    # The new post had no features before, so it was looked up anew.
    assert dense(again)[:, likes].tolist() == [0, 9]

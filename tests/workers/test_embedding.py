"""Posts are found by what they mean, for as long as they exist."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mesh.packing import DIMENSIONS
from stores.embedder.port import Embedder
from stores.posts.port import StoredPost
from tests.eventually import eventually
from tests.fixtures.sql import fresh_id
from tests.workers.backstage import PNG, Backstage, post_event
from tests.workers.test_fanout import delivery
from workers.embedding import Embedding, text_of


class Axes:
    """An embedder that gives each text the axis of its length, and notes its batches."""

    def __init__(self, before: Callable[[Sequence[str]], Awaitable[None]] | None = None) -> None:
        self._before = before
        self.batches: list[list[str]] = []

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.batches.append(list(texts))
        if self._before is not None:
            await self._before(texts)
        await asyncio.sleep(0)
        vectors = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in enumerate(texts):
            vectors[row, len(text)] = 1
        return vectors


def embedding(backstage: Backstage, embedder: Embedder) -> Embedding:
    stores = backstage.stores
    return Embedding(stores.posts(), embedder, stores.vectors(), stores.features())


def stored(text: str, *tags: str) -> StoredPost:
    unused: Any = None
    return StoredPost(1, 2, text, tags, (), unused)


@pytest.mark.parametrize(
    ("post", "text"),
    [
        (stored("Bread rises."), "Bread rises."),
        (stored(" Bread rises. ", "baking", "dough"), "Bread rises. baking dough"),
        (stored("", "baking"), "baking"),
        (stored("  "), ""),
    ],
)
def test_what_is_embedded_is_the_text_and_the_tags(post: StoredPost, text: str) -> None:
    assert text_of(post) == text


async def test_a_new_post_is_found_by_its_meaning_and_known_to_the_ranker(
    backstage: Backstage,
) -> None:
    author = fresh_id()
    async with backstage.running("relay", "embedding"):
        bread = await backstage.post(
            author, "Sourdough bread needs a long, cool rise.", media=(PNG,)
        )
        stars = await backstage.post(author, "The telescope showed the rings of Saturn.")
        await backstage.settled("embedding", within_s=60)
    [query] = await backstage.stores.embedder().embed(["baking a loaf with yeast"])
    found = await backstage.stores.vectors().search(query, limit=1_000, created_after_ms=0)
    ours = [hit for hit in found if hit.author_id == author]
    assert [hit.post_id for hit in ours] == [bread, stars]

    features = backstage.stores.features()
    [known] = await features.posts([bread])
    assert known is not None
    assert (known.author_id, known.has_media, known.like_count) == (author, True, 0)
    assert known.embedding is not None
    assert float(known.embedding @ query) == pytest.approx(ours[0].score, abs=1e-3)
    assert await features.unproven(10) == [stars, bread]
    assert {post_id for post_id, _ in await features.popular(10)} == {bread, stars}


async def test_a_deleted_post_is_forgotten(backstage: Backstage) -> None:
    author = fresh_id()
    worker = embedding(backstage, Axes())
    post_id = await backstage.post(author, "here")
    await worker.handle([delivery(post_event(post_id, author))])
    assert post_id in await backstage.stores.vectors().retrieve([post_id])

    await backstage.delete(post_id, author)
    await worker.handle([delivery(post_event(post_id, author))])
    await assert_forgotten(backstage, post_id)


async def test_a_post_deleted_while_it_is_embedded_does_not_come_back(
    backstage: Backstage,
) -> None:
    author = fresh_id()
    post_id = await backstage.post(author, "here")

    async def delete_meanwhile(texts: Sequence[str]) -> None:
        await backstage.delete(post_id, author)
        await embedding(backstage, Axes()).handle([delivery(post_event(post_id, author))])

    worker = embedding(backstage, Axes(delete_meanwhile))
    await worker.handle([delivery(post_event(post_id, author))])
    await assert_forgotten(backstage, post_id)


async def assert_forgotten(backstage: Backstage, post_id: int) -> None:
    features = backstage.stores.features()
    assert await backstage.stores.vectors().retrieve([post_id]) == {}
    assert await features.posts([post_id]) == [None]
    assert await features.unproven(10) == []
    assert await features.popular(10) == []


async def test_a_post_of_media_alone_has_no_vector_but_can_be_explored(
    backstage: Backstage,
) -> None:
    author = fresh_id()
    embedder = Axes()
    post_id = await backstage.post(author, media=(PNG,))
    await embedding(backstage, embedder).handle([delivery(post_event(post_id, author))])
    assert embedder.batches == []
    assert await backstage.stores.vectors().retrieve([post_id]) == {}
    [known] = await backstage.stores.features().posts([post_id])
    assert known is not None
    assert known.embedding is None
    assert await backstage.stores.features().unproven(10) == [post_id]


async def test_a_like_from_before_the_features_existed_is_counted(backstage: Backstage) -> None:
    author, reader = fresh_id(), fresh_id()
    post_id = await backstage.post(author, "here")

    async def like_meanwhile(texts: Sequence[str]) -> None:
        await backstage.like(reader, post_id)

    worker = embedding(backstage, Axes(like_meanwhile))
    await worker.handle([delivery(post_event(post_id, author))])
    [known] = await backstage.stores.features().posts([post_id])
    assert known is not None
    assert known.like_count == 1


async def test_posts_that_arrive_together_share_the_model_s_work(backstage: Backstage) -> None:
    author = fresh_id()

    async def gather_more(texts: Sequence[str]) -> None:
        if len(embedder.batches) == 1:
            await eventually(lambda: len(worker._texts._waiting) == 12)

    embedder = Axes(gather_more)
    worker = embedding(backstage, embedder)
    posts = [await backstage.post(author, "x" * (length + 1)) for length in range(12)]
    await asyncio.gather(
        *(worker.handle([delivery(post_event(post_id, author))]) for post_id in posts)
    )
    assert [len(batch) for batch in embedder.batches] == [1, 11]
    found = await backstage.stores.vectors().retrieve(posts)
    assert [int(found[post_id].argmax()) for post_id in posts] == list(range(1, 13))


async def test_a_text_that_cannot_be_embedded_fails_alone(backstage: Backstage) -> None:
    author = fresh_id()

    async def choke(texts: Sequence[str]) -> None:
        await asyncio.sleep(0)
        if "bad" in texts:
            raise ValueError("no")

    worker = embedding(backstage, Axes(choke))
    posts = [await backstage.post(author, text) for text in ("good", "bad", "fine", "better")]
    results = await asyncio.gather(
        *(worker.handle([delivery(post_event(post_id, author))]) for post_id in posts),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), ValueError, type(None), type(None)]
    found = await backstage.stores.vectors().retrieve(posts)
    assert set(found) == {posts[0], posts[2], posts[3]}

"""The embedding worker: what a post means, where discovery and ranking find it."""

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
from feed.v1.events_pb2 import PostEvent

from mesh import metrics, telemetry
from mesh.packing import Vector
from stores.embedder.port import Embedder
from stores.events.port import Topic
from stores.features.port import FeatureStore
from stores.posts.port import PostStore, StoredPost
from stores.vectors.port import PostVector, VectorStore
from workers.consumer import Delivery, origin
from workers.popularity import hotness

_BATCH = 32


def text_of(post: StoredPost) -> str:
    """What is embedded of a post: its text, then its tags; empty for media alone."""
    return " ".join(part for part in (post.text.strip(), *post.tags) if part)


class Embedding:
    """Embeds new posts and makes them known to discovery; forgets deleted ones.

    A post of media alone, with neither text nor tags, gets no vector: it is found among the popular
    and the unproven, not by meaning.

    Args:
        posts: The source of truth of posts.
        embedder: Turns text into unit vectors of shape (384,).
        vectors: Where discovery searches.
        features: What the ranker reads, and the popular and unproven posts.
    """

    group = "embedding"
    topics = (Topic.POSTS,)
    max_records = _BATCH
    # Each post's effect belongs to its own trace; only the model's work is shared.
    together = False

    def __init__(
        self,
        posts: PostStore,
        embedder: Embedder,
        vectors: VectorStore,
        features: FeatureStore,
    ) -> None:
        self._posts = posts
        self._texts = _SharedBatches(embedder)
        self._vectors = vectors
        self._features = features

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if isinstance(delivery.event, PostEvent):
                await self._follow(delivery.event.post_id)

    async def _follow(self, post_id: int) -> None:
        post = await self._read(post_id)
        if post is not None:
            await self._learn(post)
            # Read again: a post deleted while it was being embedded must not come back, and a
            # like counted meanwhile found no features to write to.
            post = await self._read(post_id)
        if post is None:
            await self._vectors.delete([post_id])
            await self._features.delete_post(post_id)
            return
        await self._features.put_like_counts({post_id: post.like_count})
        await self._features.put_popular({post_id: hotness(post.like_count, post.created_at)})

    async def _read(self, post_id: int) -> StoredPost | None:
        return (await self._posts.get([post_id])).get(post_id)

    async def _learn(self, post: StoredPost) -> None:
        text = text_of(post)
        embedding = await self._texts.embed(text) if text else None
        if embedding is not None:
            vector = PostVector(
                post_id=post.post_id,
                author_id=post.author_id,
                created_at_ms=int(post.created_at.timestamp() * 1000),
                tags=post.tags,
                embedding=embedding,
            )
            await self._vectors.upsert([vector])
            metrics.post_visible("vectors", post.post_id)
        await self._features.put_post(
            post.post_id,
            author_id=post.author_id,
            has_media=bool(post.media),
            embedding=embedding,
            topic=post.topic,
        )
        [known] = await self._features.posts([post.post_id])
        # A repeat must not bring back a post that has proven itself since.
        if known is None or known.viewer_count == 0:
            await self._features.put_unproven([post.post_id])


class _Waiting:
    """A text on its way through the model, and who asked."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.headers: Mapping[str, str] = telemetry.inject()
        self.embedding: Vector | None = None


class _SharedBatches:
    """Embeds the texts of concurrent callers together: in batches, texts cost half.

    Whoever's turn it is embeds what has gathered, for everybody; the others find theirs done.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._waiting: list[_Waiting] = []
        self._turn = asyncio.Lock()

    async def embed(self, text: str) -> Vector:
        mine = _Waiting(text)
        self._waiting.append(mine)
        try:
            async with self._turn:
                if mine.embedding is None:
                    await self._embed_with_others(mine)
        finally:
            self._waiting.remove(mine)
        assert mine.embedding is not None  # noqa: S101  else an error was raised
        return mine.embedding

    async def _embed_with_others(self, mine: _Waiting) -> None:
        others = [one for one in self._waiting if one is not mine and one.embedding is None]
        batch = [mine, *others[: _BATCH - 1]]
        try:
            await self._run(batch)
        except Exception:
            if len(batch) == 1:
                raise
            # Perhaps another's text is at fault; that must not be this one's failure.
            await self._run([mine])

    async def _run(self, batch: Sequence[_Waiting]) -> None:
        context, links = origin([one.headers for one in batch])
        with telemetry.span(
            "embed texts", context=context, links=links, attributes={"feed.texts": len(batch)}
        ):
            embeddings = await self._embedder.embed([one.text for one in batch])
        for one, embedding in zip(batch, embeddings, strict=True):
            # A copy: a row would keep the whole batch in memory.
            one.embedding = np.array(embedding, np.float32)

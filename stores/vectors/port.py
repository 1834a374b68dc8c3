"""Vectors: nearest posts by meaning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mesh.packing import Vector


@dataclass(frozen=True, slots=True)
class PostVector:
    """A post's embedding, a unit vector of shape (384,), with what searches filter by."""

    post_id: int
    author_id: int
    created_at_ms: int
    tags: tuple[str, ...]
    embedding: Vector


@dataclass(frozen=True, slots=True)
class Hit:
    """A found post; `score` is the cosine, -1 to 1."""

    post_id: int
    author_id: int
    score: float


class VectorStore(Protocol):
    """Raises `mesh.errors.Unavailable` when it cannot be reached."""

    async def upsert(self, vectors: Sequence[PostVector]) -> None:
        """Adds or replaces; searchable when it returns."""
        ...

    async def delete(self, post_ids: Sequence[int]) -> None:
        """Unknown ids are harmless; not found any more when it returns."""
        ...

    async def search(
        self,
        vector: Vector,
        *,
        limit: int,
        created_after_ms: int,
        excluded_author_ids: Sequence[int] = (),
        exact: bool = False,
    ) -> list[Hit]:
        """The nearest posts that pass the filter, nearest first.

        `exact` compares with every vector: the floor that recall is measured against.
        """
        ...

    async def retrieve(self, post_ids: Sequence[int]) -> dict[int, Vector]:
        """The embeddings of the posts that are there."""
        ...

    async def count(self) -> int: ...

    async def optimize(self) -> None:
        """Builds the index over everything upserted so far; nothing where the server does that."""
        ...

    async def close(self) -> None: ...

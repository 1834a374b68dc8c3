"""The snapshot: one served feed with the fate of every candidate, kept for its later pages."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

from feed.v1 import common_pb2, filter_pb2, hydrator_pb2, ranker_pb2

from gateway import wire

KEPT = frozenset({filter_pb2.VERDICT_KEPT, filter_pb2.VERDICT_PENALIZED})
_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A feed as it was made. The columns speak of candidates: index i of each of the same one.

    A value is None where the candidate did not come so far. Times are milliseconds since the
    epoch.
    """

    feed_id: str
    reader_id: int
    created_at_ms: int
    trace_id: str
    model_version: str
    degraded: list[str]

    post_ids: list[int]
    author_ids: list[int]
    sources: list[str]
    retrieval_scores: list[float]
    verdicts: list[str]
    penalties: list[float]
    scores: list[float | None]
    topic_similarities: list[float | None]
    author_affinities: list[float | None]
    placements: list[str | None]

    # The whole feed: indices into the columns, best first.
    order: list[int]

    def to_bytes(self) -> bytes:
        """As JSON."""
        # dataclasses.asdict would copy every number of every column, which takes six times as long.
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps(columns, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Snapshot":
        """Reads what `to_bytes` wrote, also by a gateway of a later version that adds columns."""
        values = json.loads(data)
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def ahead(self, position: int, without: Collection[int]) -> list[int]:
        """The places in `order` from `position` on, but those of the authors `without`."""
        return [
            place
            for place in range(position, len(self.order))
            if self.author_ids[self.order[place]] not in without
        ]

    def post_at(self, place: int) -> int:
        """The post at this place of `order`."""
        return self.post_ids[self.order[place]]

    def shown(self) -> dict[int, int]:
        """The column index of each post of the feed, by post id."""
        return {self.post_ids[i]: i for i in self.order}


def take(
    *,
    feed_id: str,
    reader_id: int,
    created_at_ms: int,
    trace_id: str,
    degraded: list[str],
    candidates: common_pb2.Candidates,
    judged: filter_pb2.FilterCandidatesResponse,
    kept: Sequence[int],
    ranked: ranker_pb2.RankCandidatesResponse,
    ordered: hydrator_pb2.HydrateFeedResponse,
) -> Snapshot:
    """The snapshot of a feed from what its stages answered.

    Args:
        feed_id: Of the feed.
        reader_id: Whose feed it is.
        created_at_ms: When it was made.
        trace_id: Of the request that made it.
        degraded: What was away meanwhile.
        candidates: Everything retrieved.
        judged: The filter's answer, for `candidates`.
        kept: Indices into `candidates` of those that were ranked.
        ranked: The ranker's answer, for `kept`.
        ordered: The hydrator's answer, for `kept`.
    """
    count = len(candidates.post_ids)
    placements: list[str | None] = [None] * count
    for index, placement in zip(ordered.order, ordered.placements, strict=True):
        placements[kept[index]] = wire.placement_name(placement)
    return Snapshot(
        feed_id=feed_id,
        reader_id=reader_id,
        created_at_ms=created_at_ms,
        trace_id=trace_id,
        model_version=ranked.model_version,
        degraded=degraded,
        post_ids=list(candidates.post_ids),
        author_ids=list(candidates.author_ids),
        sources=[wire.source_name(source) for source in candidates.sources],
        retrieval_scores=_rounded(candidates.retrieval_scores),
        verdicts=[wire.verdict_name(verdict) for verdict in judged.verdicts],
        penalties=_rounded(judged.penalties),
        scores=_spread(ranked.scores, kept, count),
        topic_similarities=_spread(ranked.topic_similarities, kept, count),
        author_affinities=_spread(ranked.author_affinities, kept, count),
        placements=placements,
        order=[kept[index] for index in ordered.order],
    )


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, _DECIMALS) for value in values]


def _spread(values: Sequence[float], kept: Sequence[int], count: int) -> list[float | None]:
    """Values of the kept candidates, at their places among all of them."""
    column: list[float | None] = [None] * count
    for index, value in zip(kept, values, strict=False):
        column[index] = round(value, _DECIMALS)
    return column

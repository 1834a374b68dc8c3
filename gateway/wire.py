"""The names that REST has for the values of the gRPC contracts."""

from typing import cast

from feed.v1 import common_pb2, filter_pb2, hydrator_pb2
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from gateway.schemas import Source


def _names(enum: object, prefix: str) -> dict[int, str]:
    values = cast(EnumTypeWrapper, enum).items()
    return {number: name.removeprefix(prefix).lower() for name, number in values}


_SOURCES = _names(common_pb2.CandidateSource, "CANDIDATE_SOURCE_")
_VERDICTS = _names(filter_pb2.Verdict, "VERDICT_")
_PLACEMENTS = _names(hydrator_pb2.Placement, "PLACEMENT_")
_SHOWN_AS: dict[str, Source] = {
    "social": "social",
    "discovery": "discovery",
    "popular": "popular",
    # A stranger's post, too; that it is there to prove itself is in its reason.
    "exploration": "discovery",
}


def source_name(source: int) -> str:
    """social, discovery, popular, exploration; also the values of a newer contract."""
    return _SOURCES.get(source, "unspecified")


def verdict_name(verdict: int) -> str:
    """kept, penalized, seen, ..."""
    return _VERDICTS.get(verdict, "unspecified")


def placement_name(placement: int) -> str:
    """by_score, author_spread, discovery_share, exploration."""
    return _PLACEMENTS.get(placement, "unspecified")


def shown_source(source: str) -> Source:
    """The source as feeds name it: they know three."""
    return _SHOWN_AS.get(source, "discovery")


def reason(source: str, author_name: str) -> str:
    """Why a post is in the feed, in a sentence for its reader."""
    match source:
        case "social":
            return f"You follow {author_name}"
        case "popular":
            return "Popular now"
        case "exploration":
            return "New and seen by few"
        case _:
            return "Close to what you liked"

"""The one place where a model is chosen: by the scheme of FEED_MODEL_URL."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from mesh.channels import open_channel
from ranker_svc.scorers.heuristic import HeuristicScorer
from ranker_svc.scorers.port import Scorer
from ranker_svc.scorers.random import RandomScorer

_TRITON = re.compile(
    r"triton://(?P<target>[^/?@]+:\d+)/(?P<model>[^/?]+)(\?version=(?P<number>\d+))?"
)


@asynccontextmanager
async def open_scorer(url: str) -> AsyncIterator[Scorer]:
    """The model of a URL, within the block.

    heuristic://, random://?seed=7 (or without a seed), onnx://FILE, triton://HOST:PORT/MODEL (or
    with ?version=3 for that number of the model). Triton may be away, also at first.

    Raises:
        ValueError: The URL is not understood, or its model does not load.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "heuristic":
            yield HeuristicScorer()
        case "random":
            yield RandomScorer(_seed(parts.query))
        case "onnx":
            # Imported only here, as onnxruntime takes a while and 50 MB.
            from ranker_svc.scorers.onnx import OnnxScorer  # noqa: PLC0415

            yield OnnxScorer(Path(url.partition("://")[2]))
        case "triton":
            from ranker_svc.scorers.triton import TritonScorer  # noqa: PLC0415  the same

            target, model, number = _triton(url)
            # Triton makes a span for whoever names a trace to it, sampled or not.
            async with open_channel(target, tells_unsampled=False) as channel:
                yield TritonScorer(channel, model, number)
        case other:
            raise ValueError(
                f"FEED_MODEL_URL begins with {other}://; known is heuristic://, random://, "
                "onnx://, triton://"
            )


def _triton(url: str) -> tuple[str, str, str]:
    """Where Triton is, the model's name, and its number or nothing."""
    parts = _TRITON.fullmatch(url)
    if parts is None:
        raise ValueError(
            f"FEED_MODEL_URL is {url}, and must be triton://HOST:PORT/MODEL, "
            "if need be with ?version=NUMBER"
        )
    return parts["target"], parts["model"], parts["number"] or ""


def _seed(query: str) -> int | None:
    seeds = parse_qs(query).get("seed")
    if seeds is None:
        return None
    if not seeds[-1].isdecimal():
        raise ValueError(f"the seed of FEED_MODEL_URL is {seeds[-1]}, and must be a whole number")
    return int(seeds[-1])

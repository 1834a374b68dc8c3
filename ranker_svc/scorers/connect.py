"""The one place where a model is chosen: by the scheme of FEED_MODEL_URL."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from mesh.breaker import Breaker
from mesh.channels import open_channel
from ranker_svc.scorers.port import CurrentLineup, Lineup, Scorer
from ranker_svc.scorers.random import RandomScorer
from stores.registry.port import ModelRegistry

_TRITON = re.compile(
    r"triton://(?P<target>[^/?@]+:\d+)/(?P<model>[^/?]+)(\?version=(?P<number>\d+))?"
)


@asynccontextmanager
async def open_lineup(url: str, registry: ModelRegistry) -> AsyncIterator[CurrentLineup]:
    """The models of a URL, within the block.

    heuristic://, random://?seed=7 (or without a seed), onnx://FILE, triton://HOST:PORT/MODEL with
    ?version=3 for that number of the model: always the same.

    onnx:// alone: the version that the registry has promoted. triton://HOST:PORT/MODEL: the same
    from Triton, by its number; and from this process where Triton fails; and whatever Triton
    prefers before anything is promoted. Both follow the registry, and have its shadow.

    Triton may be away, also at first.

    Raises:
        ValueError: The URL is not understood, or its file does not load.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "heuristic":
            # Which stands behind every line-up.
            yield Lineup
        case "random":
            yield _always(RandomScorer(_seed(parts.query)))
        case "onnx" if url != "onnx://":
            # Imported only here, as onnxruntime takes a while and 50 MB.
            from ranker_svc.scorers.onnx import OnnxScorer  # noqa: PLC0415

            yield _always(OnnxScorer(Path(url.partition("://")[2])))
        case "onnx":
            async with _following(registry) as current:
                yield current
        case "triton":
            async with _triton_lineup(url, registry) as current:
                yield current
        case other:
            raise ValueError(
                f"FEED_MODEL_URL begins with {other}://; known is heuristic://, random://, "
                "onnx://, triton://"
            )


def _always(scorer: Scorer) -> CurrentLineup:
    lineup = Lineup((scorer,))
    return lambda: lineup


@asynccontextmanager
async def _triton_lineup(url: str, registry: ModelRegistry) -> AsyncIterator[CurrentLineup]:
    from ranker_svc.scorers.triton import TritonScorer  # noqa: PLC0415  as onnxruntime above

    target, model, fixed = _triton(url)
    breaker = Breaker("model")
    # Triton makes a span for whoever names a trace to it, sampled or not.
    async with open_channel(target, is_ours=False) as channel:

        def of(number: int | None) -> Scorer:
            return TritonScorer(channel, model, str(number or ""), breaker)

        if fixed:
            yield _always(of(int(fixed)))
        else:
            async with _following(registry, of) as current:
                yield current


@asynccontextmanager
async def _following(
    registry: ModelRegistry, in_front: Callable[[int | None], Scorer] | None = None
) -> AsyncIterator[CurrentLineup]:
    from ranker_svc.scorers.following import Follower  # noqa: PLC0415  as onnxruntime above

    follower = Follower(registry, in_front)
    await follower.look()
    following = asyncio.create_task(follower.follow(), name="follow the model registry")
    try:
        yield lambda: follower.lineup
    finally:
        following.cancel()
        await asyncio.wait({following})


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

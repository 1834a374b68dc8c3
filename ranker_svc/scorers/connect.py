"""The one place where a model is chosen: by the scheme of FEED_MODEL_URL."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from ranker_svc.scorers.heuristic import HeuristicScorer
from ranker_svc.scorers.port import Scorer
from ranker_svc.scorers.random import RandomScorer


def open_scorer(url: str) -> Scorer:
    """The model of a URL: heuristic://, random://?seed=7 (or without a seed), onnx://FILE.

    Raises:
        ValueError: The URL is not understood, or its model does not load.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "heuristic":
            return HeuristicScorer()
        case "random":
            return RandomScorer(_seed(parts.query))
        case "onnx":
            # Imported only here, as onnxruntime takes a while and 50 MB.
            from ranker_svc.scorers.onnx import OnnxScorer  # noqa: PLC0415

            return OnnxScorer(Path(url.partition("://")[2]))
        case other:
            raise ValueError(
                f"FEED_MODEL_URL begins with {other}://; known is heuristic://, random://, onnx://"
            )


def _seed(query: str) -> int | None:
    seeds = parse_qs(query).get("seed")
    if seeds is None:
        return None
    if not seeds[-1].isdecimal():
        raise ValueError(f"the seed of FEED_MODEL_URL is {seeds[-1]}, and must be a whole number")
    return int(seeds[-1])

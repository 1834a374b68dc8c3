"""Measures as a table in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

# What the measures are called, by their names in a card.
TITLES = {
    "auc": "AUC",
    "logloss": "log loss",
    "ece": "ECE",
    "ndcg20": "NDCG@20",
    "user_auc": "AUC per reader",
}


def table(metrics: Mapping[str, Any], gains: Mapping[str, Any]) -> Table:
    """A row a model, with 95 % intervals.

    Args:
        metrics: As in a card.
        gains: By how much DeepFM's AUC is above each other model's; empty for none.
    """
    columns = ["model", *TITLES.values()] + (["DeepFM's gain in AUC"] if gains else [])
    drawn = Table(*columns, title="95 % intervals below the values", title_justify="left")
    for name, measures in metrics.items():
        cells = [interval(measures[measure]) for measure in TITLES]
        if gains:
            cells.append(interval(gains[name], sign="+") if name in gains else "")
        drawn.add_row(name, *cells)
    return drawn


def interval(estimate: Mapping[str, float], sign: str = "") -> str:
    """The value, and below it its interval: two lines."""
    value, low, high = (f"{estimate[key]:{sign}.4f}" for key in ("value", "low", "high"))
    return f"{value}\n{low} to {high}"

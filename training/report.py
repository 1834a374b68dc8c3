"""What is known of a version, as one page that needs nothing else: a browser shows it offline."""

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np

# Before pyplot: there is no screen.
mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from training.evaluation import Scores, equal_bins
from training.examples import Examples
from training.fitting import Epoch
from training.model import LOGARITHMIC, Model
from training.segments import Effect, Segment, effects, importances, segments
from training.split import Split
from training.tables import TITLES, interval

FILE = "report.html"
# Those whose reliability and segments are drawn, where they are there.
_COMPARED = ("deepfm", "boosting", "logistic", "heuristic")
_COLOURS = {
    "deepfm": "#1f5fa8",
    "boosting": "#d1731f",
    "logistic": "#6a9a3b",
    "heuristic": "#8a8a8a",
}
_NAMES = {
    "deepfm": "DeepFM",
    "promoted": "DeepFM, promoted version",
    "boosting": "Gradient boosting",
    "logistic": "Logistic regression",
    "heuristic": "Heuristic",
    "popularity": "Popularity",
    "chronological": "Chronological",
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
p.facts { color: #666; margin-top: 0.2rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: right; padding: 0.35rem 0.6rem; border-bottom: 1px solid #eee;
         font-variant-numeric: tabular-nums; }
th { vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
td small { display: block; color: #777; white-space: nowrap; } tr.best td { background: #eef4fb; }
svg { max-width: 100%; height: auto; } .scroll { overflow-x: auto; }
"""


def page(
    card: Mapping[str, Any],
    epochs: Sequence[Epoch],
    model: Model,
    split: Split,
    scores: Mapping[str, Scores],
) -> str:
    """The whole page in HTML, with its plots in it."""
    compared = tuple(name for name in _COMPARED if name in scores)
    parts = segments(split.test, split.train, scores, compared)
    sections = (
        ("Measures", _measures(card)),
        ("Reliability", _RELIABILITY + _svg(_reliability(split.test, scores, compared))),
        ("AUC by segment", _SEGMENTS + _svg(_by_segment(parts, compared))),
        ("What each feature is worth", _WORTH + _svg(_worth(importances(model, split.test)))),
        ("What each number does", _EFFECTS + _svg(_effects(effects(model, split.test)))),
        ("Training", _training(card) + _svg(_curve(epochs))),
        ("Data", _data(card)),
    )
    body = "".join(f"<h2>{escape(title)}</h2>{content}" for title, content in sections)
    version = escape(card["version"])
    trained_at = card["created_at"][:16].replace("T", " ")
    facts = f"Trained {trained_at} UTC on {escape(card['data']['log'])}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Ranking model, version {version}</title><style>{_STYLE}</style></head><body>"
        f'<h1>Ranking model, version {version}</h1><p class="facts">{facts}</p>{body}'
        "</body></html>"
    )


_RELIABILITY = """<p>Test showings in 15 equally full bins of the predicted chance of a like.
On the diagonal, what was predicted is what happened.</p>"""
_SEGMENTS = """<p>How well each model orders the showings of one segment among themselves, with
95 % intervals. A segment with fewer than 50 likes is left out.</p>"""
_WORTH = """<p>How much of DeepFM's AUC for likes is lost when the values of one column are dealt
anew among the showings. Columns that tell the same stand in for each other, so each looks
small.</p>
"""
_EFFECTS = """<p>The mean predicted chance of a like when the number is set to one value in all
showings and everything else stays. Values are quantiles of the test days.</p>"""


def _measures(card: Mapping[str, Any]) -> str:
    gains = card["auc_gain"]
    heads = "".join(f"<th>{title}</th>" for title in TITLES.values())
    rows = []
    for name, measures in sorted(
        card["metrics"].items(), key=lambda each: -each[1]["auc"]["value"]
    ):
        cells = "".join(f"<td>{_estimate(measures[measure])}</td>" for measure in TITLES)
        gain = _estimate(gains[name], sign="+") if name in gains else ""
        style = ' class="best"' if name == "deepfm" else ""
        rows.append(f"<tr{style}><td>{_NAMES[name]}</td>{cells}<td>{gain}</td></tr>")
    rows_of_test = card["data"]["split"]["test"]["rows"]
    return (
        f"<p>On {rows_of_test:,} showings of the last days, of which no training knew. Below "
        "each value is its 95 % interval over readers drawn anew. Chronological, popularity and "
        "the heuristic give no probabilities: theirs come from a logistic regression on the "
        "validation days.</p>"
        f'<div class="scroll"><table><tr><th>Model</th>{heads}<th>DeepFM\'s AUC is above by</th>'
        f"</tr>{''.join(rows)}</table></div>"
    )


def _estimate(estimate: Mapping[str, float], sign: str = "") -> str:
    value, bounds = interval(estimate, sign).splitlines()
    return f"{value}<small>{bounds}</small>"


def _training(card: Mapping[str, Any]) -> str:
    training, weights = card["training"], card["weights"]
    return (
        f"<p>{training['epochs']} epochs of {training['seconds_per_epoch']:.1f} s on "
        f"{escape(training['device'])}, seed {training['seed']}. The model is that of the epoch "
        "with the least loss on the validation days. Its score weighs the chance of a like by "
        f"{weights['like']:g} and that of a long look by {weights['dwell']:g}. The ONNX file "
        f"differs from it by {card['parity']:.1e} at most.</p>"
    )


def _data(card: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{name}</td><td>{part['rows']:,}</td><td>{part['first_day']}</td>"
        f"<td>{part['last_day']}</td><td>{part['likes']:.1%}</td></tr>"
        for name, part in card["data"]["split"].items()
    )
    columns = card["contract"]
    buckets = ", ".join(f"{each['name']} ({each['buckets']:,})" for each in columns["categorical"])
    return (
        "<table><tr><th>Part</th><th>Showings</th><th>First day</th><th>Last day</th><th>Liked"
        f"</th></tr>{rows}</table><p>Numbers: {escape(', '.join(columns['dense']))}.<br>"
        f"Ids and their buckets: {escape(buckets)}.</p>"
    )


def _reliability(test: Examples, scores: Mapping[str, Scores], names: Sequence[str]) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4.6))
    highest = 0.0
    for name in names:
        probability = scores[name].like
        bins = equal_bins(probability)
        counts = np.bincount(bins)
        full = counts > 0
        predicted = np.bincount(bins, probability)[full] / counts[full]
        seen = np.bincount(bins, test.like.astype(np.float64))[full] / counts[full]
        axes.plot(predicted, seen, "o-", ms=4, lw=1.2, color=_COLOURS[name], label=_NAMES[name])
        highest = max(highest, predicted.max(), seen.max())
    axes.plot((0, highest), (0, highest), "--", lw=1, color="#bbb", zorder=0)
    axes.set(xlabel="predicted chance of a like", ylabel="share that was liked")
    axes.legend(frameon=False)
    return figure


def _by_segment(parts: Sequence[Segment], names: Sequence[str]) -> Figure:
    kinds = list(dict.fromkeys(part.kind for part in parts))
    figure, grid = plt.subplots(
        1, max(len(kinds), 1), figsize=(11, 4.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, kind in zip(grid[0], kinds, strict=False):
        shown = [part for part in parts if part.kind == kind]
        for place, name in enumerate(names):
            at = np.arange(len(shown)) + (place - (len(names) - 1) / 2) * 0.18
            estimates = [part.auc[name] for part in shown]
            value = np.array([each.value for each in estimates])
            reach = np.array(
                [[each.value - each.low, each.high - each.value] for each in estimates]
            ).T.clip(min=0)
            axes.errorbar(
                at, value, reach, fmt="o", ms=4, lw=1.2, color=_COLOURS[name], label=_NAMES[name]
            )
        labels = [f"{part.name}\n{part.rows:,}" for part in shown]
        axes.set_xticks(range(len(shown)), labels, fontsize=7)
        axes.set_title(kind, fontsize=10)
        axes.grid(axis="y", color="#eee")
    grid[0][0].set_ylabel("AUC")
    grid[0][0].legend(frameon=False, fontsize=8)
    return figure


def _worth(lost: Mapping[str, float]) -> Figure:
    ordered = sorted(lost.items(), key=lambda each: each[1])
    figure, axes = plt.subplots(figsize=(7, 4.8))
    axes.barh([name for name, _ in ordered], [value for _, value in ordered], color="#1f5fa8")
    axes.axvline(0, color="#888", lw=0.8)
    axes.set_xlabel("AUC lost")
    return figure


def _effects(found: Sequence[Effect]) -> Figure:
    across = 4
    down = max(-(-len(found) // across), 1)
    figure, grid = plt.subplots(
        down, across, figsize=(11, 2.6 * down), sharey=True, squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(found) :]:
        axes.set_visible(False)
    for axes, effect in zip(grid.flat, found, strict=False):
        axes.plot(effect.values, effect.like, "o-", ms=3, lw=1.2, color="#1f5fa8")
        axes.set_title(effect.name, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color="#eee")
        if effect.name in LOGARITHMIC:
            axes.set_xscale("symlog", linthresh=1)
    for row in grid:
        row[0].set_ylabel("chance", fontsize=8)
    return figure


def _curve(epochs: Sequence[Epoch]) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 3.6))
    numbers = range(1, len(epochs) + 1)
    for name, colour, losses in (
        ("training days, with dropout", "#8a8a8a", [epoch.train for epoch in epochs]),
        ("validation days", "#1f5fa8", [epoch.validation for epoch in epochs]),
    ):
        axes.plot(numbers, losses, "o-", ms=4, lw=1.2, color=colour, label=name)
    best = int(np.argmin([epoch.validation for epoch in epochs]))
    axes.axvline(best + 1, color="#1f5fa8", lw=0.8, ls=":")
    axes.annotate(
        "kept", (best + 1, 1), xycoords=("data", "axes fraction"), xytext=(4, -12),
        textcoords="offset points", fontsize=9, color="#1f5fa8",
    )  # fmt: skip
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel="log loss of both heads")
    axes.legend(frameon=False)
    return figure


def _svg(figure: Figure) -> str:
    """The figure as an element of the page."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    written = io.StringIO()
    figure.savefig(written, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    drawn = written.getvalue()
    return drawn[drawn.index("<svg") :]

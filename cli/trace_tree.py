"""A trace drawn for a terminal: its spans as a tree, each with its place in time. Pure."""

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from mesh import otlp
from mesh.otlp import Span

_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_red", "bright_cyan")
_GAP = "  "
_MIN_BAR, _MAX_BAR = 8, 28
# With so many columns beside the tree, two thirds of them are for details.
_WIDE = 48
_MAX_NAME = 44
_OURS = "feed."


@dataclass(frozen=True, slots=True)
class Row:
    """A span and the lines of the tree before it: before its own line, and before further ones."""

    span: Span
    guide: str
    guide_below: str


def draw(spans: Sequence[Span], width: int) -> list[Text]:
    """The lines of one trace. Details stand beside their span where they fit, else below it.

    Args:
        spans: Those of one trace, at least one, in any order.
        width: Columns there are. Words are not cut, so a very long one may stand out.
    """
    rows = list(tree(spans))
    columns = _Columns(rows, width)
    lines = _head(spans, width)
    for row in rows:
        lines += columns.lines(row)
    for line in lines:
        line.rstrip()
    return lines


def tree(spans: Sequence[Span]) -> Iterator[Row]:
    """Each span once, depth first, siblings in order of start; at the top what has no parent here.

    Of spans whose ids lead in a circle, the first is taken for a top.
    """
    ordered = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns))
    children: dict[str, list[Span]] = defaultdict(list)
    for span in ordered:
        children[span.parent_id].append(span)
    shown: set[int] = set()
    for top in (*otlp.tops(ordered), *ordered):
        todo = [(top, "", "")]
        while todo:
            span, guide, beside = todo.pop()
            if id(span) in shown:
                continue
            shown.add(id(span))
            below = children[span.span_id] if span.span_id else []
            yield Row(span, guide, beside + ("│ " if below else "  "))
            for each in reversed(below):
                last = each is below[-1]
                todo.append(
                    (each, beside + ("└ " if last else "├ "), beside + ("  " if last else "│ "))
                )


def milliseconds(nanoseconds: float) -> str:
    """A duration with three digits or so: "0.56 ms", "40.6 ms", "1,234 ms"."""
    ms = nanoseconds / 1e6
    digits = 2 if ms < 9.995 else 1 if ms < 99.95 else 0
    return f"{ms:,.{digits}f} ms"


def status(span: Span) -> str:
    """How it ended, in a word: what kind of error, else the code that its protocol has."""
    if span.status == "ERROR":
        return str(span.attributes.get("error.type", "ERROR"))
    for name in ("rpc.response.status_code", "http.response.status_code"):
        if name in span.attributes:
            return str(span.attributes[name])
    return ""


def details(span: Span, names: Mapping[str, str]) -> list[str]:
    """What explains the feed, in pieces such as "page: posts=20 missing=0".

    Args:
        span: Whose details.
        names: Of the trace's spans, by id.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    if group := span.attributes.get("messaging.consumer.group.name"):
        groups[""].append(f"group={group}")
    said = span.name.split()
    for name, value in span.attributes.items():
        if name.startswith(_OURS) and value not in said:
            family, _, own = name.removeprefix(_OURS).rpartition(".")
            groups[family].append(f"{own}={_value(value)}")
    pieces = [
        f"{family}.{members[0]}" if family and len(members) == 1
        else f"{family}: {' '.join(members)}" if family
        else " ".join(members)
        for family, members in groups.items()
    ]  # fmt: skip
    if span.parent_id and span.parent_id not in names:
        pieces.append(f"(parent {span.parent_id} is not here)")
    for trace_id, span_id in span.links:
        here = trace_id == span.trace_id and span_id in names
        pieces.append(f"→ {names[span_id]}" if here else f"→ trace {trace_id}")
    return pieces


class _Columns:
    """Where everything goes, for the rows of one trace."""

    def __init__(self, rows: Sequence[Row], width: int) -> None:
        spans = [row.span for row in rows]
        self._width = width
        self._start_ns = min(span.start_ns for span in spans)
        self._end_ns = max(span.end_ns for span in spans)
        self._names = {span.span_id: span.name for span in spans}
        services = dict.fromkeys(span.service for span in spans)
        self._colours = {s: _COLOURS[i % len(_COLOURS)] for i, s in enumerate(services)}
        self._name = max(len(row.guide + _short(row.span.name)) for row in rows)
        self._service = max(map(len, services))
        self._duration = max(len(milliseconds(span.end_ns - span.start_ns)) for span in spans)
        self._status = max(len(status(span)) for span in spans)
        fixed = self._name + self._service + self._duration + self._status + 4 * len(_GAP)
        left = width - fixed
        self._bar = min(max(left // 3 if left >= _WIDE else left, _MIN_BAR), _MAX_BAR)

    def lines(self, row: Row) -> list[Text]:
        """The span's line, and lines for those of its details that have no room in it."""
        span = row.span
        failed = span.status == "ERROR"
        colour = self._colours[span.service]
        name = _short(span.name).ljust(self._name - len(row.guide))
        first = Text.assemble(
            (row.guide, "dim"),
            (name, "bold red" if failed else "bold" if not row.guide else ""),
            _GAP,
            (span.service.ljust(self._service), colour),
            _GAP,
            milliseconds(span.end_ns - span.start_ns).rjust(self._duration),
            _GAP,
            (self._waterfall(span), "red" if failed else colour),
            _GAP,
            (status(span).ljust(self._status), "red" if failed else "dim"),
        )
        told = [(piece, "dim") for piece in details(span, self._names)]
        if failed and span.status_message:
            told.insert(0, (span.status_message, "red"))
        beside = Text(_GAP).join(Text(piece, style) for piece, style in told)
        if len(first) + len(_GAP) + len(beside) <= self._width:
            return [first + _GAP + beside]
        margin = Text(row.guide_below + _GAP, "dim")
        return [first, *(margin + line for line in _flow(told, self._width - len(margin)))]

    def _waterfall(self, span: Span) -> str:
        """Its place in time within the trace; at least one mark long."""
        scale = self._bar / max(self._end_ns - self._start_ns, 1)
        start = min(int((span.start_ns - self._start_ns) * scale), self._bar - 1)
        end = max(round((span.end_ns - self._start_ns) * scale), start + 1)
        return (" " * start + "━" * (end - start)).ljust(self._bar)[: self._bar]


def _head(spans: Sequence[Span], width: int) -> list[Text]:
    start_ns = min(span.start_ns for span in spans)
    began = datetime.fromtimestamp(start_ns / 1e9, UTC)
    errors = sum(span.status == "ERROR" for span in spans)
    facts = [
        (f"trace {spans[0].trace_id}", "bold"),
        (milliseconds(max(span.end_ns for span in spans) - start_ns), ""),
        (f"{len(spans)} spans", ""),
        (f"{began:%Y-%m-%d %H:%M:%S}.{began.microsecond // 1000:03d} UTC", ""),
        *([(f"{errors} with errors", "red")] if errors else []),
    ]
    return _flow(facts, width)


def _flow(pieces: Iterable[tuple[str, str]], width: int) -> list[Text]:
    """The styled pieces in lines of at most `width`: a piece is broken only where it must be."""
    lines: list[Text] = []
    for piece, style in pieces:
        gap = _GAP
        for part in [piece] if len(piece) <= width else piece.split():
            if lines and len(lines[-1]) + len(gap) + len(part) <= width:
                lines[-1].append(gap).append(part, style)
            else:
                lines.append(Text(part, style))
            gap = " "
    return lines


def _short(name: str) -> str:
    return textwrap.shorten(name, _MAX_NAME, placeholder=" …") if len(name) > _MAX_NAME else name


def _value(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case tuple() | list():
            return ",".join(map(_value, value)) or "none"
        case _:
            return str(value)

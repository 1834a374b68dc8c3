"""`feedmesh trace`: the traces that a gateway keeps, or those of a file."""

import json
import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.trace_rules import violations
from cli.trace_tree import draw, milliseconds
from mesh import otlp
from mesh.settings import Settings

_TIMEOUT_S = 10.0
# --wait: a trace that has not grown for so long is taken for whole, and so long is waited in all.
_QUIET_S, _WAIT_S, _EVERY_S = 2.0, 30.0, 0.25
# Without a terminal nothing says how out a line may be.
_WIDTH_OF_FILES = 140
_ROOM_FOR_SERVICES = 40


class _Stop(Exception):
    """Ends the command; says why."""


def trace(
    trace_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A trace's id; without it, a list.")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="The gateway; default FEED_PUBLIC_URL.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", exists=True, dir_okay=False, help="OTLP JSON, instead of a gateway."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print OTLP JSON, a line a trace.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 when a span breaks a rule.")
    ] = False,
    outside: Annotated[
        list[str] | None,
        typer.Option("--outside", help="With --check: a span of the client's own, a known parent."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the trace has stopped growing.")
    ] = False,
) -> None:
    """Draws the trace ID as a tree in time, or lists the newest traces.

    The gateway has to keep traces (FEED_DEBUG_TRACES); `make run` does.
    """
    base = (url or Settings().public_url).rstrip("/")
    out = Console(highlight=False, markup=False, soft_wrap=True)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = _WIDTH_OF_FILES
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        if file is not None:
            documents = _of_file(file, trace_id)
        elif trace_id is not None:
            documents = [_of_gateway(base, trace_id.lower(), wait=wait)]
        else:
            _print_list(out, _get(base, "/debug/traces")["items"])
            return
        broken = []
        for number, document in enumerate(documents):
            spans = otlp.read(otlp.from_json(document))
            if as_json:
                print(json.dumps(document))
            else:
                for line in [*([Text()] if number else []), *draw(spans, out.width)]:
                    out.print(line)
            broken += violations(spans, frozenset(outside or ())) if check else []
    except _Stop as stop:
        errors.print(str(stop))
        raise typer.Exit(1) from None
    for violation in broken:
        errors.print(violation, style="red")
    if broken:
        raise typer.Exit(1)


def _of_gateway(base: str, trace_id: str, *, wait: bool) -> dict[str, Any]:
    """The trace as OTLP JSON, when it is asked for or when it has stopped growing."""
    deadline = time.monotonic() + _WAIT_S
    found: dict[str, Any] | None = None
    spans, grown_at = 0, time.monotonic()
    while True:
        try:
            found = _get(base, f"/debug/traces/{trace_id}")
        except _Stop:
            if not wait or time.monotonic() > deadline:
                raise
        count = len(otlp.read(otlp.from_json(found or {})))
        if count != spans:
            spans, grown_at = count, time.monotonic()
        quiet = time.monotonic() - grown_at > _QUIET_S
        if found is not None and (not wait or quiet or time.monotonic() > deadline):
            return found
        time.sleep(_EVERY_S)


def _get(base: str, path: str) -> Any:
    try:
        answer = httpx.get(f"{base}{path}", timeout=_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _Stop(f"cannot ask {base}: {error}") from error
    if answer.status_code == 200:
        return answer.json()
    try:
        problem = answer.json()
        reasons = [problem["detail"], *(each["message"] for each in problem.get("errors", ()))]
    except (ValueError, KeyError, TypeError):
        reasons = [answer.reason_phrase]
    hint = " (is FEED_DEBUG_TRACES set for it?)" if answer.status_code == 404 else ""
    raise _Stop(f"{base}{path}: {answer.status_code}: {' '.join(reasons)}{hint}")


def _of_file(file: Path, trace_id: str | None) -> list[dict[str, Any]]:
    """The file's traces, each as a document of its own: all of them, or the one that is asked for.

    A file of several documents, one a line, is what collectors write.
    """
    text = file.read_text()
    try:
        try:
            documents = [json.loads(text)]
        except json.JSONDecodeError:
            documents = [json.loads(line) for line in text.splitlines() if line.strip()]
        everything = [each for document in documents for each in otlp.from_json(document)]
    except ValueError as error:
        raise _Stop(f"{file}: {error}") from error
    ids = list(dict.fromkeys(span.trace_id for span in otlp.read(everything)))
    wanted = [each for each in ids if trace_id in (None, each)]
    if not wanted:
        raise _Stop(f"{file} has no {'spans' if trace_id is None else 'trace ' + trace_id}")
    return [otlp.to_json(otlp.only(everything, each)) for each in wanted]


def _print_list(console: Console, traces: Sequence[dict[str, Any]]) -> None:
    if not traces:
        console.print("no traces yet")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("trace", no_wrap=True)
    table.add_column("started")
    table.add_column("name")
    for name in ("duration", "spans", "errors"):
        table.add_column(name, justify="right")
    fixed = 32 + 8 + max(len(each["name"]) for each in traces) + 10 + 5 + 6 + 6 * 2
    with_services = console.width - fixed >= _ROOM_FOR_SERVICES
    if with_services:
        table.add_column("services")
    for each in traces:
        started = datetime.fromisoformat(each["started_at"]).astimezone()
        table.add_row(
            each["trace_id"],
            f"{started:%H:%M:%S}",
            Text(each["name"]),
            milliseconds(each["duration_ms"] * 1e6),
            str(each["spans"]),
            Text(str(each["errors"] or ""), "red"),
            *([" ".join(each["services"])] if with_services else []),
        )
    with console.capture() as printed:
        console.print(table, soft_wrap=False)
    # Its cells are padded up to the last column.
    for line in printed.get().splitlines():
        console.print(Text.from_ansi(line.rstrip()))

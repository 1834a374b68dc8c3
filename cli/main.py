"""`feedmesh`: the command line tool. It works beside a running system, and without one.

A command's parts are imported when it runs: all of them together take seconds.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.table import Table

from cli.trace import trace
from mesh.errors import FailedPrecondition, FeedError
from mesh.settings import Settings

if TYPE_CHECKING:
    from cli.resolving import BadLine
    from stores.connect import Connections

T = TypeVar("T")
app = typer.Typer(
    help="Loads data into feedmesh, and out of it; shows traces. FEED_* variables say where it is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


app.command()(trace)


@app.callback()
def _main() -> None:
    """Keeps the commands' names also while there are few."""


@app.command("import")
def import_files(
    files: Annotated[
        list[Path],
        typer.Argument(exists=True, dir_okay=False, readable=True, help="JSON Lines files."),
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad line, before its batch.")
    ] = False,
) -> None:
    """Loads FILES (docs/import-format.md). Bad lines are reported and skipped.

    When it is interrupted, the same command goes on where it stopped. Exits with 1 when nothing
    could be loaded.
    """
    from cli.format import KINDS
    from cli.importing import KNOWN, LOADED, Importer, StrictStop
    from cli.sources import from_file

    async def work(stores: "Connections", settings: Settings, progress: Progress) -> Counter[str]:
        sources = [await asyncio.to_thread(from_file, file) for file in files]
        importer = Importer(stores, settings, progress, _report_bad, strict=strict)
        return await importer.run(sources)

    try:
        tally = _run(work)
    except StrictStop:
        _console.print("stopped at the first bad line, as --strict says")
        raise typer.Exit(1) from None
    _print_tally(tally)
    if not any(tally[f"{kind} {outcome}"] for kind in KINDS for outcome in (LOADED, KNOWN)):
        raise typer.Exit(1)


@app.command("export")
def export_file(
    out: Annotated[Path, typer.Option("--out", dir_okay=False, help="The file to write.")],
) -> None:
    """Writes everything in the import format; media goes into the folder OUT.media."""
    from cli.exporting import export
    from cli.format import KINDS

    async def work(stores: "Connections", _: Settings, progress: Progress) -> Counter[str]:
        return await export(stores, out, progress)

    tally = _run(work)
    table = Table("kind", "lines")
    for kind in KINDS:
        table.add_row(kind, f"{tally[kind]:,}")
    Console().print(table)


@app.command()
def demo() -> None:
    """Loads the demo world, once."""
    from local.demo.load import load

    _run(load)


@app.command("push-features")
def push_features() -> None:
    """Gives all features to the feature server anew: to one that is empty, or lost some.

    The worker feature_push brings them there; feeds go on meanwhile.
    """

    async def work(stores: "Connections", _: Settings, progress: Progress) -> int:
        pusher = stores.feature_pusher()
        if pusher is None:
            raise FailedPrecondition("FEED_FEATURES_URL names no feature server")
        return await pusher.push_again()

    _console.print(f"{_run(work):,} users and posts will be pushed")


def _run(work: Callable[["Connections", Settings, Progress], Awaitable[T]]) -> T:
    """Runs the work on the settings' stores; failures end the program with a line that says why."""
    from local.embedded import backends
    from stores.connect import Connections

    async def on_stores() -> T:
        settings = Settings()
        columns = (
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(),
            TaskProgressColumn(show_speed=True), Elapsed(),
        )  # fmt: skip
        async with backends(settings), Connections(settings) as stores:
            with Progress(*columns, console=_console) as progress:
                return await work(stores, settings, progress)

    try:
        return uvloop.run(on_stores())
    except (FeedError, OSError) as error:
        _console.print(f"stopped: {error}\nThe same command goes on from here.")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        _console.print("interrupted; the same command goes on from here")
        raise typer.Exit(130) from None


def _report_bad(name: str, bad: "BadLine") -> None:
    _console.print(f"{name}:{bad.number}: {bad.reason}")


def _print_tally(tally: Counter[str]) -> None:
    from cli.format import KINDS
    from cli.importing import KNOWN, LOADED, SKIPPED

    table = Table("kind", LOADED, "there before", SKIPPED)
    for kind in (*KINDS, "line"):
        counts = [tally[f"{kind} {outcome}"] for outcome in (LOADED, KNOWN, SKIPPED)]
        if any(counts):
            table.add_row("unreadable" if kind == "line" else kind, *(f"{n:,}" for n in counts))
    Console().print(table)


if __name__ == "__main__":
    app()

"""`feedmesh`: the command line tool. It works beside a running system, and without one.

A command's parts are imported when it runs: all of them together take seconds.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.table import Table

from cli.model import model
from cli.promoting import promoting
from cli.trace import trace
from mesh.errors import FailedPrecondition, FeedError, InvalidArgument
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
model.add_typer(promoting)
app.add_typer(model, name="model")


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


@app.command("copy")
def copy_installation(
    source: Annotated[str, typer.Option("--from", help="embedded, stack, or a file of FEED_*.")],
    target: Annotated[str, typer.Option("--to", help="The same; where everything goes.")],
) -> None:
    """Copies an installation into another one, and compares both by counts and checksums.

    Stop what writes to either before. When it is interrupted, the same command goes on where it
    stopped. Exits with 1 when the two differ in the end.
    """
    from cli.copying import Compared, copy
    from cli.environments import settings_of
    from local.embedded import backends
    from stores.connect import Connections

    async def on_both() -> "list[Compared]":
        here, there = await settings_of(source), await settings_of(target)
        urls = [each.url(each.sql_url) for each in (here, there)]
        if urls[0] == urls[1]:
            raise InvalidArgument("Both sides are the same database.")
        state = there.data_dir / f"copy-{sha256(' '.join(urls).encode()).hexdigest()[:12]}.json"
        async with (
            backends(here),
            backends(there),
            Connections(here) as one,
            Connections(there) as other,
        ):
            with _bars() as progress:
                return await copy(one, other, there, state, progress)

    compared = _run_to_end(on_both)
    table = Table("kind", "rows here", "rows there", "same")
    for each in compared:
        same = "yes" if each.is_same else "NO"
        table.add_row(each.kind, f"{each.here.count:,}", f"{each.there.count:,}", same)
    Console().print(table)
    if not all(each.is_same for each in compared):
        _console.print("the two differ")
        raise typer.Exit(1)


@app.command()
def demo() -> None:
    """Loads the demo world, once."""
    from local.demo.load import load

    _run(load)


@app.command("prepare")
def prepare_backends(
    pinot_controller: Annotated[
        str | None, typer.Option(help="URL of Pinot's controller, where impressions are in Pinot.")
    ] = None,
    pinot_version: Annotated[str, typer.Option(help="0.11 or 1.5.")] = "1.5",
    pinot_replicas: Annotated[
        int, typer.Option(min=1, help="How many of Pinot's servers have each impression.")
    ] = 1,
) -> None:
    """Makes schema, topics, table, bucket and collection in the backends that FEED_*_URL name.

    What is there already stays, so it may be run again at any time.
    """
    from cli.preparing import prepare
    from stores.impressions.pinot_table import VERSIONS

    if pinot_version not in VERSIONS:
        raise typer.BadParameter(f"known versions of Pinot are {', '.join(VERSIONS)}")

    async def work() -> None:
        version = VERSIONS[pinot_version]
        async for ready in prepare(Settings(), pinot_controller, version, pinot_replicas):
            _console.print(ready)

    _run_to_end(work)


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
        async with backends(settings), Connections(settings) as stores:
            with _bars() as progress:
                return await work(stores, settings, progress)

    return _run_to_end(on_stores)


def _bars() -> Progress:
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(),
        TaskProgressColumn(show_speed=True), Elapsed(),
    )  # fmt: skip
    return Progress(*columns, console=_console)


def _run_to_end(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        return uvloop.run(work())
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

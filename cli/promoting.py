"""`feedmesh model`: which version of the ranking model serves."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from mesh.errors import FeedError
from mesh.settings import Settings

if TYPE_CHECKING:
    from stores.registry.folder import FolderRegistry
    from stores.registry.port import State

promoting = typer.Typer(help="Which version of the ranking model serves.", no_args_is_help=True)
# Entries of a card that have tables of their own, or stand in the report.
_MEASURED = ("version", "metrics", "auc_gain", "off_policy")
_NUMBER = typer.Argument(min=1, help="The version's number.")
_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@promoting.command("list")
def list_versions() -> None:
    """Shows all versions: which serves, which did, and how good they were on their test days."""
    with _reported():
        registry = _registry()
        state = registry.state()
        table = Table("version", "state", "trained", "AUC", "heuristic's AUC", "ECE", "gate")
        for number in registry.versions():
            table.add_row(*_row(number, state, registry.card(number)))
    _print(table)


@promoting.command()
def show(number: Annotated[int, _NUMBER]) -> None:
    """Shows what is known of a version, and what speaks against its promotion."""
    from stores.registry.gate import faults

    with _reported():
        registry = _registry()
        card = registry.card(number)
        state = _state_of(number, registry.state())
        folder = registry.folder(number)
    _print(f"version {number}{f', {state}' if state else ''}: {folder}")
    _print(_measures(card))
    if card.get("off_policy"):
        _print(_off_policy(card["off_policy"]))
    _print(_facts(card))
    for reason in faults(card):
        _print(f"not to be promoted: {reason}")


@promoting.command()
def repository(
    out: Annotated[Path, typer.Option(file_okay=False, help="The model repository.")],
    name: Annotated[str, typer.Option(help="The model's name in Triton.")] = "ranker",
    backend: Annotated[
        Literal["python", "onnxruntime"], typer.Option(help="onnxruntime is for NVIDIA's image.")
    ] = "python",
) -> None:
    """Writes what ranks, or the heuristic before anything does, as Triton's model repository."""
    from stack.triton.repository import write_served

    with _reported():
        written = write_served(out, name, _registry(), backend)
    _print(f"{out} has {name}: {written}")


@promoting.command()
def promote(number: Annotated[int, _NUMBER]) -> None:
    """Lets a version rank, if nothing speaks against it. Rankers follow within a second.

    Where Triton serves the model (FEED_TRITON_REPOSITORY), it has loaded the version before.
    """
    from stores.registry import moves
    from stores.registry.gate import faults

    with _reported():
        registry = _registry()
        reasons = faults(registry.card(number))
        if not reasons:
            _change(registry, lambda state: moves.promoted(state, number))
    for reason in reasons:
        _err.print(f"version {number} is not promoted: {reason}")
    if reasons:
        raise typer.Exit(1)


@promoting.command()
def rollback() -> None:
    """Lets the version rank that did before this one."""
    from stores.registry import moves

    with _reported():
        _change(_registry(), moves.rolled_back)


@promoting.command()
def shadow(
    number: Annotated[int | None, typer.Argument(min=1, help="The version's number.")] = None,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of requests that it scores.")] = 0.1,
    off: Annotated[bool, typer.Option("--off", help="No shadow any more.")] = False,
) -> None:
    """Lets a version score beside the promoted one, without effect on feeds."""
    from stores.registry import moves

    if off == (number is not None):
        raise typer.BadParameter("either a version or --off")
    with _reported():
        registry = _registry()
        if number is not None:
            # Raises where there is none.
            registry.folder(number)
        with registry.changing() as (state, following):
            if number is None:
                following.append(moves.without_shadow(state))
            else:
                following.append(moves.with_shadow(state, number, share))
    _print("no shadow" if number is None else f"version {number} is scored beside, for {share:.0%}")


def _change(registry: "FolderRegistry", move: "Callable[[State], State]") -> None:
    """Changes which version is promoted; Triton, if it is to be told, serves that one by then."""
    from stack.triton.loading import Served
    from stores.registry.moves import kept

    settings = Settings()
    with registry.changing() as (state, following):
        then = move(state)
        number = then.promoted
        assert number is not None  # noqa: S101
        model = registry.model_file(number)
        if settings.triton_repository is not None:
            triton = Served.at(settings.model_url, settings.triton_repository)
            asyncio.run(triton.serve(number, model, kept(then)))
            _print(f"Triton serves version {number}")
        following.append(then)
    _print(f"version {number} is promoted; before it {state.promoted or 'none'} was")


def _registry() -> "FolderRegistry":
    from stores.connect import Connections

    return Connections(Settings()).registry()


@contextmanager
def _reported() -> Iterator[None]:
    """Says on one line what cannot be, and exits with 1."""
    try:
        yield
    except (FeedError, OSError, ValueError) as error:
        _err.print(f"the model registry stays as it is: {error}")
        raise typer.Exit(1) from None


def _print(*parts: Any) -> None:
    # Made now, so that it is as wide as the terminal is now.
    console = Console(highlight=False, markup=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def _row(number: int, state: "State", card: Mapping[str, Any]) -> list[str]:
    from stores.registry.gate import CANDIDATE, HEURISTIC, faults

    metrics = card.get("metrics") or {}
    mine, heuristic = metrics.get(CANDIDATE, {}), metrics.get(HEURISTIC, {})
    reasons = len(faults(card))
    return [
        str(number),
        _state_of(number, state),
        str(card.get("created_at", ""))[:16],
        _interval(mine.get("auc")),
        _interval(heuristic.get("auc")),
        _interval(mine.get("ece")),
        f"{reasons} against it" if reasons else "ok",
    ]


def _state_of(number: int, state: "State") -> str:
    said = []
    if number == state.promoted:
        said.append("promoted")
    if number in state.earlier:
        said.append("earlier")
    if number == state.shadow:
        said.append(f"shadow {state.shadow_share:.0%}")
    return ", ".join(said)


def _measures(card: Mapping[str, Any]) -> Table:
    metrics: Mapping[str, Any] = card.get("metrics") or {}
    names = list(dict.fromkeys(name for measures in metrics.values() for name in measures))
    table = Table("on the test days", *names)
    for model, measures in metrics.items():
        table.add_row(model, *(_interval(measures.get(name)) for name in names))
    return table


def _off_policy(estimates: Mapping[str, Any]) -> Table:
    table = Table("likes for each seen place", "as logged", "by this version")
    for name, estimate in estimates.items():
        # Beside the estimators stands how much they are from.
        if isinstance(estimate, Mapping) and "candidate" in estimate:
            both = (estimate.get("logged"), estimate["candidate"])
            table.add_row(name.upper(), *map(_interval, both))
    return table


def _facts(card: Mapping[str, Any]) -> Table:
    table = Table("entry", "value")
    for key, value in card.items():
        if key not in _MEASURED:
            table.add_row(key, value if isinstance(value, str) else json.dumps(value))
    return table


def _interval(estimate: Any) -> str:
    """The value, and its interval in brackets; nothing where there is none."""
    try:
        value, low, high = (float(estimate[key]) for key in ("value", "low", "high"))
    except (TypeError, KeyError):
        return ""
    return f"{value:.4f} ({low:.4f} to {high:.4f})"

"""`feedmesh model`: trains ranking models and holds them against one another."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mesh.errors import FeedError
from mesh.settings import Settings

_EXAMPLES = typer.Option("--examples", exists=True, dir_okay=False, help="An .npz of examples.")
model = typer.Typer(
    help="Trains ranking models, evaluates them, lets them rank.", no_args_is_help=True
)
_console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@model.command()
def train(
    examples: Annotated[Path, _EXAMPLES],
    log: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="The log that the examples come from."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 1,
) -> None:
    """Adds a version to the registry: trained, evaluated, with a report. Takes minutes.

    Without the log there are no off-policy estimates, which promotion asks for. PyTorch and what
    else it needs is installed once, into an environment of its own.
    """
    from stack import environments
    from stack.place import Place

    cache = Place.of(Settings()).cache
    arguments = ["--examples", str(examples), "--seed", str(seed)]
    if log is not None:
        arguments += ["--log", str(log)]
    training = environments.run_module(cache, environments.TRAINING, "training", *arguments)
    try:
        code = asyncio.run(training)
    except FeedError as error:
        _console.print(f"the training environment cannot be had: {error}")
        raise typer.Exit(1) from error
    raise typer.Exit(code)


@model.command()
def evaluate(
    versions: Annotated[list[int], typer.Argument(help="Numbers of versions.")],
    examples: Annotated[Path, _EXAMPLES],
) -> None:
    """Measures versions on all of the examples, also if they learnt from them."""
    from stores.connect import Connections
    from stores.registry.folder import MODEL
    from training.evaluation import Evaluation, model_scores
    from training.examples import Examples
    from training.inference import run
    from training.tables import table

    registry = Connections(Settings()).registry()
    metrics = {}
    try:
        read = Examples.read(examples)
        evaluation = Evaluation(read)
        for number in versions:
            outputs = run(registry.folder(number) / MODEL, read.features)
            metrics[str(number)] = asdict(evaluation.measures(model_scores(outputs)))
    except (FeedError, ValueError) as error:
        _console.print(f"cannot be evaluated: {error}")
        raise typer.Exit(1) from error
    Console().print(table(metrics, {}))

"""Triton's model repository: one model in numbered versions, from ONNX files.

`feedmesh model repository` writes one of the versions that the model registry serves, for a Triton
that runs elsewhere.

All versions of a model have one configuration. Each may have a contract of its own, so the
configuration has the contracts by number, `features.3` and `version.3`, and those of the highest
number also without one: that is what Triton answers with when nobody asks for a number.
"""

import filecmp
import json
import shutil
import zlib
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import onnx
from google.protobuf.message import DecodeError

from mesh.errors import FailedPrecondition
from ranker_svc.scorers.contract import FEATURES_KEY, VERSION_KEY
from stack.triton import heuristic
from stores.registry.folder import FolderRegistry
from stores.registry.moves import kept

Backend = Literal["python", "onnxruntime"]
_TYPES = {
    int(onnx.TensorProto.FLOAT): "TYPE_FP32",
    int(onnx.TensorProto.INT64): "TYPE_INT64",
}
_BACKEND_MODEL = Path(__file__).parent / "backend_model.py"
_MODEL, _CONFIG = "model.onnx", "config.pbtxt"


@dataclass(frozen=True, slots=True)
class _Tensor:
    """As a configuration has it: -1 for a size that varies."""

    kind: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Version:
    inputs: Mapping[str, _Tensor]
    output: str
    scores: _Tensor
    metadata: Mapping[str, str]


def write(folder: Path, name: str, model: Path, backend: Backend = "python") -> str:
    """Makes this the model's only version; returns what it calls itself.

    Args:
        folder: The repository.
        name: The model's name in Triton.
        model: A file as `ranker_svc.scorers.onnx.OnnxScorer` takes it: the scores as
            first output, `features` and `version` in its metadata.
        backend: As `add_version` takes it.

    Raises:
        FailedPrecondition: The model is no such file.
    """
    version = _read(model)
    # The number tells two models apart, in each answer of Triton.
    write_all(folder, name, {zlib.crc32(model.read_bytes()) or 1: model}, backend)
    return version.metadata.get(VERSION_KEY, "")


def write_all(
    folder: Path, name: str, models: Mapping[int, Path], backend: Backend = "python"
) -> None:
    """Makes these the model's only versions, files by number.

    Raises:
        FailedPrecondition: As `add_version`.
    """
    shutil.rmtree(folder / name, ignore_errors=True)
    for number, model in models.items():
        add_version(folder, name, number, model, backend)


def served(registry: FolderRegistry, folder: Path) -> Path | dict[int, Path]:
    """The versions that the registry serves, the promoted one first, by number.

    While there are none, the heuristic as a model instead, in a file that is made in the folder.
    """
    if versions := kept(registry.state()):
        return {number: registry.model_file(number) for number in versions}
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "heuristic.onnx"
    heuristic.save(model)
    return model


def write_served(folder: Path, name: str, registry: FolderRegistry, backend: Backend) -> str:
    """Makes what the registry serves the model's versions; the heuristic while that is nothing.

    Versions before the promoted one are left out where the backend cannot serve both.

    Returns:
        What it has then, in words.

    Raises:
        FailedPrecondition: As `add_version`.
    """
    with TemporaryDirectory() as scratch:
        models = served(registry, Path(scratch))
        if isinstance(models, Path):
            return write(folder, name, models, backend)
    (promoted, newest), *before = models.items()
    write_all(folder, name, {promoted: newest}, backend)
    for number, model in before:
        # Without one that the backend cannot serve beside it, only a rollback to it is missing.
        with suppress(FailedPrecondition):
            add_version(folder, name, number, model)
    return f"version {', '.join(map(str, numbers(folder, name)))}"


def add_version(
    folder: Path, name: str, number: int, model: Path, backend: Backend | None = None
) -> None:
    """Adds a version beside those that are there; nothing to do if it is there already.

    A running Triton serves it when it is told to load the model.

    Args:
        folder: The repository.
        name: The model's name in Triton.
        number: From 1; a version of this number never changes.
        model: As `write` takes it.
        backend: python for `make triton`'s, onnxruntime for that of NVIDIA's image; None for that
            of the versions that are there.

    Raises:
        FailedPrecondition: It is no model, the backend cannot serve it beside the others, or
            another model is there by this number.
    """
    backend = backend or _backend(folder, name)
    models = {each: _file(folder, name, each) for each in numbers(folder, name)} | {number: model}
    config = _config(name, {each: _read(file) for each, file in models.items()}, backend)
    place = folder / name / str(number)
    if place.exists():
        if not filecmp.cmp(model, place / _MODEL, shallow=False):
            raise FailedPrecondition(f"{place} is another model than {model}")
    else:
        unfinished = place.with_name(f".{number}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        shutil.copyfile(model, unfinished / _MODEL)
        if backend == "python":
            shutil.copyfile(_BACKEND_MODEL, unfinished / "model.py")
        unfinished.rename(place)
    _put(folder / name, config)


def keep(folder: Path, name: str, wanted: Collection[int]) -> None:
    """Removes all versions but these. A running Triton goes on with them until its next load."""
    left = [number for number in numbers(folder, name) if number in wanted]
    if left:
        versions = {number: _read(_file(folder, name, number)) for number in left}
        _put(folder / name, _config(name, versions, _backend(folder, name)))
    for number in numbers(folder, name):
        if number not in wanted:
            shutil.rmtree(folder / name / str(number))


def numbers(folder: Path, name: str) -> list[int]:
    """The versions that are there, in order."""
    return sorted(int(each.name) for each in (folder / name).glob("*") if each.name.isdecimal())


def _file(folder: Path, name: str, number: int) -> Path:
    return folder / name / str(number) / _MODEL


def _backend(folder: Path, name: str) -> Backend:
    """What serves the versions that are there; python before the first."""
    config = folder / name / _CONFIG
    written = config.read_text() if config.exists() else ""
    return "onnxruntime" if _backend_line("onnxruntime") in written.splitlines() else "python"


def _backend_line(backend: Backend) -> str:
    return f'backend: "{backend}"'


def _put(place: Path, config: str) -> None:
    """Replaces the configuration whole."""
    unfinished = place / f".{_CONFIG}"
    unfinished.write_text(config)
    unfinished.rename(place / _CONFIG)


def _config(name: str, versions: Mapping[int, _Version], backend: Backend) -> str:
    """The configuration that serves all these versions.

    Raises:
        FailedPrecondition: The backend cannot serve them as one model.
    """
    lines = [f"name: {json.dumps(name)}", _backend_line(backend), "max_batch_size: 0"]
    if backend == "python":
        lines += _any_tensors(versions.values())
        lines.append("instance_group { kind: KIND_CPU count: 1 }")
    else:
        lines += _same_tensors(versions)
        # No kind: on a GPU where Triton has one, else on the CPU.
        lines.append("instance_group { count: 1 }")
        # As in `backend_model`: a small model on a small batch.
        lines.append(_parameter("intra_op_thread_count", "1"))
    served = ", ".join(map(str, sorted(versions)))
    lines.append(f"version_policy {{ specific {{ versions: [{served}] }} }}")
    for number, version in sorted(versions.items()):
        lines += _contract(version, f".{number}")
    lines += _contract(versions[max(versions)], "")
    return "\n".join([*lines, ""])


def _any_tensors(versions: Iterable[_Version]) -> list[str]:
    """Inputs of any version, optional where one does without; `backend_model` gives one output.

    Their widths are left open: each version's model knows its own.
    """
    all_of_them = list(versions)
    kinds = {name: tensor.kind for each in all_of_them for name, tensor in each.inputs.items()}
    lines = []
    for name, kind in kinds.items():
        optional = not all(name in each.inputs for each in all_of_them)
        lines.append(_tensor("input", name, _Tensor(kind, (-1, -1)), optional=optional))
    return [*lines, _tensor("output", "scores", _Tensor("TYPE_FP32", (-1,)))]


def _same_tensors(versions: Mapping[int, _Version]) -> list[str]:
    """The tensors that all versions have: this backend holds each file against them."""
    shapes = {
        number: (dict(version.inputs), version.output, version.scores)
        for number, version in versions.items()
    }
    first, *others = shapes
    for number in others:
        if shapes[number] != shapes[first]:
            raise FailedPrecondition(
                f"versions {first} and {number} have different inputs or outputs, which Triton's "
                "onnxruntime backend does not serve as one model; the python backend does"
            )
    version = versions[first]
    inputs = [_tensor("input", name, tensor) for name, tensor in version.inputs.items()]
    return [*inputs, _tensor("output", version.output, version.scores)]


def _tensor(role: str, name: str, tensor: _Tensor, *, optional: bool = False) -> str:
    dims = ", ".join(map(str, tensor.dims))
    return (
        f"{role} {{ name: {json.dumps(name)} data_type: {tensor.kind} dims: [{dims}]"
        f"{' optional: true' if optional else ''} }}"
    )


def _contract(version: _Version, suffix: str) -> list[str]:
    return [
        _parameter(key + suffix, version.metadata[key])
        for key in (FEATURES_KEY, VERSION_KEY)
        if key in version.metadata
    ]


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}'


def _read(model: Path) -> _Version:
    """What a configuration says of the file; raises FailedPrecondition if it is no model."""
    try:
        loaded = onnx.load(model)
        inputs = {each.name: _tensor_of(each) for each in loaded.graph.input}
        if not all(len(each.dims) == 2 for each in inputs.values()):
            raise ValueError("an input is no matrix")
        scores = loaded.graph.output[0]
        return _Version(
            inputs,
            scores.name,
            _tensor_of(scores),
            {entry.key: entry.value for entry in loaded.metadata_props},
        )
    except (OSError, DecodeError, ValueError, LookupError) as error:
        raise FailedPrecondition(f"{model} is no model of matrices: {error}") from error


def _tensor_of(value: Any) -> _Tensor:
    tensor = value.type.tensor_type
    return _Tensor(
        _TYPES[int(tensor.elem_type)], tuple(dim.dim_value or -1 for dim in tensor.shape.dim)
    )

"""Triton's model repository as files. What Triton makes of them: test_promotion.py."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from mesh.errors import FailedPrecondition
from ranker_svc.scorers.contract import Contract, Field
from stack.triton import repository
from stores.registry.folder import CARD, MODEL, FolderRegistry
from stores.registry.port import State
from tests.fixtures.models import put, save_model_of_ids

NUMBERS = Contract("numbers", ("affinity", "age_hours"))
OTHER_NUMBERS = Contract("others", ("has_media", "affinity"))
IDS = Contract("ids", ("affinity",), (Field("author", 50),))


def file(tmp_path: Path, contract: Contract) -> Path:
    path = tmp_path / f"{contract.version}.onnx"
    save_model_of_ids(path, contract)
    return path


def config(folder: Path) -> Any:
    return text_format.Parse((folder / "ranker" / "config.pbtxt").read_text(), ModelConfig())


def parameters(folder: Path) -> dict[str, str]:
    return {key: value.string_value for key, value in config(folder).parameters.items()}


def test_versions_with_other_inputs_stand_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    repository.add_version(folder, "ranker", 2, file(tmp_path, NUMBERS))
    assert [each.optional for each in config(folder).input] == [False]
    repository.add_version(folder, "ranker", 11, file(tmp_path, IDS))
    said = config(folder)
    assert (said.name, said.backend, said.max_batch_size) == ("ranker", "python", 0)
    assert [each.kind for each in said.instance_group] == [ModelInstanceGroup.KIND_CPU]
    assert list(said.version_policy.specific.versions) == [2, 11]
    assert {each.name: (list(each.dims), each.optional) for each in said.input} == {
        "dense": ([-1, -1], False),
        "categorical": ([-1, -1], True),
    }
    given = parameters(folder)
    assert given == {
        **{f"{key}.2": value for key, value in NUMBERS.metadata().items()},
        **{f"{key}.11": value for key, value in IDS.metadata().items()},
        **IDS.metadata(),
    }
    files = {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}
    assert files == {
        "ranker/config.pbtxt",
        *(f"ranker/{number}/{name}" for number in (2, 11) for name in ("model.onnx", "model.py")),
    }


def test_versions_that_are_not_kept_go(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    for number, contract in enumerate((NUMBERS, IDS, OTHER_NUMBERS), 1):
        repository.add_version(folder, "ranker", number, file(tmp_path, contract))
    repository.keep(folder, "ranker", [3, 1, 9])
    assert repository.numbers(folder, "ranker") == [1, 3]
    assert list(config(folder).version_policy.specific.versions) == [1, 3]
    assert [each.name for each in config(folder).input] == ["dense"]


def test_a_version_is_added_once_and_never_becomes_another_model(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    for _ in range(2):
        repository.add_version(folder, "ranker", 1, file(tmp_path, NUMBERS))
    with pytest.raises(FailedPrecondition, match="another model than"):
        repository.add_version(folder, "ranker", 1, file(tmp_path, IDS))
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    with pytest.raises(FailedPrecondition, match="no model of matrices"):
        repository.add_version(folder, "ranker", 2, text)
    assert repository.numbers(folder, "ranker") == [1]


def test_the_onnxruntime_backend_takes_versions_of_one_shape(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    models = {1: file(tmp_path, NUMBERS), 2: file(tmp_path, OTHER_NUMBERS)}
    repository.write_all(folder, "ranker", models, "onnxruntime")
    said = config(folder)
    assert (said.backend, said.max_batch_size) == ("onnxruntime", 0)
    # A GPU is used where there is one.
    assert [each.kind for each in said.instance_group] == [ModelInstanceGroup.KIND_AUTO]
    assert [(each.name, list(each.dims)) for each in said.input] == [("dense", [-1, 2])]
    assert [(each.name, list(each.dims)) for each in said.output] == [("scores", [-1, 1])]
    assert parameters(folder)["features.1"] != parameters(folder)["features.2"]
    assert not list(folder.rglob("model.py"))
    with pytest.raises(FailedPrecondition, match="versions 1 and 3 have different inputs"):
        repository.add_version(folder, "ranker", 3, file(tmp_path, IDS))
    assert repository.numbers(folder, "ranker") == [1, 2]
    repository.add_version(folder, "ranker", 4, models[1])
    repository.keep(folder, "ranker", [4])
    assert config(folder).backend == "onnxruntime", "as it was"


def test_the_command_writes_what_the_registry_serves(tmp_path: Path) -> None:
    registry = FolderRegistry(tmp_path / "registry")
    for contract in (NUMBERS, OTHER_NUMBERS, IDS):
        with registry.adding() as (_, folder):
            save_model_of_ids(folder / MODEL, contract)
            (folder / CARD).write_text("{}")

    def run(backend: str) -> subprocess.CompletedProcess[str]:
        command = [*(sys.executable, "-m", "cli.main", "model", "repository"),
                   *("--out", str(tmp_path / "out"), "--backend", backend)]  # fmt: skip
        env = {**os.environ, "FEED_REGISTRY_URL": f"file://{registry.root}"}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert run("onnxruntime").returncode == 0
    [heuristic] = repository.numbers(tmp_path / "out", "ranker")
    assert heuristic > 3
    assert config(tmp_path / "out").backend == "onnxruntime"
    put(registry, State(2, (1,)))
    assert run("onnxruntime").returncode == 0
    assert list(config(tmp_path / "out").version_policy.specific.versions) == [1, 2]
    put(registry, State(3, (2, 1)))
    assert run("onnxruntime").returncode == 0
    assert repository.numbers(tmp_path / "out", "ranker") == [3], "the others have other inputs"
    assert run("python").returncode == 0
    assert repository.numbers(tmp_path / "out", "ranker") == [1, 2, 3]

"""Triton's model repository: one model, from an ONNX file."""

import json
import shutil
import zlib
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from mesh.errors import FailedPrecondition
from ranker_svc.scorers.contract import FEATURES_KEY, VERSION_KEY

_TYPES = {
    int(onnx.TensorProto.FLOAT): "TYPE_FP32",
    int(onnx.TensorProto.INT64): "TYPE_INT64",
}
_BACKEND_MODEL = Path(__file__).parent / "backend_model.py"


def write(folder: Path, name: str, model: Path) -> str:
    """Makes `folder` a repository of this model alone; returns the version that it names itself by.

    Args:
        folder: Emptied first.
        name: The model's name in Triton.
        model: A file as `ranker_svc.scorers.onnx.OnnxScorer` takes it: the scores as
            first output, `features` and `version` in its metadata.

    Raises:
        FailedPrecondition: The model is no such file.
    """
    try:
        loaded = onnx.load(model)
        inputs = "".join(_input(each) for each in loaded.graph.input)
    except (OSError, DecodeError, ValueError, LookupError) as error:
        raise FailedPrecondition(f"{model} is no model of matrices: {error}") from error
    shutil.rmtree(folder, ignore_errors=True)
    # The number tells two models apart, in each answer of Triton.
    number = folder / name / str(zlib.crc32(model.read_bytes()) or 1)
    number.mkdir(parents=True)
    shutil.copyfile(model, number / "model.onnx")
    shutil.copyfile(_BACKEND_MODEL, number / "model.py")
    metadata = {entry.key: entry.value for entry in loaded.metadata_props}
    config = f"""\
name: {json.dumps(name)}
backend: "python"
max_batch_size: 0
{inputs}output {{ name: {json.dumps(loaded.graph.output[0].name)} data_type: TYPE_FP32 dims: [-1] }}
instance_group {{ kind: KIND_CPU count: 1 }}
"""
    for key in (FEATURES_KEY, VERSION_KEY):
        if key in metadata:
            value = json.dumps(metadata[key])
            config += f'parameters {{ key: "{key}" value {{ string_value: {value} }} }}\n'
    (folder / name / "config.pbtxt").write_text(config)
    return metadata.get(VERSION_KEY, "")


def _input(tensor: onnx.ValueInfoProto) -> str:
    """As the configuration has it; raises IndexError or KeyError when it is no matrix."""
    matrix = tensor.type.tensor_type
    kind = _TYPES[int(matrix.elem_type)]
    columns = matrix.shape.dim[1].dim_value
    return f"input {{ name: {json.dumps(tensor.name)} data_type: {kind} dims: [-1, {columns}] }}\n"

"""`ranker_svc.scorers.heuristic` as an ONNX model, until there is a trained one."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ranker_svc.features import COLUMN, DENSE, PRIOR_RATE
from ranker_svc.scorers.contract import DENSE_INPUT, Contract

VERSION = "heuristic-1"
_LINEAR = {"affinity": 0.25, "source_social": 0.10, "has_media": 0.05}
_OPSET = 20
_IR_VERSION = 10


def save(path: Path) -> None:
    """Writes the model: `dense`, float32 (n, len(DENSE)), to `scores`, float32 (n,)."""
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []

    def constant(value: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(constants)}"
        constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def column(name: str) -> str:
        return op("Gather", DENSE_INPUT, constant(COLUMN[name], np.int64), axis=1)

    def weighted(weight: float, value: str) -> str:
        return op("Mul", value, constant(weight))

    linear = op("MatMul", DENSE_INPUT, constant([_LINEAR.get(name, 0.0) for name in DENSE]))
    rate = column("engagement_rate")
    recency = op("Exp", weighted(-np.log(2) / 24, column("age_hours")))
    engagement = op("Div", rate, op("Add", rate, constant(PRIOR_RATE)))
    op(
        "Sum",
        linear,
        weighted(0.25, op("Relu", column("topic_similarity"))),
        weighted(0.20, recency),
        weighted(0.15, engagement),
        output="scores",
    )
    graph = helper.make_graph(
        nodes,
        "heuristic",
        [helper.make_tensor_value_info(DENSE_INPUT, TensorProto.FLOAT, ["n", len(DENSE)])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n"])],
        constants,
    )
    model: Any = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    helper.set_model_props(model, Contract(VERSION, DENSE).metadata())
    onnx.checker.check_model(model)
    onnx.save_model(model, path)

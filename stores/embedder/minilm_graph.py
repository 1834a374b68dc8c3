"""all-MiniLM-L6-v2 as an ONNX graph, built from its weights without torch.

The model is a BERT of 6 layers; the sentence's vector is the mean of its tokens' last states,
normalised (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2). Everything from token
ids to unit vectors is in the graph.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

LAYERS = 6
HEADS = 12
HIDDEN = 384
HEAD_SIZE = HIDDEN // HEADS
LAYER_NORM_EPSILON = 1e-12
# What every padded position adds to an attention score before softmax.
MASKED = -1e9
OPSET = 20
IR_VERSION = 10

Weights = Mapping[str, NDArray[np.float32]]


def build(weights: Weights) -> ModelProto:
    """The model from `model.safetensors` of all-MiniLM-L6-v2.

    Inputs `input_ids` and `attention_mask`, int64 of (batch, tokens); output `embedding`, float32
    unit vectors of (batch, 384). A row must have at least one unmasked token.
    """
    return _Graph(weights).model()


class _Graph:
    """Collects nodes; each method adds some and returns the name of its output."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, TensorProto] = {}

    def model(self) -> ModelProto:
        states = self._embeddings()
        bias = self._attention_bias()
        for layer in range(LAYERS):
            states = self._layer(f"encoder.layer.{layer}", states, bias)
        self._pool(states)
        ids = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
            for name in ("input_ids", "attention_mask")
        ]
        out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", HIDDEN])
        graph = helper.make_graph(
            self._nodes, "all-MiniLM-L6-v2", ids, [out], list(self._constants.values())
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        checker.check_model(model)
        return model

    def _embeddings(self) -> str:
        words = self._op("Gather", self._weight("embeddings.word_embeddings.weight"), "input_ids")
        tokens = self._op(
            "Slice",
            self._op("Shape", "input_ids"),
            self._integers("one", [1]),
            self._integers("two", [2]),
        )
        positions = self._op(
            "Slice",
            self._weight("embeddings.position_embeddings.weight"),
            self._integers("zero", [0]),
            tokens,
        )
        # One sentence at a time: every token is of type 0.
        kind = self._constant(
            "token_type", self._weights["embeddings.token_type_embeddings.weight"][0]
        )
        total = self._op("Add", self._op("Add", words, positions), kind)
        return self._layer_norm("embeddings.LayerNorm", total)

    def _attention_bias(self) -> str:
        """(batch, 1, 1, tokens): 0 at tokens, MASKED at padding."""
        mask = self._op("Cast", "attention_mask", to=TensorProto.FLOAT)
        padding = self._op("Sub", self._number("one_f", 1.0), mask)
        bias = self._op("Mul", padding, self._number("masked", MASKED))
        return self._op("Unsqueeze", bias, self._integers("head_axes", [1, 2]))

    def _layer(self, name: str, states: str, bias: str) -> str:
        attended = self._attention(f"{name}.attention.self", states, bias)
        attended = self._dense(f"{name}.attention.output.dense", attended)
        states = self._layer_norm(
            f"{name}.attention.output.LayerNorm", self._op("Add", attended, states)
        )
        inner = self._op("Gelu", self._dense(f"{name}.intermediate.dense", states))
        outer = self._dense(f"{name}.output.dense", inner)
        return self._layer_norm(f"{name}.output.LayerNorm", self._op("Add", outer, states))

    def _attention(self, name: str, states: str, bias: str) -> str:
        query = self._heads(self._dense(f"{name}.query", states), [0, 2, 1, 3])
        key = self._heads(self._dense(f"{name}.key", states), [0, 2, 3, 1])
        value = self._heads(self._dense(f"{name}.value", states), [0, 2, 1, 3])
        scale = self._number("scale", HEAD_SIZE**-0.5)
        scores = self._op("Mul", self._op("MatMul", query, key), scale)
        shares = self._op("Softmax", self._op("Add", scores, bias), axis=-1)
        mixed = self._op("Transpose", self._op("MatMul", shares, value), perm=[0, 2, 1, 3])
        return self._op("Reshape", mixed, self._integers("joined", [0, 0, HIDDEN]))

    def _heads(self, states: str, order: list[int]) -> str:
        shape = self._integers("split", [0, 0, HEADS, HEAD_SIZE])
        return self._op("Transpose", self._op("Reshape", states, shape), perm=order)

    def _pool(self, states: str) -> None:
        """The mean over unmasked tokens, normalised, as `embedding`."""
        mask = self._op("Cast", "attention_mask", to=TensorProto.FLOAT)
        mask = self._op("Unsqueeze", mask, self._integers("last_axis", [-1]))
        tokens = self._integers("one", [1])
        total = self._op("ReduceSum", self._op("Mul", states, mask), tokens, keepdims=0)
        # The mean's divisor would be lost in the normalisation, so the sum will do.
        self._op("LpNormalization", total, axis=-1, p=2, output="embedding")

    def _dense(self, name: str, states: str) -> str:
        weight = self._constant(f"{name}.weight", self._weights[f"{name}.weight"].T)
        return self._op("Add", self._op("MatMul", states, weight), self._weight(f"{name}.bias"))

    def _layer_norm(self, name: str, states: str) -> str:
        weight, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self._op(
            "LayerNormalization", states, weight, bias, axis=-1, epsilon=LAYER_NORM_EPSILON
        )

    def _op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def _weight(self, name: str) -> str:
        return self._constant(name, self._weights[name])

    def _number(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, np.float32))

    def _integers(self, name: str, values: list[int]) -> str:
        return self._constant(name, np.array(values, np.int64))

    def _constant(self, name: str, value: NDArray[np.float32] | NDArray[np.int64]) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

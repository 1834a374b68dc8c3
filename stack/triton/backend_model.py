"""The model as Triton's Python backend runs it. Copied into the model repository, as model.py.

Tensors change hands by DLPack: the Python backend was built for numpy 1, and gives empty outputs
for numpy 2's arrays.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

# What Triton calls the first output of the model, whatever that calls it.
_SCORES = "scores"


class TritonPythonModel:
    """Runs the ONNX file that lies beside this one: its inputs, its first output, flat.

    The inputs of other versions are left alone.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Called once by Triton, which does not serve when this raises."""
        options = onnxruntime.SessionOptions()
        # A small model on a small batch: more threads would only get in each other's way.
        options.intra_op_num_threads = 1
        folder = Path(args["model_repository"]) / args["model_version"]
        self._session = onnxruntime.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self._inputs: list[str] = [each.name for each in self._session.get_inputs()]
        self._output: str = self._session.get_outputs()[0].name

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in their order."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        tensors = {name: triton.get_input_tensor_by_name(request, name) for name in self._inputs}
        missing = [name for name, tensor in tensors.items() if tensor is None]
        if missing:
            # Triton lets them be missing, as another version does without.
            error = triton.TritonError(f"the input {', '.join(missing)} is missing")
            return triton.InferenceResponse(error=error)
        inputs = {name: np.from_dlpack(tensor) for name, tensor in tensors.items()}
        try:
            (scores,) = self._session.run([self._output], inputs)
        except Exception as error:
            # onnxruntime's exceptions have no other base.
            return triton.InferenceResponse(error=triton.TritonError(str(error)))
        output = triton.Tensor.from_dlpack(_SCORES, scores.reshape(-1))
        return triton.InferenceResponse([output])

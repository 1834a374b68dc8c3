"""onnx://FILE: a model in ONNX, run in this process by onnxruntime."""

import asyncio
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ranker_svc.features import Features
from ranker_svc.scorers.contract import Contract


class OnnxScorer:
    """A model whose inputs are as `ranker_svc.scorers.contract` has them, from its metadata.

    Its first output is the scores, of shape (n,) or (n, 1), in 0..1. The metadata entry `version`
    names the model, otherwise the file does.

    Args:
        path: The .onnx file.

    Raises:
        ValueError: There is no such file, it is no model, or it takes other features.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path} is to rank, and is not there")
        options = onnxruntime.SessionOptions()
        # A small model on a small batch: more threads would only take turns with the event loop.
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # onnxruntime raises classes of its own, with no common base but this one.
            raise ValueError(f"{path} is to rank, and does not load: {error}") from None
        metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        try:
            self._contract = Contract.read(metadata)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None
        self._output: str = self._session.get_outputs()[0].name
        self.version = f"onnx/{self._contract.version or path.stem}"

    async def score(self, features: Features) -> NDArray[np.float32]:
        """One run for all rows, in a thread."""
        return await asyncio.to_thread(self._run, features)

    def _run(self, features: Features) -> NDArray[np.float32]:
        (scores,) = self._session.run([self._output], self._contract.inputs(features))
        flat: NDArray[np.float32] = scores.reshape(-1)
        return flat

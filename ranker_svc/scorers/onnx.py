"""onnx://FILE: a model in ONNX, run in this process by onnxruntime."""

import asyncio
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ranker_svc.features import Matrix
from ranker_svc.scorers.contract import FEATURES_KEY, VERSION_KEY, mismatch


class OnnxScorer:
    """A model with one float32 input (n, len(FEATURES)), whose first output is the scores.

    The output has shape (n,) or (n, 1) and lies in 0..1. The metadata entry `features` lists the
    input's columns, so that a model never reads one feature as another; `version` names the model,
    otherwise the file does.

    Args:
        path: The .onnx file.

    Raises:
        ValueError: There is no such file, it is no model, or it was trained on other features.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"FEED_MODEL_URL names {path}, where there is no file")
        options = onnxruntime.SessionOptions()
        # A small model on a small batch: more threads would only take turns with the event loop.
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # onnxruntime raises classes of its own, with no common base but this one.
            raise ValueError(f"FEED_MODEL_URL names {path}, which does not load: {error}") from None
        metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        wrong = mismatch(metadata.get(FEATURES_KEY, ""))
        if wrong:
            raise ValueError(f"{path} {wrong}")
        self._input: str = self._session.get_inputs()[0].name
        self._output: str = self._session.get_outputs()[0].name
        self.version = f"onnx/{metadata.get(VERSION_KEY) or path.stem}"

    async def score(self, features: Matrix) -> NDArray[np.float32]:
        """One run for all rows, in a thread."""
        return await asyncio.to_thread(self._run, features)

    def _run(self, features: Matrix) -> NDArray[np.float32]:
        (scores,) = self._session.run([self._output], {self._input: features})
        flat: NDArray[np.float32] = scores.reshape(-1)
        return flat

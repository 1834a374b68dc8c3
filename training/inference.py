"""Exported models on many rows, without PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ranker_svc.features import Features
from ranker_svc.scorers.contract import Contract

# What an exported model gives; the ranker takes the first.
OUTPUTS = ("score", "like", "long_dwell")
_ROWS = 65_536


def run(file: Path, features: Features) -> NDArray[np.float32]:
    """Final score, like and long dwell of each row: (n, 3).

    Raises:
        ValueError: The model takes features that this ranker does not have.
    """
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    contract = Contract.read(session.get_modelmeta().custom_metadata_map)
    parts = []
    for start in range(0, len(features), _ROWS):
        rows = slice(start, start + _ROWS)
        part = Features(features.dense[rows], features.ids[rows])
        outputs: list[NDArray[Any]] = session.run(list(OUTPUTS), contract.inputs(part))
        parts.append(np.stack(outputs, 1))
    return np.concatenate(parts)

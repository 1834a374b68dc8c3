"""A model as an ONNX file that says what it is, held against the model itself."""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch

from ranker_svc.features import Features
from ranker_svc.scorers.contract import CATEGORICAL_INPUT, DENSE_INPUT
from training.inference import OUTPUTS, run
from training.model import Model, Scored

TOLERANCE = 1e-5
PARITY_ROWS = 10_000


def export(model: Model, features: Features, file: Path) -> float:
    """Writes the file and returns how far its outputs are from the model's, at most.

    Args:
        model: On the CPU.
        features: On which both are compared: `PARITY_ROWS` of them, drawn with replacement where
            there are fewer.
        file: The .onnx file.

    Raises:
        ValueError: They differ by more than `TOLERANCE`; the file is not left.
    """
    scored = Scored(model.net.cpu(), model.weights).eval()
    rows = torch.export.Dim("rows", min=1)
    inputs = model.contract.inputs(_rows(features, 2))
    # It tells of operators of torchvision, which is not there, and of names of axes.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "# The axis name", UserWarning)
    program = torch.onnx.export(
        scored,
        (torch.from_numpy(inputs[DENSE_INPUT]), torch.from_numpy(inputs[CATEGORICAL_INPUT])),
        dynamo=True,
        input_names=[DENSE_INPUT, CATEGORICAL_INPUT],
        output_names=list(OUTPUTS),
        dynamic_shapes=({0: rows}, {0: rows}),
        verbose=False,
    )
    proto = program.model_proto
    onnx.helper.set_model_props(proto, model.contract.metadata())
    onnx.save(proto, file)
    compared = _rows(features, PARITY_ROWS)
    difference = float(np.abs(run(file, compared) - model.predict(compared)).max())
    if not difference <= TOLERANCE:
        file.unlink()
        raise ValueError(f"the ONNX file's scores differ from the model's by {difference:.1e}")
    return difference


def _rows(features: Features, count: int) -> Features:
    chosen = np.random.default_rng(0).choice(len(features), count, replace=len(features) < count)
    return Features(features.dense[chosen], features.ids[chosen])

"""triton://HOST:PORT/MODEL: a model served by NVIDIA Triton, over gRPC."""

from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.service_pb2 import (
    ModelConfigRequest,
    ModelInferRequest,
    ModelInferResponse,
)
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from mesh.breaker import Breaker
from mesh.channels import call
from mesh.errors import FailedPrecondition, FeedError, Internal, Unavailable
from ranker_svc.features import Matrix
from ranker_svc.scorers.contract import FEATURES_KEY, VERSION_KEY, mismatch

_TIMEOUT_S = 1.0
_DATATYPE = "FP32"
_WIRE_DTYPE = "<f4"


@dataclass(slots=True)
class _Contract:
    """What the model's configuration says, and Triton's number of the model that answers."""

    input: str
    output: str
    number: str = ""


class TritonScorer:
    """A model with one FP32 input (n, len(FEATURES)), whose first output is the scores.

    The output is FP32, has n elements, and lies in 0..1. The parameter `features` of the model's
    configuration lists the input's columns and is read before the first scores are asked for, and
    anew after any failure and when Triton's version number of the model has changed; `version`
    names the model. So a new model needs a new version number, as is usual in Triton.

    Args:
        channel: To Triton.
        model: The model's name in Triton.
        number: Triton's version number of the model; empty for whichever Triton prefers.
    """

    def __init__(self, channel: grpc.aio.Channel, model: str, number: str = "") -> None:
        self._stub = GRPCInferenceServiceStub(channel)
        self._model = model
        self._number = number
        self._breaker = Breaker("model")
        self._contract: _Contract | None = None
        self.version = f"triton/{model}"

    async def score(self, features: Matrix) -> NDArray[np.float32]:
        """One request for all rows.

        Raises:
            FailedPrecondition: The model was trained on other features.
            Unavailable: Triton is away, or has been and is left alone for a while.
            FeedError: Anything else that Triton, or the model, did wrong.
        """
        with self._breaker.guard():
            try:
                contract = self._contract or await self._agree()
                answer = await call(
                    self._stub.ModelInfer, self._request(contract, features), timeout=_TIMEOUT_S
                )
                self._require_same_model(contract, answer.model_version)
                return _scores(answer, len(features))
            except FeedError:
                # Whatever answers next may be another model.
                self._contract = None
                raise

    async def _agree(self) -> _Contract:
        """Reads what the model takes and gives."""
        request = ModelConfigRequest(name=self._model, version=self._number)
        config = (await call(self._stub.ModelConfig, request, timeout=_TIMEOUT_S)).config
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        wrong = mismatch(parameters.get(FEATURES_KEY, ""))
        if wrong:
            raise FailedPrecondition(f"Triton's model {self._model} {wrong}")
        if len(config.input) != 1 or not config.output:
            raise FailedPrecondition(
                f"Triton's model {self._model} has {len(config.input)} inputs and "
                f"{len(config.output)} outputs, and must have one input and an output"
            )
        self.version = f"triton/{self._model}/{parameters.get(VERSION_KEY) or 'unnamed'}"
        self._contract = _Contract(config.input[0].name, config.output[0].name)
        return self._contract

    def _request(self, contract: _Contract, features: Matrix) -> ModelInferRequest:
        return ModelInferRequest(
            model_name=self._model,
            model_version=self._number,
            inputs=[
                ModelInferRequest.InferInputTensor(
                    name=contract.input, datatype=_DATATYPE, shape=features.shape
                )
            ],
            outputs=[ModelInferRequest.InferRequestedOutputTensor(name=contract.output)],
            raw_input_contents=[np.ascontiguousarray(features, _WIRE_DTYPE).tobytes()],
        )

    def _require_same_model(self, contract: _Contract, number: str) -> None:
        if number != (contract.number or number):
            raise Unavailable(
                f"Triton's model {self._model} changed from {contract.number} to {number}"
            )
        contract.number = number


def _scores(answer: ModelInferResponse, count: int) -> NDArray[np.float32]:
    """The first output, flat."""
    if not answer.outputs or not answer.raw_output_contents:
        raise Internal(f"Triton's model {answer.model_name} gave no raw output")
    output, raw = answer.outputs[0], answer.raw_output_contents[0]
    if output.datatype != _DATATYPE or len(raw) != count * np.dtype(_WIRE_DTYPE).itemsize:
        raise Internal(
            f"Triton's model {answer.model_name} gave {output.datatype} of shape "
            f"{list(output.shape)} for {count} rows"
        )
    return np.frombuffer(raw, _WIRE_DTYPE)

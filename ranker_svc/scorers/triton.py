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
from ranker_svc.features import Features
from ranker_svc.scorers.contract import CATEGORICAL_INPUT, DENSE_INPUT, Contract

_TIMEOUT_S = 1.0
_DATATYPE = "FP32"
_WIRE_DTYPE = "<f4"


# Of the model's inputs.
_DATATYPES = {DENSE_INPUT: "FP32", CATEGORICAL_INPUT: "INT64"}


@dataclass(slots=True)
class _Agreed:
    """What the model's configuration says, and Triton's number of the model that answers."""

    contract: Contract
    output: str
    number: str = ""


class TritonScorer:
    """A model whose inputs are as `ranker_svc.scorers.contract` has them, FP32 and INT64.

    Its first output is the scores: FP32, n elements, in 0..1. The parameter `features` of the
    model's configuration is its contract and is read before the first scores are asked for, and
    anew after any failure and when Triton's version number of the model has changed; `version`
    names the model. So a new model needs a new version number, as is usual in Triton. Versions with
    contracts of their own have them under their numbers, `features.3` and `version.3`, and what one
    of them does without is an optional input.

    Args:
        channel: To Triton.
        model: The model's name in Triton.
        number: Triton's version number of the model; empty for whichever Triton prefers.
        breaker: Shared by all that ask the same Triton.
    """

    def __init__(
        self, channel: grpc.aio.Channel, model: str, number: str, breaker: Breaker
    ) -> None:
        self._stub = GRPCInferenceServiceStub(channel)
        self._model = model
        self._number = number
        self._breaker = breaker
        self._agreed: _Agreed | None = None
        self.version = f"triton/{model}"

    async def score(self, features: Features) -> NDArray[np.float32]:
        """One request for all rows.

        Raises:
            FailedPrecondition: The model was trained on other features.
            Unavailable: Triton is away, or has been and is left alone for a while.
            FeedError: Anything else that Triton, or the model, did wrong.
        """
        with self._breaker.guard():
            try:
                agreed = self._agreed or await self._agree()
                answer = await call(
                    self._stub.ModelInfer, self._request(agreed, features), timeout=_TIMEOUT_S
                )
                self._require_same_model(agreed, answer.model_version)
                return _scores(answer, len(features))
            except FeedError:
                # Whatever answers next may be another model.
                self._agreed = None
                raise

    async def _agree(self) -> _Agreed:
        """Reads what the model takes and gives."""
        request = ModelConfigRequest(name=self._model, version=self._number)
        config = (await call(self._stub.ModelConfig, request, timeout=_TIMEOUT_S)).config
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        try:
            contract = Contract.read(self._of_this_number(parameters))
        except ValueError as error:
            raise FailedPrecondition(f"Triton's model {self._model} {error}") from None
        inputs = {each.name for each in config.input}
        required = {each.name for each in config.input if not each.optional}
        if not required <= contract.input_names <= inputs or not config.output:
            raise FailedPrecondition(
                f"Triton's model {self._model} has the inputs {sorted(inputs)} and "
                f"{len(config.output)} outputs, and must have {sorted(contract.input_names)} and "
                "an output"
            )
        self.version = f"triton/{self._model}/{contract.version or 'unnamed'}"
        self._agreed = _Agreed(contract, config.output[0].name)
        return self._agreed

    def _of_this_number(self, parameters: dict[str, str]) -> dict[str, str]:
        """The parameters, with those of this number in the place of the general ones."""
        suffix = f".{self._number}"
        own = {
            key.removesuffix(suffix): value
            for key, value in parameters.items()
            if self._number and key.endswith(suffix)
        }
        return parameters | own

    def _request(self, agreed: _Agreed, features: Features) -> ModelInferRequest:
        inputs = agreed.contract.inputs(features)
        return ModelInferRequest(
            model_name=self._model,
            model_version=self._number,
            inputs=[
                ModelInferRequest.InferInputTensor(
                    name=name, datatype=_DATATYPES[name], shape=column.shape
                )
                for name, column in inputs.items()
            ],
            outputs=[ModelInferRequest.InferRequestedOutputTensor(name=agreed.output)],
            raw_input_contents=[column.tobytes() for column in inputs.values()],
        )

    def _require_same_model(self, agreed: _Agreed, number: str) -> None:
        if number != (agreed.number or number):
            raise Unavailable(
                f"Triton's model {self._model} changed from {agreed.number} to {number}"
            )
        agreed.number = number


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

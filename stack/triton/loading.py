"""Gives a running Triton a version of a model, without a gap in the versions that it serves."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tritonclient.grpc.service_pb2 import ModelReadyRequest, RepositoryModelLoadRequest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from mesh.channels import call, open_channel
from mesh.errors import FailedPrecondition, Unavailable
from stack.triton import repository

# A model starts in seconds; on a busy machine in many.
_LOADED_WITHIN_S = 60.0
_ANSWERED_WITHIN_S = 5.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Served:
    """A model in a Triton that runs with --model-control-mode=explicit.

    Args:
        target: Triton's host:port for gRPC.
        name: The model's name there.
        folder: Triton's model repository.
    """

    target: str
    name: str
    folder: Path

    @classmethod
    def at(cls, url: str, folder: Path) -> Self:
        """Of triton://HOST:PORT/MODEL; raises FailedPrecondition if it is no such URL."""
        parts = urlsplit(url)
        name = parts.path.strip("/")
        if parts.scheme != "triton" or not parts.netloc or not name:
            raise FailedPrecondition(
                f"FEED_TRITON_REPOSITORY is set, so FEED_MODEL_URL must be "
                f"triton://HOST:PORT/MODEL, and is {url}"
            )
        return cls(parts.netloc, name, folder)

    async def serve(self, number: int, model: Path, kept: list[int]) -> None:
        """Returns when Triton serves the version. Those that it served are served all the while.

        Args:
            number: The version.
            model: Its ONNX file.
            kept: What the repository keeps then; the version is one of them.

        Raises:
            FeedError: Triton is away, or does not take the version; the repository is as it was.
        """
        before = await asyncio.to_thread(repository.numbers, self.folder, self.name)
        await asyncio.to_thread(repository.add_version, self.folder, self.name, number, model)
        try:
            await load(self.target, self.name, number)
        except BaseException:
            await asyncio.to_thread(repository.keep, self.folder, self.name, before)
            raise
        await asyncio.to_thread(repository.keep, self.folder, self.name, kept)


async def load(target: str, name: str, number: int) -> None:
    """Has Triton load what its repository has of the model; returns when the version is ready.

    Raises:
        FailedPrecondition: Triton does not take it; the detail is Triton's.
        Unavailable: Triton is away, or the version does not get ready in time.
    """
    async with open_channel(target, is_ours=False) as channel:
        triton = GRPCInferenceServiceStub(channel)
        request = RepositoryModelLoadRequest(model_name=name)
        await call(triton.RepositoryModelLoad, request, timeout=_LOADED_WITHIN_S)
        ready = ModelReadyRequest(name=name, version=str(number))
        try:
            async with asyncio.timeout(_LOADED_WITHIN_S):
                while True:
                    answer = await call(triton.ModelReady, ready, timeout=_ANSWERED_WITHIN_S)
                    if answer.ready:
                        return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise Unavailable(f"Triton does not get {name}/{number} ready") from None

"""A running Triton, as a child process that does not outlive its parent."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local.children import end
from local.embedded import port_is_taken
from mesh.errors import FailedPrecondition, Unavailable
from stack.triton import repository
from stack.triton.install import Installation, python_library

_log = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
MODEL = "ranker"
_READY_WITHIN_S = 60.0
_STOP_WITHIN_S = 10.0
_POLL_S = 0.05
_COMPLAINTS = 2
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where the Python backend keeps tensors


class Triton:
    """tritonserver with one model, called `MODEL`.

    Args:
        installation: What `stack.triton.install` installed.
        model: The model as an ONNX file, or as one for each version; see
            `stack.triton.repository`.
        folder: Its log, triton.log, and its model repository, models.
        port: Where it speaks gRPC.
        traces_url: Where its spans go: OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces.
            It gets the spans of all requests whose caller samples them. None for nowhere.
        models: Its model repository, if it is to be elsewhere.
        host: What it listens on.
    """

    def __init__(
        self,
        installation: Installation,
        model: Path | Mapping[int, Path],
        folder: Path,
        port: int,
        traces_url: str | None = None,
        models: Path | None = None,
        host: str = LOOPBACK,
    ) -> None:
        self._installation = installation
        self._model = model
        self._folder = folder
        self._models = models or folder / "models"
        self._port = port
        self._host = host
        self._traces_url = traces_url
        self._process: asyncio.subprocess.Process | None = None
        # The model's version as it names itself, or the numbers of its versions.
        self.version = ""

    @property
    def url(self) -> str:
        """For FEED_MODEL_URL."""
        return f"triton://{self._host}:{self._port}/{MODEL}"

    @property
    def log_file(self) -> Path:
        """What it prints."""
        return self._folder / "triton.log"

    @property
    def pid(self) -> int:
        """The server's process, which must have been started."""
        assert self._process is not None  # noqa: S101
        return self._process.pid

    async def start(self) -> None:
        """Returns when the model is served.

        Raises:
            FailedPrecondition: The port is taken, or the model is no ONNX file.
            Unavailable: It does not start, or not in time; the detail has what it complained of.
        """
        if port_is_taken(self._host, self._port):
            raise FailedPrecondition(f"port {self._port} of {self._host} is taken")
        self._folder.mkdir(parents=True, exist_ok=True)
        self.version = await asyncio.to_thread(self._write)
        self._remove_left_overs()
        with self.log_file.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                # Also when we are killed, which leaves us no time to stop it.
                *("setpriv", "--pdeathsig", "TERM", str(self._installation.server)),
                *self._options(),
                env=self._environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is ours to handle.
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                while not await serves(self._port, self._host):
                    if self._process.returncode is not None:
                        raise Unavailable(f"Triton did not start: {self._complaints()}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            await self.stop()
            raise Unavailable(f"Triton was not ready in time: {self._complaints()}") from None
        except BaseException:
            await self.stop()
            raise

    async def ended(self) -> int:
        """Waits for the server to end by itself; its exit code."""
        assert self._process is not None  # noqa: S101
        return await self._process.wait()

    async def stop(self) -> None:
        """Stops the server, and kills it when that takes too long."""
        await end(self._process, "Triton", _STOP_WITHIN_S)
        self._remove_left_overs()

    def _write(self) -> str:
        """Its model repository, anew."""
        if isinstance(self._model, Path):
            return repository.write(self._models, MODEL, self._model)
        repository.write_all(self._models, MODEL, self._model)
        return ", ".join(map(str, sorted(self._model)))

    def _options(self) -> list[str]:
        options = [
            f"--model-repository={self._models}",
            # A version that is added is loaded when Triton is told to: `stack.triton.loading`.
            *("--model-control-mode=explicit", f"--load-model={MODEL}"),
            f"--backend-directory={self._installation.backends}",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory_prefix}",
            # It would start every model once more, only to ask it for its inputs and outputs.
            "--disable-auto-complete-config",
            *(f"--grpc-address={self._host}", f"--grpc-port={self._port}"),
            *("--allow-http=false", "--allow-metrics=false"),
            "--exit-timeout-secs=5",
        ]
        if self._traces_url:
            settings = (
                *("mode=opentelemetry", "level=TIMESTAMPS"),
                # By itself it begins no trace: it takes part in those that it is told of.
                f"rate={2**31 - 1}",
                *(f"opentelemetry,url={self._traces_url}", "opentelemetry,bsp_schedule_delay=1000"),
                "opentelemetry,resource=service.name=triton",
                "opentelemetry,resource=service.namespace=feedmesh",
            )
            options += [f"--trace-config={setting}" for setting in settings]
        return options

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            # The Python backend takes its packages from the python3 that it finds first.
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": str(python_library().parent),
            # Triton reads a traceparent to the next zero byte, which need not be at its end
            # (docs/decisions/0010).
            "LD_PRELOAD": str(self._installation.allocator),
            "MALLOC_CONF": "zero:true",
        }

    @property
    def _shared_memory_prefix(self) -> str:
        return f"feedmesh_triton_{self._port}_"

    def _remove_left_overs(self) -> None:
        """What a server that was killed left behind: the Python backend, and its shared memory."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        for left in _SHARED_MEMORY.glob(f"{self._shared_memory_prefix}*"):
            left.unlink(missing_ok=True)

    def _complaints(self) -> str:
        """The last errors in its log."""
        lines = self.log_file.read_text(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith(("E", "error"))]
        return " / ".join([*errors[-_COMPLAINTS:], f"see {self.log_file}"])


async def serves(port: int, host: str = LOOPBACK) -> bool:
    """Whether a Triton listens there, with its model loaded."""
    async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

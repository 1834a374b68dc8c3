"""`make triton`: a Triton with the ranking model, in the foreground."""

import argparse
import asyncio
import sys
from pathlib import Path

from mesh import logs
from mesh.errors import FeedError
from mesh.lifecycle import until_stopped
from mesh.settings import Settings
from stack.place import Place
from stack.triton import repository
from stack.triton.install import install
from stack.triton.server import LOOPBACK, Triton
from stores.connect import Connections


async def serve(settings: Settings, options: argparse.Namespace) -> None:
    """Serves until it is told to stop, or Triton ends."""
    print("installing Triton, unless it is there ...", flush=True)
    installation = await install(Place.of(settings).cache)
    if options.install:
        return
    folder = settings.data_dir.resolve() / "triton"
    model = options.model or await asyncio.to_thread(
        repository.served, Connections(settings).registry(), folder
    )
    triton = Triton(
        *(installation, model, folder, options.port, options.traces, settings.triton_repository),
        options.host,
    )
    await triton.start()
    try:
        print(f"Triton serves {triton.version} at {triton.url}; its log is {triton.log_file}")
        print(f"To use it: FEED_MODEL_URL={triton.url} make run", flush=True)
        ended = asyncio.create_task(triton.ended())
        stopped = asyncio.create_task(until_stopped())
        await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            sys.exit(f"Triton ended with {ended.result()}; see {triton.log_file}")
        ended.cancel()
    finally:
        await triton.stop()


def main() -> None:
    """Runs it; a start that cannot be says why on one line and exits with 1."""
    parser = argparse.ArgumentParser(
        prog="make triton", description="Needs Linux on x86-64 with glibc 2.35 or newer, no GPU."
    )
    parser.add_argument(
        "--model", type=Path, help="an ONNX file; without one, what is promoted, or the heuristic"
    )
    parser.add_argument("--install", action="store_true", help="only installs it, and ends")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on (loopback)")
    parser.add_argument("--port", type=int, default=8001, help="gRPC port (8001)")
    parser.add_argument(
        "--traces", metavar="URL", help="OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces"
    )
    options = parser.parse_args()
    settings = Settings()
    logs.setup(settings)
    try:
        asyncio.run(serve(settings, options))
    except (OSError, FeedError) as error:
        sys.exit(f"Triton cannot start: {error}")


if __name__ == "__main__":
    main()

"""MinIO, an S3 server, from the Go module proxy."""

import asyncio

import httpx

from stack import golang
from stack.daemon import Server
from stack.place import Place, Port
from stores.media.bucket import make_bucket
from stores.media.s3 import Location

_PACKAGE = "github.com/minio/minio"
_VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
# A stack is on loopback, for development and tests.
_USER, _PASSWORD = "feedmesh", "feedmesh-stack"
BUCKET = "feed-media"


async def server(place: Place) -> Server:
    """One server over one folder."""
    program = await golang.installed(place, _PACKAGE, _VERSION)
    port = place.port(Port.MINIO)

    async def is_healthy() -> bool:
        async with httpx.AsyncClient(timeout=1) as client:
            answer = await client.get(f"http://{place.host}:{port}/minio/health/ready")
            return answer.status_code == 200

    url = f"s3+http://{_USER}:{_PASSWORD}@{place.host}:{port}/{BUCKET}"
    return Server(
        name="minio",
        version="2026-02-12",
        command=[
            *(str(program), "server", "--quiet", "--address", f"{place.host}:{port}"),
            str(place.data("minio") / "data"),
        ],
        url=url,
        ports=[port],
        is_healthy=is_healthy,
        prepare=lambda: asyncio.to_thread(make_bucket, Location.parse(url, {})),
        env={
            "MINIO_ROOT_USER": _USER,
            "MINIO_ROOT_PASSWORD": _PASSWORD,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
        },
    )

"""MinIO, an S3 server, from the Go module proxy."""

import asyncio
import json
from typing import Any

import httpx
from minio import Minio
from minio.error import S3Error

from stack import golang
from stack.daemon import Server
from stack.place import HOST, Place, Port

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
            answer = await client.get(f"http://{HOST}:{port}/minio/health/ready")
            return answer.status_code == 200

    def make_bucket() -> None:
        client = Minio(f"{HOST}:{port}", _USER, _PASSWORD, secure=False)
        try:
            client.make_bucket(BUCKET)
        except S3Error as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise
        client.set_bucket_policy(BUCKET, json.dumps(public_policy(BUCKET)))

    return Server(
        name="minio",
        version="2026-02-12",
        command=[
            *(str(program), "server", "--quiet", "--address", f"{HOST}:{port}"),
            str(place.data("minio") / "data"),
        ],
        url=f"s3+http://{_USER}:{_PASSWORD}@{HOST}:{port}/{BUCKET}",
        ports=[port],
        is_healthy=is_healthy,
        prepare=lambda: asyncio.to_thread(make_bucket),
        env={
            "MINIO_ROOT_USER": _USER,
            "MINIO_ROOT_PASSWORD": _PASSWORD,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
        },
    )


def public_policy(bucket: str) -> dict[str, Any]:
    """Everybody may read media, whose keys nobody can guess.

    Not uploads, which nobody has checked yet.
    """
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"AWS": ["*"]},
                "Action": ["s3:GetObject"],
                "Resource": [f"arn:aws:s3:::{bucket}/??/*"],
            }
        ],
    }

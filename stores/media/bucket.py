"""Makes the bucket of media."""

import json
from typing import Any

from minio import Minio
from minio.error import S3Error

from stores.media.s3 import Location


def make_bucket(at: Location) -> None:
    """Makes the bucket, unless it is there, and lets everybody read media. Blocks.

    With `presigned_s` nobody may read them but by a signed URL, so the policy is left alone.

    Raises:
        minio.error.MinioException: The server refuses it.
    """
    client = Minio(
        at.host,
        access_key=at.access_key,
        secret_key=at.secret_key,
        session_token=at.session_token,
        secure=at.is_secure,
        region=at.region,
    )
    try:
        client.make_bucket(at.bucket)
    except S3Error as error:
        if error.code != "BucketAlreadyOwnedByYou":
            raise
    if not at.presigned_s:
        client.set_bucket_policy(at.bucket, json.dumps(public_policy(at.bucket)))


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

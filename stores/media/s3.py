"""Media objects in a bucket of any S3 server, reached by the `minio` client."""

import asyncio
import io
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import urllib3
from minio import Minio
from minio.commonconfig import REPLACE, CopySource
from minio.datatypes import PostPolicy
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error
from opentelemetry.trace import SpanKind

from mesh import deadlines, telemetry
from mesh.errors import FailedPrecondition, FeedError, Internal, NotFound, Unavailable
from stores.media.images import check_key, content_type_of
from stores.media.port import Uploaded, UploadForm

T = TypeVar("T")
_log = logging.getLogger(__name__)

UPLOADS = "uploads/"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# S3 signs for a week at most.
_LONGEST_S = 7 * 86_400
# Seconds for what is small, and for what carries an object or makes the server copy one.
_ASK_S, _CARRY_S = 5.0, 20.0
# Calls at once; further ones wait for their turn, within their deadline.
_THREADS = 16
# The most that one answer lists, and one request deletes.
_PAGE = 1000
# A part of an upload in parts is at least so large.
_PART = 5 * 2**20
_FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Location:
    """What FEED_MEDIA_URL says: `s3://[KEY:SECRET@]HOST[:PORT]/BUCKET`, `s3+http://` without TLS.

    Attributes:
        host: With its port, if any.
        is_secure: Whether by TLS.
        bucket: Its name.
        access_key, secret_key, session_token: From the URL, else from AWS_ACCESS_KEY_ID,
            AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN.
        region: `?region=`, else AWS_REGION or AWS_DEFAULT_REGION, else us-east-1.
        public_url: `?public_url=`: what a key is appended to for a download, as of a CDN; unless
            set, the bucket's own address, which then lets everybody read.
        presigned_s: `?presigned_s=`: seconds for which a signed download URL is good; 0 for URLs
            without a signature.
        upload_url: `?upload_url=`: where clients upload, if the bucket has another address for
            them.
    """

    host: str
    is_secure: bool
    bucket: str
    access_key: str
    secret_key: str
    session_token: str | None
    region: str
    public_url: str
    presigned_s: int
    upload_url: str

    @classmethod
    def parse(cls, url: str, environ: Mapping[str, str]) -> Self:
        """Raises ValueError, which says what is wrong with FEED_MEDIA_URL, and no secret."""
        parts = urlsplit(url)
        host, bucket = parts.netloc.rpartition("@")[2], parts.path.strip("/")
        if not host or not _BUCKET.fullmatch(bucket):
            raise ValueError("FEED_MEDIA_URL is not of the form s3://HOST/BUCKET")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        known = {"region", "public_url", "presigned_s", "upload_url"}
        if unknown := options.keys() - known:
            raise ValueError(f"FEED_MEDIA_URL has no option {', '.join(sorted(unknown))}")
        access_key = unquote(parts.username or "") or environ.get("AWS_ACCESS_KEY_ID", "")
        secret_key = unquote(parts.password or "") or environ.get("AWS_SECRET_ACCESS_KEY", "")
        if not access_key or not secret_key:
            raise ValueError(
                "FEED_MEDIA_URL has no KEY:SECRET@, and AWS_ACCESS_KEY_ID or "
                "AWS_SECRET_ACCESS_KEY is unset"
            )
        presigned = options.get("presigned_s", "0")
        if not presigned.isdecimal() or int(presigned) > _LONGEST_S:
            raise ValueError(f"FEED_MEDIA_URL: presigned_s is not from 0 to {_LONGEST_S}")
        if int(presigned) and "public_url" in options:
            raise ValueError("FEED_MEDIA_URL: presigned_s and public_url exclude each other")
        is_secure = parts.scheme == "s3"
        own = f"{'https' if is_secure else 'http'}://{host}/{bucket}"
        return cls(
            host=host,
            is_secure=is_secure,
            bucket=bucket,
            access_key=access_key,
            secret_key=secret_key,
            session_token=None if parts.username else environ.get("AWS_SESSION_TOKEN"),
            region=options.get("region")
            or environ.get("AWS_REGION")
            or environ.get("AWS_DEFAULT_REGION")
            or "us-east-1",
            public_url=options.get("public_url", own).rstrip("/"),
            presigned_s=int(presigned),
            upload_url=options.get("upload_url", own),
        )


class S3MediaStore:
    """`stores.media.port.MediaStore` and `UploadStore` in one bucket, which has to exist.

    The client blocks, so each call runs in a thread of a small pool. A call that is given up goes
    on in its thread until its own timeout, which is the same deadline.

    Args:
        location: Where the bucket is.
    """

    def __init__(self, location: Location) -> None:
        self._at = location
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="s3")
        self._http = _Pool(
            num_pools=4,
            maxsize=_THREADS,
            # A connection that the server closed meanwhile is no failure.
            retries=urllib3.Retry(total=1, redirect=0, backoff_factor=0.05),
        )
        self._client = Minio(
            location.host,
            access_key=location.access_key,
            secret_key=location.secret_key,
            session_token=location.session_token,
            secure=location.is_secure,
            # Set, or the client would ask the server for it, also when it only signs.
            region=location.region,
            http_client=self._http,
        )
        address = urlsplit(f"//{location.host}")
        self._where: dict[str, str | int] = {
            "server.address": address.hostname or "",
            "server.port": address.port or (443 if location.is_secure else 80),
            "aws.s3.bucket": location.bucket,
        }

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        check_key(key, content_type)
        await self._call(
            "PutObject",
            "PUT",
            _CARRY_S,
            lambda: self._client.put_object(
                self._at.bucket,
                key,
                io.BytesIO(data),
                len(data),
                content_type,
                metadata={"Cache-Control": _FOREVER},
                # All in one request.
                part_size=max(len(data), _PART),
            ),
            key=key,
            more={"feed.media.bytes": len(data)},
        )

    async def get(self, key: str) -> tuple[bytes, str]:
        content_type = content_type_of(key)
        if content_type is None:
            raise NotFound("no such media object")
        work = self._reading(key)
        return await self._call("GetObject", "GET", _CARRY_S, work, key=key), content_type

    async def delete(self, keys: Sequence[str]) -> None:
        await self._delete([key for key in keys if content_type_of(key)])

    def url(self, key: str) -> str:
        if not self._at.presigned_s:
            return f"{self._at.public_url}/{key}"
        # Signed as of a full half of its time, so that the URL stays the same for a while and
        # what was downloaded need not be downloaded again.
        half = max(self._at.presigned_s // 2, 1)
        now = int(datetime.now(UTC).timestamp())
        return self._client.presigned_get_object(
            self._at.bucket,
            key,
            expires=timedelta(seconds=self._at.presigned_s),
            request_date=datetime.fromtimestamp(now // half * half, UTC),
        )

    async def keys(self, older_than_s: float = 0.0) -> AsyncIterator[str]:
        async for key in self._list("", older_than_s):
            if content_type_of(key):
                yield key

    # -- uploads ------------------------------------------------------------------------------

    def form(self, key: str, content_type: str, max_bytes: int, expires_at: datetime) -> UploadForm:
        conditions = {"key": key, "Content-Type": content_type}
        policy = PostPolicy(self._at.bucket, expires_at)
        for name, value in conditions.items():
            policy.add_equals_condition(name, value)
        policy.add_content_length_range_condition(1, max_bytes)
        signed = self._client.presigned_post_policy(policy)
        return UploadForm(self._at.upload_url, {**conditions, **signed})

    async def look(self, key: str) -> Uploaded:
        def work() -> Uploaded:
            found = self._client.stat_object(self._at.bucket, key)
            return Uploaded(found.size or 0, found.etag or "")

        return await self._call("HeadObject", "HEAD", _ASK_S, work, key=key)

    async def read(self, key: str, version: str, max_bytes: int) -> bytes:
        work = self._reading(key, length=max_bytes, request_headers={"If-Match": f'"{version}"'})
        return await self._call("GetObject", "GET", _CARRY_S, work, key=key)

    async def take(self, key: str, version: str, media_key: str, content_type: str) -> None:
        check_key(media_key, content_type)
        await self._call(
            "CopyObject",
            "PUT",
            _CARRY_S,
            lambda: self._client.copy_object(
                self._at.bucket,
                media_key,
                CopySource(self._at.bucket, key, match_etag=version),
                metadata={"Content-Type": content_type, "Cache-Control": _FOREVER},
                metadata_directive=REPLACE,
            ),
            key=media_key,
        )

    async def discard(self, keys: Sequence[str]) -> None:
        await self._delete([key for key in keys if key.startswith(UPLOADS)])

    async def stale(self, older_than_s: float) -> AsyncIterator[str]:
        async for key in self._list(UPLOADS, older_than_s):
            yield key

    async def close(self) -> None:
        """What still runs ends by its deadline."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._http.clear()

    # -- what all of them do ------------------------------------------------------------------

    def _reading(self, key: str, **what: Any) -> Callable[[], bytes]:
        def work() -> bytes:
            answer = self._client.get_object(self._at.bucket, key, **what)
            try:
                return answer.read()
            finally:
                answer.close()
                answer.release_conn()

        return work

    async def _delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _PAGE):
            page = [DeleteObject(key) for key in keys[start : start + _PAGE]]

            def work(page: list[DeleteObject] = page) -> None:
                # One request, whose answer has an error for each key that stays.
                for left in self._client.remove_objects(self._at.bucket, page):
                    raise Unavailable(f"the media store kept objects: {left.code}")

            await self._call("DeleteObjects", "POST", _CARRY_S, work)

    async def _list(self, prefix: str, older_than_s: float) -> AsyncIterator[str]:
        until = datetime.now(UTC) - timedelta(seconds=older_than_s)
        after: str | None = None
        while True:
            page = await self._call("ListObjectsV2", "GET", _CARRY_S, self._page(prefix, after))
            for key, written_at in page:
                # What a bucket holds beside ours has no business here; a listing tells times.
                if written_at is not None and written_at <= until:
                    yield key
            if len(page) < _PAGE:
                return
            after = page[-1][0]

    def _page(
        self, prefix: str, after: str | None
    ) -> Callable[[], list[tuple[str, datetime | None]]]:
        def work() -> list[tuple[str, datetime | None]]:
            listed: Iterator[Any] = self._client.list_objects(
                self._at.bucket, prefix=prefix, recursive=True, start_after=after
            )
            return [(each.object_name, each.last_modified) for each in islice(listed, _PAGE)]

        return work

    async def _call(
        self,
        operation: str,
        method: str,
        timeout_s: float,
        work: Callable[[], T],
        *,
        key: str | None = None,
        more: Mapping[str, int] | None = None,
    ) -> T:
        """What `work` returns, from a thread, within the deadline; with a span by the conventions
        for HTTP clients, named as S3 names the operation. Keys are random, not people's.
        """
        attributes = {"http.request.method": method, **self._where, **(more or {})}
        if key is not None:
            attributes["aws.s3.key"] = key
        with (
            telemetry.span(f"S3/{operation}", kind=SpanKind.CLIENT, attributes=attributes) as span,
            deadlines.within(timeout_s),
        ):
            try:
                async with asyncio.timeout(deadlines.with_grace(timeout_s)):
                    loop = asyncio.get_running_loop()
                    done = await loop.run_in_executor(self._threads, copy_context().run, work)
            except (TimeoutError, urllib3.exceptions.HTTPError, MinioException) as error:
                if isinstance(error, S3Error):
                    span.set_attribute("http.response.status_code", error.response.status)
                raise _feed_error(error) from error
            span.set_attribute("http.response.status_code", 200)
            return done


class _Pool(urllib3.PoolManager):
    """Requests end by the current deadline, which `copy_context` has taken into the thread."""

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, **options: Any
    ) -> urllib3.BaseHTTPResponse:
        timeout = urllib3.Timeout(total=deadlines.remaining(_CARRY_S))
        return super().urlopen(method, url, redirect, timeout=timeout, **options)


def _feed_error(error: Exception) -> FeedError:
    if not isinstance(error, S3Error):
        # Not there, not in time, or not speaking S3, as a proxy without a server behind it.
        return Unavailable("the media store does not answer")
    if error.code in ("NoSuchKey", "NotFound"):
        return NotFound("no such media object")
    if error.code == "PreconditionFailed":
        return FailedPrecondition("the media object has changed")
    if error.response.status >= 500 or error.code in ("SlowDown", "RequestTimeout"):
        return Unavailable(f"the media store failed: {error.code}")
    # A wrong bucket, key or secret: for whoever runs this, not for its users.
    _log.error("the media store refuses: %s: %s", error.code, error.message)
    return Internal("the media store refuses")

"""How large a body may be."""

from fastapi import Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import problems
from gateway.problems import TooLarge

MAX_BYTES = 1_000_000
MAX_FORM_BYTES = 12_000_000


class BodyLimit:
    """Middleware that refuses a larger body: before it is read, or while, if no length is told.

    The framework's own `max_body_size` answers in plain text, not with a problem document.

    Args:
        app: What reads the body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_form = headers.get("content-type", "").lower().startswith("multipart/")
        limit = MAX_FORM_BYTES if is_form else MAX_BYTES
        told = headers.get("content-length", "")
        if told.isdigit() and int(told) > limit:
            refusal = problems.of_error(TooLarge(_detail(limit)), Request(scope).url.path)
            await refusal(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                # The one error that every reader of a body hands on as it is.
                raise HTTPException(TooLarge.http_status, _detail(limit))
            return message

        await self._app(scope, counted, send)


def _detail(limit: int) -> str:
    return f"The body is larger than {limit:,} bytes."

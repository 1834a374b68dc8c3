"""Errors as clients see them: application/problem+json (RFC 9457), one table for all of them."""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import grpc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import iter_route_contexts
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.routing import Match

from mesh import telemetry
from mesh.errors import (
    DeadlineExceeded,
    FeedError,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger(__name__)


class BadRequest(FeedError):
    """The body cannot be read at all, as opposed to saying something wrong."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400
    title = "Bad request"


class Gone(FeedError):
    code = grpc.StatusCode.NOT_FOUND
    http_status = 410
    title = "Gone"


class TooLarge(FeedError):
    code = grpc.StatusCode.OUT_OF_RANGE
    http_status = 413
    title = "Too large"


class UnsupportedMediaType(FeedError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 415
    title = "Unsupported media type"


class ClientGone(FeedError):
    """Nobody waits for the answer any more. 499 is what nginx calls that; nobody reads it."""

    code = grpc.StatusCode.CANCELLED
    http_status = 499
    title = "Client closed the request"


def problem(
    path: str,
    status: int,
    name: str,
    title: str,
    detail: str,
    *,
    errors: Sequence[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document.

    Args:
        path: What was asked for.
        status: The HTTP status.
        name: What machines match on, e.g. not_found.
        title: The same for every problem of this name.
        detail: What happened this time.
        errors: Per bad field its name and what is wrong with it.
        headers: To be sent along.
    """
    body: dict[str, Any] = {
        "type": f"urn:feedmesh:problem:{name}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": path,
        "trace_id": telemetry.trace_id(),
    }
    if errors:
        body["errors"] = [{"field": field, "message": message} for field, message in errors]
    more = dict(headers or {})
    if status == HTTPStatus.UNAUTHORIZED:
        more["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(body), status, more, MEDIA_TYPE)


def of_error(error: FeedError, path: str) -> Response:
    """The problem document of an expected error."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(math.ceil(error.retry_after_s), 1))
    return problem(
        path,
        error.http_status,
        _name(type(error)),
        error.title,
        error.detail,
        errors=list(error.fields.items()),
        headers=headers,
    )


def invalid(error: ValidationError) -> FeedError:
    """What pydantic found wrong, for input that is read by hand."""
    return InvalidArgument(
        "The request has fields that are wrong.",
        fields=dict(_field(each, skip=0) for each in error.errors(include_url=False)),
    )


def install(app: FastAPI) -> None:
    """Answers every error of the app with a problem document."""
    app.add_exception_handler(FeedError, _on_feed_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_unexpected)


# Of the framework's own errors, those that have a name here.
_FRAMEWORKS = {kind.http_status: kind for kind in (BadRequest, NotFound, TooLarge)}
# What may happen to any request of a client that is known, and to any request at all.
_ANY = (InvalidArgument, ResourceExhausted, Internal, Unavailable, DeadlineExceeded)


def responses(*kinds: type[FeedError], public: bool = False) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the errors of an endpoint: `kinds`, and those of every endpoint."""
    always = _ANY if public else (*_ANY, Unauthenticated)
    titles: dict[int, list[str]] = {}
    for kind in (*always, *kinds):
        names = titles.setdefault(kind.http_status, [])
        if kind.title not in names:
            names.append(kind.title)
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": " / ".join(names), "content": content}
        for status, names in sorted(titles.items())
    }


async def _on_feed_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FeedError)  # noqa: S101  registered for it
    if error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.warning("%s %s: %s", request.method, request.url.path, error.detail)
    return of_error(error, request.url.path)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  registered for it
    found = error.errors()
    if any(each["type"] == "json_invalid" for each in found):
        what = found[0].get("ctx", {}).get("error", "")
        return of_error(BadRequest(f"The body is not JSON: {what}."), request.url.path)
    fields = dict(_field(each, skip=1) for each in found)
    wrong = InvalidArgument("The request has fields that are wrong.", fields=fields)
    return of_error(wrong, request.url.path)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: no such path, no such method, a form that is broken."""
    assert isinstance(error, HTTPException)  # noqa: S101  registered for it
    kind = _FRAMEWORKS.get(error.status_code)
    if kind is not None:
        return of_error(kind(error.detail), request.url.path)
    status = HTTPStatus(error.status_code)
    name = re.sub(r"\W+", "_", status.phrase.lower())
    title = status.phrase.capitalize()
    headers = dict(error.headers or {})
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return problem(request.url.path, status, name, title, error.detail, headers=headers)


def _methods(request: Request) -> set[str]:
    """What the path can be asked for; the framework knows its first route only."""
    methods: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            methods |= route.methods or set()
    return methods


async def _on_unexpected(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return of_error(
        Internal("Something unexpected happened; its trace_id leads to what."), request.url.path
    )


def _field(error: ErrorDetails, skip: int) -> tuple[str, str]:
    """The field's path as one string, without the `skip` names that say where it was looked for."""
    location = error["loc"]
    path = ".".join(str(part) for part in location[skip:]) or str(location[0] if location else "")
    return path or "body", error["msg"].removeprefix("Value error, ")


def _name(kind: type[FeedError]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()

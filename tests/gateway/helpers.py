"""What several test modules need."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
from PIL import Image

from tests.fixtures.world import World


def png(size: tuple[int, int] = (40, 30)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (10, 120, 200)).save(data, "PNG")
    return data.getvalue()


def problem(answer: httpx.Response, status: int, name: str) -> dict[str, Any]:
    """The problem document, which must be of this kind."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"urn:feedmesh:problem:{name}"
    assert len(body["trace_id"]) == 32
    assert answer.headers["traceresponse"].split("-")[1] == body["trace_id"]
    return body


@contextmanager
def changed(world: World, **backends: Any) -> Iterator[None]:
    """Within it, the gateway works with other backends."""
    before = world.app.state.backends
    world.app.state.backends = replace(before, **backends)
    try:
        yield
    finally:
        world.app.state.backends = before

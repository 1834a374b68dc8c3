"""The gateway behind its own HTTP server."""

import socket

import pytest
from pydantic import SecretStr

from gateway.server import serve_http
from mesh.settings import Settings
from stores.connect import Connections


async def test_a_taken_port_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings(gateway_port=port, jwt_secret=SecretStr("s" * 32))
        async with Connections(settings) as stores:
            with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port} \(FEED_GATEWAY_PORT\)"):
                await serve_http(settings, stores)

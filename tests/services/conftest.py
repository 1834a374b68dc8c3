"""The four services on real stores, each reached over a real channel."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest

from mesh.channels import open_channel
from mesh.server import GrpcServer
from mesh.settings import Settings
from stores.connect import Connections
from tests.fixtures.valkey import free_port

Server = Callable[[Settings, Connections], AbstractAsyncContextManager[GrpcServer]]
Serve = Callable[..., AbstractAsyncContextManager[grpc.aio.Channel]]
_PORTS = ("candidate_port", "filter_port", "ranker_port", "hydrator_port")


@pytest.fixture(scope="session")
def settings(
    tmp_path_factory: pytest.TempPathFactory, sql_url: str, valkey_url: str, vectors_target: str
) -> Settings:
    """Settings over the session's backends, with a Redis database of these tests' own."""
    redis_url = urlsplit(valkey_url)._replace(path="/9").geturl()
    return Settings(
        data_dir=tmp_path_factory.mktemp("services"),
        sql_url=sql_url,
        redis_url=redis_url,
        vectors_url=f"edge://{vectors_target.removeprefix('unix:')}",
        public_url="http://feed.test",
        random_seed=7,
        epsilon=0,
        recall_sample=0,
        shutdown_grace_s=0.1,
    )


@pytest.fixture(scope="session")
async def stores(settings: Settings) -> AsyncIterator[Connections]:
    async with Connections(settings) as connections:
        yield connections


@pytest.fixture
def away(tmp_path: Path) -> dict[str, str]:
    """For each backend, a URL where there is none."""
    return {
        "redis_url": f"redis://127.0.0.1:{free_port()}/0",
        "vectors_url": f"edge://{tmp_path}/nobody.sock",
        "sql_url": f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/feed.db",
    }


@pytest.fixture(scope="session")
def serve(settings: Settings) -> Serve:
    """Serves one service within a block, with some settings changed; gives a channel to it."""

    @asynccontextmanager
    async def serving(server: Server, **changes: object) -> AsyncIterator[grpc.aio.Channel]:
        port = free_port()
        changed = settings.model_copy(update={**dict.fromkeys(_PORTS, port), **changes})
        async with (
            Connections(changed) as connections,
            server(changed, connections),
            open_channel(f"127.0.0.1:{port}") as channel,
        ):
            yield channel

    return serving

"""Fixtures of the workers' tests: stores of their own, so that no other consumer takes part."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from mesh.settings import Settings
from stores.connect import Connections
from stores.sql.migrate import migrate
from tests.fixtures.sql import sqlite_url
from tests.workers.backstage import Backstage

# The database of the shared Valkey that only these tests use.
_NUMBER = 7


@pytest.fixture(scope="session")
async def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workers") / "feed.db"
    await migrate(sqlite_url(path))
    return path


@pytest.fixture
async def backstage(
    tmp_path: Path,
    migrated_file: Path,
    valkey_url: str,
    vectors_target: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Backstage]:
    redis_url = f"{valkey_url.rpartition('/')[0]}/{_NUMBER}"
    async with Redis.from_url(redis_url) as redis:
        await redis.flushdb()
    shutil.copy(migrated_file, tmp_path / "feed.db")
    settings = Settings(
        data_dir=tmp_path,
        redis_url=redis_url,
        events_url=redis_url,
        vectors_url=f"edge://{vectors_target.removeprefix('unix:')}",
        embedder_url=f"onnx://{tmp_path_factory.getbasetemp()}/models",
        push_limit=1_000,
        exploration_viewers=3,
        log_gather_s=0,
    )
    async with Connections(settings) as stores:
        yield Backstage(settings, stores)

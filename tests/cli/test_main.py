"""The command, as a process of its own, on backends that it starts itself."""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from cli.exporting import export
from cli.format import FollowLine, LikeLine, Line, PostLine, UserLine, dump_all
from local.embedded import backends
from mesh.settings import Settings
from stores.connect import Connections
from tests.cli.conftest import silent
from tests.cli.test_importing import NOW, unit
from tests.eventually import eventually
from tests.fixtures.valkey import free_port

ROOT = Path(__file__).parent.parent.parent
USERS, POSTS, LIKES = 100, 3_000, 4_000


class Command:
    """`feedmesh` on an installation in `folder`."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        url = f"redis://127.0.0.1:{port}/0"
        self.settings = Settings(
            data_dir=folder / "data", valkey_port=port, redis_url=url, events_url=url
        )
        self._env = {
            **os.environ,
            "FEED_DATA_DIR": str(self.settings.data_dir),
            "FEED_VALKEY_PORT": str(port),
            "FEED_REDIS_URL": url,
            "FEED_EVENTS_URL": url,
        }

    async def start(self, *arguments: object, **env: str) -> Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli.main", *map(str, arguments),
            cwd=ROOT, env={**self._env, **env}, stdin=DEVNULL, stdout=PIPE, stderr=PIPE,
        )  # fmt: skip

    async def run(self, *arguments: object, **env: str) -> tuple[int, str, str]:
        """Its exit code, standard output and standard error."""
        process = await self.start(*arguments, **env)
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    def batches_loaded(self) -> int:
        """How far the import came, as its index says."""
        index = self.settings.data_dir / "imports.db"
        if not index.exists():
            return 0
        try:
            with closing(sqlite3.connect(f"file:{index}?mode=ro", uri=True)) as db:
                row = db.execute("SELECT line FROM files").fetchone()
        except sqlite3.OperationalError:
            return 0
        return int(row[0]) // 1_000 if row else 0


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def big_file(path: Path) -> Path:
    """Lines without times, so that these too have to survive."""
    lines: list[Line] = [UserLine(id=f"u{n}", username=f"user{n}") for n in range(USERS)]
    lines += [FollowLine(follower=f"u{n}", author="u0") for n in range(1, USERS)]
    lines += [
        PostLine(id=f"p{n}", author=f"u{n % USERS}", text=f"post {n}", embedding=unit(n).tolist())
        for n in range(POSTS)
    ]
    lines += [
        LikeLine(user=f"u{n % USERS}", post=f"p{n % POSTS}", at=NOW if n % 2 else None)
        for n in range(LIKES)
    ]
    path.write_bytes(dump_all(lines))
    return path


@pytest.mark.timeout(180)
async def test_an_import_that_is_killed_goes_on_where_it_was_and_doubles_nothing(
    command: Command, tmp_path: Path
) -> None:
    file = big_file(tmp_path / "big.jsonl")
    process = await command.start("import", file)
    await eventually(lambda: command.batches_loaded() > 0, within_s=60)
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    assert command.batches_loaded() < 8, "it was over before it could be killed"

    code, out, err = await command.run("import", file)
    assert code == 0, err
    assert f"{POSTS:,}" in out

    exported = tmp_path / "exported.jsonl"
    async with backends(command.settings), Connections(command.settings) as stores:
        await export(stores, exported, silent())
    lines = [json.loads(line) for line in exported.read_text().splitlines()]
    kinds = Counter(line["kind"] for line in lines)
    likes = len({(n % USERS, n % POSTS) for n in range(LIKES)})
    assert kinds == {"user": USERS, "follow": USERS - 1, "post": POSTS, "like": likes}
    assert len({line["text"] for line in lines if line["kind"] == "post"}) == POSTS
    assert all("embedding" in line for line in lines if line["kind"] == "post")


async def test_bad_lines_go_to_standard_error_and_the_exit_code_tells(
    command: Command, tmp_path: Path
) -> None:
    good = dump_all([UserLine(id="u", username="ada")])
    mixed, bad = tmp_path / "mixed.jsonl", tmp_path / "bad.jsonl"
    mixed.write_bytes(b"oops\n" + good)
    bad.write_bytes(b'{"kind": "poke"}\n')

    code, out, err = await command.run("import", bad)
    assert code == 1
    assert f"{bad}:1: " in err
    assert "unreadable" in out

    code, out, err = await command.run("import", bad, mixed)
    assert code == 0
    assert f"{mixed}:1: Invalid JSON" in err


async def test_features_are_pushed_again_where_there_is_a_feature_server(tmp_path: Path) -> None:
    command = Command(tmp_path)
    async with backends(command.settings), Connections(command.settings) as stores:
        for post in (1, 2):
            await stores.features().put_post(post, author_id=3, has_media=False)
        code, _, said = await command.run("push-features")
        assert code == 1
        assert "FEED_FEATURES_URL" in said
        feast = {"FEED_FEATURES_URL": f"feast+http://127.0.0.1:{free_port()}"}
        code, _, said = await command.run("push-features", **feast)
        assert code == 0
        assert "2 users and posts" in said

"""What is exported can be imported, and gives the same export."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cli.exporting import export
from cli.format import FollowLine, ImpressionLine, LikeLine, MediaItem, PostLine, UserLine
from local.embedded import backends
from mesh.settings import Settings
from tests.cli.conftest import Installation, installed, silent
from tests.cli.test_importing import picture, unit
from tests.fixtures.valkey import free_port

NOW = datetime.now(UTC)


def lines_of(file: Path) -> Counter[str]:
    """The lines, each as sorted JSON, without regard to their order."""
    parsed: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    return Counter(json.dumps(line, sort_keys=True) for line in parsed)


async def test_export_import_export_gives_the_same_lines(
    installation: Installation, tmp_path: Path
) -> None:
    picture(tmp_path / "a.jpg")
    names = [f"reader{n}" for n in range(30)]
    file = installation.write(
        *(UserLine(id=name, username=name, display_name=f"The {name}") for name in names),
        *(FollowLine(follower=name, author="reader0") for name in names[1:]),
        *(
            PostLine(
                id=f"post{n}",
                author=names[n % 7],
                text=f"Überlegung {n} 🚲 \n second line",
                tags=("thoughts", f"tag{n}"),
                created_at=NOW - timedelta(minutes=n),
                media=(MediaItem(file="a.jpg"),) if n % 3 == 0 else (),
                embedding=unit(n).tolist(),
            )
            for n in range(40)
        ),
        *(LikeLine(user=name, post=f"post{n}", at=NOW) for n, name in enumerate(names)),
        *(
            ImpressionLine(user=name, post=f"post{n}", at=NOW, dwell_ms=n, position=n)
            for n, name in enumerate(names)
        ),
    )
    await installation.load(file)
    assert installation.bad == []
    first = tmp_path / "first.jsonl"
    tally = await export(installation.stores, first, silent())
    assert tally == {"user": 30, "follow": 29, "post": 40, "like": 30, "impression": 30}

    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    settings = Settings(
        data_dir=tmp_path / "other", valkey_port=port, redis_url=url, events_url=url
    )
    async with backends(settings), installed(tmp_path, settings) as other:
        await other.load(first)
        assert other.bad == []
        second = tmp_path / "second.jsonl"
        await export(other.stores, second, silent())
        assert await other.stores.vectors().count() == 40

    renamed = second.read_text().replace("second.jsonl.media", "first.jsonl.media")
    second.write_text(renamed)
    assert lines_of(second) == lines_of(first)
    pictures = {path.name for path in (tmp_path / "first.jsonl.media").iterdir()}
    assert pictures == {path.name for path in (tmp_path / "second.jsonl.media").iterdir()}
    assert len(pictures) == 14


async def test_an_export_loads_into_its_own_installation_without_a_change(
    installation: Installation, tmp_path: Path
) -> None:
    file = installation.write(
        UserLine(id="t", username="tom"),
        PostLine(id="t1", author="t", text="hello", created_at=NOW),
        LikeLine(user="t", post="t1", at=NOW),
        ImpressionLine(user="t", post="t1", at=NOW),
    )
    await installation.load(file)
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    await export(installation.stores, first, silent())
    await installation.load(first)
    assert installation.bad == []
    await export(installation.stores, second, silent())
    assert lines_of(first) == lines_of(second)

"""Jars are fetched once, by a Maven that asks nobody but the central repository."""

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mesh.errors import FailedPrecondition
from stack.maven import Jar, installed
from stack.place import Place

JARS = [Jar("a.b:one:1.0"), Jar("a.b:two:2.0", alone=True)]
_NS = "{http://maven.apache.org/POM/4.0.0}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place whose `mvn` keeps what it was asked, or fails where there is a file `broken`."""
    programs = tmp_path / "programs"
    programs.mkdir()
    mvn = programs / "mvn"
    mvn.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/broken ] && echo 'no such artifact' && exit 1\n"
        f"mkdir lib && cp pom.xml settings.xml lib/ && echo $@ >> {tmp_path}/asked\n"
    )
    mvn.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return Place("127.0.0.1", 1, tmp_path, tmp_path / "cache")


async def test_jars_come_with_what_they_need_unless_they_are_to_come_alone(place: Place) -> None:
    lib = await installed(place, "thing", JARS)
    pom = ElementTree.parse(lib / "pom.xml")
    one, two = pom.iter(f"{_NS}dependency")
    assert [one.findtext(f"{_NS}{name}") for name in ("groupId", "artifactId", "version")] == [
        *("a.b", "one", "1.0"),
    ]
    assert one.find(f".//{_NS}exclusion") is None
    assert two.findtext(f".//{_NS}exclusion/{_NS}artifactId") == "*"
    mirror = ElementTree.parse(lib / "settings.xml").find(".//mirror")
    assert mirror is not None
    assert (mirror.findtext("mirrorOf"), mirror.findtext("blocked")) == ("*,!central", "true")


async def test_jars_are_fetched_once_and_again_when_others_are_wanted(
    place: Place, tmp_path: Path
) -> None:
    first = await installed(place, "thing", JARS)
    assert await installed(place, "thing", JARS) == first
    assert len((tmp_path / "asked").read_text().splitlines()) == 1
    assert await installed(place, "thing", JARS[:1]) != first


async def test_what_maven_complains_of_is_told_and_leaves_nothing(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(FailedPrecondition, match="no such artifact"):
        await installed(place, "thing", JARS)
    (tmp_path / "broken").unlink()
    assert await installed(place, "thing", JARS)


async def test_without_maven_that_is_said(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FailedPrecondition, match="mvn is not installed"):
        await installed(place, "thing", JARS)

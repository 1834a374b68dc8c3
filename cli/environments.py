"""Which settings an environment's name stands for."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from mesh.errors import InvalidArgument
from mesh.settings import Settings
from stack.daemon import Daemon
from stack.place import Place
from stack.stack import SERVERS, describe, environment

_PREFIX = "FEED_"


async def settings_of(name: str) -> Settings:
    """The settings of an environment.

    Args:
        name: "embedded", the defaults of every FEED_*_URL; "stack", the servers of `make stack`
            that run, and else the embedded ones; or a file of FEED_NAME=value lines. What it says
            goes before what the process's environment says.

    Raises:
        InvalidArgument: It is none of these.
    """
    if name == "embedded":
        return _with_urls({})
    if name == "stack":
        place = Place.of(Settings())
        running = [each for each in SERVERS if place.data(each).joinpath("pid").exists()]
        return _with_urls(environment(await describe(place, await _alive(place, running))))
    if not await asyncio.to_thread(Path(name).is_file):
        raise InvalidArgument(f"{name} is neither embedded, stack nor a file.")
    values = await asyncio.to_thread(dotenv_values, name)
    return Settings(**_fields(values))


async def _alive(place: Place, names: Sequence[str]) -> list[str]:
    servers = await describe(place, names)
    return [name for name in names if Daemon(servers[name], place).process is not None]


def _with_urls(values: Mapping[str, str | None]) -> Settings:
    defaults = {
        name: field.default
        for name, field in Settings.model_fields.items()
        if name.endswith("_url")
    }
    return Settings(**(defaults | _fields(values)))


def _fields(values: Mapping[str, str | None]) -> dict[str, Any]:
    return {
        name.removeprefix(_PREFIX).lower(): value
        for name, value in values.items()
        if name.startswith(_PREFIX) and value is not None
    }

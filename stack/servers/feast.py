"""Feast's feature server, on the definitions in `features/`."""

import httpx

from stack import environments, feast
from stack.daemon import Server
from stack.place import Place, Port

_VERSION = next(
    line.partition("==")[2].split()[0]
    for line in environments.pins(feast.ENVIRONMENT).read_text().splitlines()
    if line.startswith("feast==")
)
_QUESTION = {"features": ["user_stats:follower_count"], "entities": {"user_id": [0]}}


async def server(place: Place) -> Server:
    """It applies the definitions and then serves them; its online store is the stack's Valkey."""
    program = await environments.python(place.cache, feast.ENVIRONMENT)
    port = place.port(Port.FEAST)
    url = f"http://{place.host}:{port}"

    async def is_healthy() -> bool:
        # Its /health is well also when its Redis is away.
        async with httpx.AsyncClient(timeout=2) as client:
            return (await client.post(f"{url}/get-online-features", json=_QUESTION)).is_success

    return Server(
        name="feast",
        version=_VERSION,
        command=[
            str(program),
            str(feast.REPOSITORY / "serve.py"),
            "--host",
            place.host,
            "--port",
            str(port),
        ],
        url=f"feast+{url}",
        ports=[port],
        is_healthy=is_healthy,
        env=feast.environment(place),
        after=["valkey"],
    )

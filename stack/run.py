"""`make run-stack`: the mesh on the real servers, each service and each worker its own process."""

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from local.children import Child
from local.embedded import child_env
from local.launcher import main
from mesh.errors import FeedError
from mesh.settings import Settings
from stack.daemon import Server
from stack.place import Place
from stack.stack import daemons, describe, environment, start
from stores.sql.migrate import migrate
from workers.runner import NAMES

_SERVICES = ("candidate_svc", "filter_svc", "ranker_svc", "hydrator_svc")


@asynccontextmanager
async def backends(servers: Mapping[str, Server], settings: Settings) -> AsyncIterator[None]:
    """Starts those of the servers that do not run, and leaves all of them running."""
    await start(daemons(Place.of(settings), servers))
    await migrate(settings.url(settings.sql_url))
    yield


def processes(settings: Settings) -> dict[str, Child]:
    """The gateway, the four services and the workers. Their metrics have one port each, in order.

    The gateway has no such port: it tells its own at /metrics.
    """
    grace_s = settings.shutdown_grace_s + 5
    commands = {
        **{service: [service] for service in _SERVICES},
        **{name: ["workers", name] for name in NAMES},
    }
    ports = itertools.count(settings.metrics_port) if settings.metrics_port else itertools.repeat(0)
    return {
        "gateway": Child("gateway", ["gateway"], grace_s, child_env(settings, metrics_port=0)),
        **{
            name: Child(name, command, grace_s, child_env(settings, port))
            for (name, command), port in zip(commands.items(), ports, strict=False)
        },
    }


def on_stack(servers: Mapping[str, Server]) -> Settings:
    """Settings of this process and its children: the servers' URLs where the user set none."""
    set_by_user = Settings().model_fields_set
    for name, url in environment(servers).items():
        if name.removeprefix("FEED_").lower() not in set_by_user:
            os.environ[name] = url
    return Settings()


if __name__ == "__main__":
    try:
        servers = asyncio.run(describe(Place.of(Settings())))
    except FeedError as error:
        sys.exit(f"the stack cannot be had: {error}")
    main(on_stack(servers), partial(backends, servers), processes)

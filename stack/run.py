"""`make run-stack`: the mesh on the real servers, each service and each worker its own process."""

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from local.children import Child
from local.embedded import child_env
from local.launcher import main
from mesh.errors import FeedError
from mesh.settings import Settings
from stack.place import Place
from stack.stack import daemons, describe, environment, start
from stores.sql.migrate import migrate
from workers.runner import NAMES

_SERVICES = ("candidate_svc", "filter_svc", "ranker_svc", "hydrator_svc")


@asynccontextmanager
async def backends(settings: Settings) -> AsyncIterator[None]:
    """Starts those servers of the stack that do not run, and leaves all of them running."""
    place = Place.of(settings)
    await start(daemons(place, await describe(place)))
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


def on_stack() -> Settings:
    """Settings of this process and its children: the stack's URLs where the user set none.

    Raises:
        FailedPrecondition: A server does not install.
    """
    settings = Settings()
    urls = environment(asyncio.run(describe(Place.of(settings))))
    for name, url in urls.items():
        if name.removeprefix("FEED_").lower() not in settings.model_fields_set:
            os.environ[name] = url
    return Settings()


if __name__ == "__main__":
    try:
        settings = on_stack()
    except FeedError as error:
        sys.exit(f"the stack cannot be had: {error}")
    main(settings, backends, processes)

"""Wires the gateway: the one place that constructs what it works with."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
from fastapi import FastAPI
from feed.v1.candidate_pb2_grpc import CandidateServiceStub
from feed.v1.filter_pb2_grpc import FilterServiceStub
from feed.v1.hydrator_pb2_grpc import HydratorServiceStub
from feed.v1.ranker_pb2_grpc import RankerServiceStub
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

from gateway import (
    auth,
    debug,
    explain,
    feed,
    impressions,
    likes,
    media,
    ops,
    posts,
    problems,
    uploads,
    users,
)
from gateway.backends import Backends, Services
from gateway.body_limit import BodyLimit
from gateway.edge import Gateway
from gateway.external import ExternalIssuer
from gateway.identity import Identities
from gateway.limits import RateLimits
from gateway.tokens import Cursors, Tokens, UploadKeys, load_secret
from gateway.trace_users import TraceUsers, UrlRedaction
from mesh import trace_buffer
from mesh.attempts import Attempts
from mesh.channels import open_channel
from mesh.ids import Snowflakes
from mesh.settings import Settings
from mesh.worker_id import WorkerIdLease
from stores.connect import Connections
from stores.users.port import UserStore

_DESCRIPTION = """\
Post, follow, like and scroll. Log in at `POST /auth/token` and send the token as
`Authorization: Bearer ...`.

Ids are decimal strings, times are RFC 3339 in UTC, errors are `application/problem+json`. Every
response carries a `traceresponse` header, and a `traceparent` that a request brings is joined.
"""


def create_app(settings: Settings, stores: Connections) -> FastAPI:
    """The gateway as an ASGI application.

    Args:
        settings: All that concerns the gateway.
        stores: Open for at least as long as the application's lifespan.

    Raises:
        ValueError: A setting cannot be used; the message names it.
    """
    secret = load_secret(settings)
    trace_users = TraceUsers(settings.trace_users, secret)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as opened:
            if settings.debug_traces:
                app.state.traces = await opened.enter_async_context(trace_buffer.hosted(settings))
            app.state.backends = await opened.enter_async_context(
                _backends(settings, stores, secret, trace_users)
            )
            yield

    app = Gateway(
        title="feedmesh",
        version="1",
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        # The server span is FastAPI's own; its metrics are ours, and logs are not its business.
        telemetry={
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "exclude": lambda scope: ops.is_untraced(scope.get("path", "")),
        },
    )
    app.add_middleware(BodyLimit)
    app.add_middleware(UrlRedaction, users=trace_users)
    problems.install(app)
    for part in (auth, users, posts, likes, feed, explain, impressions, uploads, ops):
        app.include_router(part.router)
    if settings.media_url.startswith("file://"):
        app.include_router(media.router)
    if settings.debug_traces:
        app.include_router(debug.router)
    return app


@asynccontextmanager
async def _backends(
    settings: Settings, stores: Connections, secret: str, trace_users: TraceUsers
) -> AsyncIterator[Backends]:
    async with AsyncExitStack() as opened:
        lease = await opened.enter_async_context(WorkerIdLease(stores.leases()))
        tokens, users = Tokens(secret, settings.jwt_ttl_s), stores.users()
        issuer = await _issuer(opened, settings, users, lease.snowflakes)
        yield Backends(
            settings=settings,
            users=users,
            posts=stores.posts(),
            graph=stores.graph(),
            features=stores.features(),
            recent_seen=stores.recent_seen(),
            snapshots=stores.snapshots(),
            events=stores.events(),
            outbox=stores.outbox(),
            media=stores.media(),
            uploads=stores.uploads(),
            services=await _services(opened, settings),
            ids=lease.snowflakes,
            tokens=tokens,
            cursors=Cursors(secret),
            upload_keys=UploadKeys(secret),
            identities=Identities(tokens, issuer, users),
            limits=RateLimits(settings, stores.redis),
            trace_users=trace_users,
        )


async def _services(opened: AsyncExitStack, settings: Settings) -> Services:
    attempts = Attempts(hedge_after_s=settings.hedge_after_s)
    channels = {
        name: await opened.enter_async_context(open_channel(address, attempts))
        for name, address in (
            ("candidate_svc", settings.candidate_address),
            ("filter_svc", settings.filter_address),
            ("ranker_svc", settings.ranker_address),
            ("hydrator_svc", settings.hydrator_address),
        )
    }
    return Services(
        candidate=CandidateServiceStub(channels["candidate_svc"]),
        filter=FilterServiceStub(channels["filter_svc"]),
        ranker=RankerServiceStub(channels["ranker_svc"]),
        hydrator=HydratorServiceStub(channels["hydrator_svc"]),
        health={name: ops.health_check(channel) for name, channel in channels.items()},
    )


async def _issuer(
    opened: AsyncExitStack, settings: Settings, users: UserStore, ids: Snowflakes
) -> ExternalIssuer | None:
    if settings.jwks_url is None:
        return None
    client = await opened.enter_async_context(httpx.AsyncClient())
    HTTPXClientInstrumentor().instrument_client(client)
    return ExternalIssuer(client, settings, users, ids.next)

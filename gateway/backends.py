"""What the endpoints work with. `gateway.app` makes it once a process."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from gateway.identity import Identities
from gateway.limits import RateLimits
from gateway.tokens import Cursors, Tokens, UploadKeys
from gateway.trace_users import TraceUsers
from mesh.ids import Snowflakes
from mesh.settings import Settings
from stores.events.port import EventLog
from stores.features.port import FeatureStore
from stores.graph.port import GraphStore
from stores.impressions.port import RecentSeen
from stores.media.port import MediaStore, UploadStore
from stores.outbox.port import Outbox
from stores.posts.port import PostStore
from stores.snapshots.port import SnapshotStore
from stores.users.port import UserStore

if TYPE_CHECKING:
    from feed.v1.candidate_pb2_grpc import CandidateServiceAsyncStub
    from feed.v1.filter_pb2_grpc import FilterServiceAsyncStub
    from feed.v1.hydrator_pb2_grpc import HydratorServiceAsyncStub
    from feed.v1.ranker_pb2_grpc import RankerServiceAsyncStub
    from grpc.aio import UnaryUnaryMultiCallable
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse


@dataclass(frozen=True, slots=True)
class Services:
    """The four services' stubs, and how to ask each whether it serves."""

    candidate: "CandidateServiceAsyncStub"
    filter: "FilterServiceAsyncStub"
    ranker: "RankerServiceAsyncStub"
    hydrator: "HydratorServiceAsyncStub"
    # By the name its spans have.
    health: "dict[str, UnaryUnaryMultiCallable[HealthCheckRequest, HealthCheckResponse]]"


@dataclass(frozen=True, slots=True)
class Backends:
    """Stores, services and rules of this process, shared by all requests."""

    settings: Settings
    users: UserStore
    posts: PostStore
    graph: GraphStore
    features: FeatureStore
    recent_seen: RecentSeen
    snapshots: SnapshotStore
    events: EventLog
    outbox: Outbox
    media: MediaStore
    # None where media come with their post only.
    uploads: UploadStore | None
    services: Services
    ids: Snowflakes
    tokens: Tokens
    cursors: Cursors
    upload_keys: UploadKeys
    identities: Identities
    limits: RateLimits
    trace_users: TraceUsers


def _of_app(request: Request) -> Backends:
    backends: Backends = request.app.state.backends
    return backends


Here = Annotated[Backends, Depends(_of_app)]

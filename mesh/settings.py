"""Every setting, in one place: environment variables `FEED_*`, read once by whoever starts.

`docs/settings.md` is generated from this class (`make docs`).
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The URL's scheme picks the adapter; `{data}` in a URL stands for FEED_DATA_DIR."""

    model_config = SettingsConfigDict(env_prefix="FEED_", env_file=".env", extra="ignore")

    # -- where things are ---------------------------------------------------------------------
    data_dir: Path = Field(Path(".feed"), description="Folder of the embedded stores.")
    sql_url: str = Field(
        "sqlite+aiosqlite:///{data}/feed.db", description="Source of truth: users, posts, likes."
    )
    redis_url: str = Field(
        "redis://127.0.0.1:6390/0",
        description="Mailboxes, feature cache, snapshots, limits; redis+cluster://HOST:PORT,... "
        "is a cluster.",
    )
    events_url: str = Field(
        "redis://127.0.0.1:6390/0",
        description="Event log; redis:// is Redis streams, or kafka://HOST:PORT[,HOST:PORT][/PREFIX].",
    )
    vectors_url: str = Field(
        "edge://{data}/vectors.sock",
        description=(
            "Vector index: edge:// is the embedded engine, edge+tcp://HOST:PORT one elsewhere; "
            "qdrant://HOST:PORT/COLLECTION?api_key= a Qdrant server's gRPC, qdrants:// with TLS."
        ),
    )
    graph_url: str = Field(
        "sql://",
        description="Social graph: sql:// is the source of truth, dgraph://HOST:PORT a Dgraph.",
    )
    impressions_url: str = Field(
        "sql://",
        description="Impressions of the last 48 hours; or pinot://HOST:PORT[/TABLE], with kafka://.",
    )
    features_url: str = Field(
        "redis://",
        description=(
            "Features; redis:// is FEED_REDIS_URL; feast+http://HOST:PORT (or feast+https) is a "
            "Feast feature server with that as its cache (?timeout=0.15: seconds of a read)."
        ),
    )
    media_url: str = Field(
        "file://{data}/media",
        description=(
            "Media objects: a folder, or a bucket s3://[KEY:SECRET@]HOST/BUCKET (s3+http:// without"
            " TLS; AWS_* variables where no key is given) with ?region=, and ?public_url= (a CDN) "
            "or ?presigned_s= unless the bucket is public, and ?upload_url=."
        ),
    )
    log_url: str = Field(
        "file://{data}/log",
        description="Log of feeds, shown posts and likes, which models are trained on: a folder of"
        " Parquet files.",
    )
    log_gather_s: float = Field(
        5.0,
        ge=0,
        description="Seconds that the log worker gathers events for, so that files are few.",
    )
    log_days: int = Field(90, ge=1, description="Days that the log of feeds is kept.")
    registry_url: str = Field(
        "file://{data}/registry",
        description="Model registry: a folder of trained models, and which of them serves.",
    )
    triton_repository: Path | None = Field(
        None,
        description="Model repository of a running Triton, which FEED_MODEL_URL names: a promotion"
        " adds the version there, and has Triton load it first.",
    )
    embedder_url: str = Field("onnx://{data}/models", description="Text embedding.")
    score_like_weight: float = Field(
        1.0, ge=0, description="Weight of the chance of a like in a trained model's score."
    )
    score_dwell_weight: float = Field(
        0.25, ge=0, description="Weight of the chance of a long look in a trained model's score."
    )
    model_url: str = Field(
        "onnx://",
        description=(
            "Ranking model: onnx:// is the version that the registry has promoted, or the heuristic"
            " while there is none; triton://HOST:PORT/MODEL the same from Triton. Always the same:"
            " heuristic://, random://?seed=1, onnx://FILE, triton://...?version=NUMBER."
        ),
    )
    candidate_address: str = Field("127.0.0.1:50051", description="gRPC target of candidate_svc.")
    filter_address: str = Field("127.0.0.1:50052", description="gRPC target of filter_svc.")
    ranker_address: str = Field("127.0.0.1:50053", description="gRPC target of ranker_svc.")
    hydrator_address: str = Field("127.0.0.1:50054", description="gRPC target of hydrator_svc.")

    demo: bool = Field(True, description="Whether `make run` loads the demo world, once.")
    stack_cache: Path = Field(
        Path("~/.cache/feedmesh"), description="Folder that real servers are installed into, once."
    )
    stack_host: str = Field("127.0.0.1", description="Address that `make stack` listens on.")
    stack_port: int = Field(14000, description="First of the 20 ports of `make stack`.")

    # -- what a process listens on ------------------------------------------------------------
    host: str = Field("127.0.0.1", description="Address that servers bind to.")
    gateway_port: int = Field(8080, description="REST port.")
    candidate_port: int = Field(50051, description="candidate_svc's port.")
    filter_port: int = Field(50052, description="filter_svc's port.")
    ranker_port: int = Field(50053, description="ranker_svc's port.")
    hydrator_port: int = Field(50054, description="hydrator_svc's port.")
    valkey_port: int = Field(6390, description="Port of the embedded Valkey.")
    metrics_port: int = Field(
        0,
        description="Port of /metrics in a process without the gateway; 0 for none. Of `make run`:"
        " the workers' (9464 unless set), and the vector engine's is the next.",
    )
    connection_age_s: float = Field(
        600.0,
        gt=0,
        description="Seconds after which a gRPC server asks a client to connect anew; clients find"
        " servers that were added only then.",
    )
    shutdown_grace_s: float = Field(10.0, description="Seconds that calls in flight may take.")

    # -- who may do what ----------------------------------------------------------------------
    public_url: str = Field(
        "http://127.0.0.1:8080", description="How clients reach the gateway; media URLs start so."
    )
    jwt_secret: SecretStr | None = Field(
        None, description="Signs tokens and cursors; unset, one is kept in FEED_DATA_DIR."
    )
    jwt_ttl_s: int = Field(86_400, description="Seconds a token is good for.")
    jwks_url: str | None = Field(None, description="Keys of an external token issuer.")
    jwt_issuer: str | None = Field(None, description="`iss` that external tokens must have.")
    jwt_audience: str | None = Field(None, description="`aud` that external tokens must have.")
    rate_limit_user: str = Field("600/minute", description="Requests of one user.")
    rate_limit_address: str = Field("1200/minute", description="Requests of one address.")
    rate_limit_login: str = Field("30/minute", description="Logins and sign-ups of one address.")

    # -- the feed -----------------------------------------------------------------------------
    feed_deadline_s: float = Field(2.0, description="Seconds GET /feed may take in all.")
    hedge_after_s: float | None = Field(
        None,
        gt=0,
        description="Seconds after which the gateway asks a service that has not answered a second "
        "time, beside the first; for several replicas. Unset for never.",
    )
    feed_ttl_s: int = Field(600, description="Seconds a feed's cursor can be resumed.")
    social_limit: int = Field(100, description="Social candidates of one feed.")
    discovery_limit: int = Field(100, description="Discovery candidates of one feed.")
    discovery_days: int = Field(30, description="Age in days up to which strangers' posts count.")
    discovery_share_min: float = Field(0.2, description="Least share of strangers on a page.")
    discovery_share_max: float = Field(0.6, description="Greatest share of strangers on a page.")
    exploration_share: float = Field(
        0.1, description="Share of discovery candidates given to posts with few viewers."
    )
    exploration_viewers: int = Field(20, description="Viewers at which a post counts as proven.")
    seen_hours: int = Field(24, description="Hours for which a seen post stays away.")
    post_features_s: float = Field(
        2.0,
        ge=0,
        description="Seconds for which the ranker goes on with a post's features that it has looked"
        " up; 0 looks up all for each feed.",
    )
    push_limit: int = Field(10_000, description="Followers above which an author is pulled.")
    max_following: int = Field(7_500, description="Authors one user may follow.")
    interest_half_life_days: float = Field(7.0, description="Half-life of a like in the taste.")
    recall_sample: float = Field(
        0.01, description="Share of discovery searches repeated exactly to measure recall."
    )
    epsilon: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Chance that a place of the feed goes to a post drawn at random; 0 for none.",
    )
    epsilon_pool: int = Field(
        10, ge=1, description="Best posts among which such a place's is drawn, all alike."
    )
    random_seed: int | None = Field(None, description="Fixes exploration's choices; for tests.")

    # -- telemetry ----------------------------------------------------------------------------
    otlp_endpoint: str | None = Field(
        None, description="OTLP collector: grpc://HOST:4317 or http://HOST:4318; also with TLS."
    )
    trace_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of traces that are sampled at their start."
    )
    trace_users: Literal["hashed", "plain", "none"] = Field(
        "hashed", description="How a trace names the user whose request it is."
    )
    debug_traces: int = Field(
        0,
        ge=0,
        description="Traces that GET /debug/traces keeps in memory; 0 for none. `make run` sets"
        " 500.",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="Form of log lines; auto is console on a terminal, else json."
    )
    log_level: str = Field("INFO", description="Least level that is logged.")

    def url(self, template: str) -> str:
        """A setting's URL with `{data}` filled in."""
        return template.replace("{data}", str(self.data_dir))

"""Every table, as SQLAlchemy Core metadata. `migrations/` makes the same schema, step by step.

Nothing refers to another table by a foreign key: graph and impressions may live elsewhere, and
TiDB checks them at a price. Times are integers, because SQLite and TiDB agree on those; only what
TiDB shall forget by itself has a time of its type. How TiDB spreads rows is in the migrations
(docs/decisions/0013).
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    TIMESTAMP,
    BigInteger,
    Column,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# 64 bits everywhere; spelled INTEGER, SQLite makes a lone key the row's own address.
Id = BigInteger().with_variant(Integer(), "sqlite")

# utf8mb4_bin compares as SQLite does: byte by byte.
_OPTIONS: dict[str, Any] = {"mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
# For tables that are little more than their key: the key is the table.
_CLUSTERED: dict[str, Any] = {**_OPTIONS, "sqlite_with_rowid": False}


class Instant(TypeDecorator[datetime]):
    """A time as microseconds since the epoch: exact, and aware of UTC when read."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + value * _MICROSECOND


metadata = MetaData()

users = Table(
    "users",
    metadata,
    Column("user_id", Id, primary_key=True, autoincrement=False),
    Column("username", String(255), nullable=False),
    # The name with case folded: what makes names unique, and what login looks for.
    Column("username_key", String(255), nullable=False),
    Column("display_name", String(255), nullable=False),
    Column("password_hash", String(255)),
    Column("created_at", Instant, nullable=False),
    Index("ux_users_username_key", "username_key", unique=True),
    **_OPTIONS,
)

posts = Table(
    "posts",
    metadata,
    Column("post_id", Id, primary_key=True, autoincrement=False),
    Column("author_id", Id, nullable=False),
    Column("text", Text, nullable=False),
    # Tags and media are read and written with their post and never searched for here, so they are
    # columns: a page of posts is one lookup instead of three.
    Column("tags", JSON, nullable=False),
    Column("media", JSON, nullable=False),
    Column("like_count", Id, nullable=False),
    Column("created_at", Instant, nullable=False),
    Index("ix_posts_author", "author_id", "post_id"),
    **_OPTIONS,
)

likes = Table(
    "likes",
    metadata,
    Column("user_id", Id, primary_key=True, autoincrement=False),
    Column("post_id", Id, primary_key=True, autoincrement=False),
    Column("created_at", Instant, nullable=False),
    Index("ix_likes_post", "post_id"),
    Index("ix_likes_recent", "user_id", "created_at"),
    **_CLUSTERED,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("author_id", Id, primary_key=True, autoincrement=False),
    Column("idempotency_key", String(255), primary_key=True),
    Column("fingerprint", String(255), nullable=False),
    Column("post_id", Id, nullable=False),
    Column("created_at", TIMESTAMP, nullable=False, server_default=text("CURRENT_TIMESTAMP")),
    **_CLUSTERED,
)

outbox = Table(
    "outbox",
    metadata,
    Column("row_id", Id, primary_key=True, autoincrement=True),
    Column("topic", String(255), nullable=False),
    Column("record_key", String(255), nullable=False),
    Column("value", Text, nullable=False),
    Column("headers", JSON, nullable=False),
    # Without it SQLite would give the numbers of deleted rows again.
    sqlite_autoincrement=True,
    **_OPTIONS,
)

follows = Table(
    "follows",
    metadata,
    Column("follower_id", Id, primary_key=True, autoincrement=False),
    Column("author_id", Id, primary_key=True, autoincrement=False),
    Index("ix_follows_author", "author_id", "follower_id"),
    **_CLUSTERED,
)

blocks = Table(
    "blocks",
    metadata,
    Column("user_id", Id, primary_key=True, autoincrement=False),
    Column("target_id", Id, primary_key=True, autoincrement=False),
    Index("ix_blocks_target", "target_id", "user_id"),
    **_CLUSTERED,
)

pulled_authors = Table(
    "pulled_authors",
    metadata,
    Column("author_id", Id, primary_key=True, autoincrement=False),
    **_OPTIONS,
)

impressions = Table(
    "impressions",
    metadata,
    Column("event_id", String(128), primary_key=True),
    Column("user_id", Id, nullable=False),
    Column("post_id", Id, nullable=False),
    Column("author_id", Id, nullable=False),
    Column("seen_at_ms", BigInteger, nullable=False),
    Column("position", BigInteger),
    Column("feed_id", String(64), nullable=False),
    Column("dwell_ms", BigInteger),
    # With post_id the index alone answers what a reader saw.
    Index("ix_impressions_user", "user_id", "seen_at_ms", "post_id"),
    Index("ix_impressions_time", "seen_at_ms", "event_id"),
    **_OPTIONS,
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("holder", String(128), nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    **_OPTIONS,
)

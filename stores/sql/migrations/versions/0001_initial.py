"""The first schema."""

from typing import Any

from alembic import context, op
from sqlalchemy import JSON, BigInteger, Column, Integer, String, Text

revision = "0001"
down_revision = None

ID = BigInteger().with_variant(Integer(), "sqlite")
OPTIONS = {"mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
CLUSTERED = {**OPTIONS, "sqlite_with_rowid": False}
# TiDB only: rows of tables that grow at one end, spread over 16 regions (docs/decisions/0013).
SCATTERED = {**OPTIONS, "mysql_shard_row_id_bits": "4", "mysql_pre_split_regions": "4"}


def _key(name: str) -> Column[int]:
    return Column(name, ID, primary_key=True, autoincrement=False)


def _create_table(
    name: str, *columns: Column[Any], is_clustered: bool = True, **options: Any
) -> None:
    if context.get_context().dialect.name == "mysql":
        clustered = "ON" if is_clustered else "OFF"
        op.execute(f"SET SESSION tidb_enable_clustered_index = {clustered}")
    # TiDB's DDL is no part of a transaction: a migration that was cut off is begun again.
    op.create_table(name, *columns, if_not_exists=True, **options)


def _create_index(name: str, table: str, columns: list[str], *, unique: bool = False) -> None:
    op.create_index(name, table, columns, unique=unique, if_not_exists=True)


def upgrade() -> None:
    _create_table(
        "users",
        _key("user_id"),
        Column("username", String(255), nullable=False),
        Column("username_key", String(255), nullable=False),
        Column("display_name", String(255), nullable=False),
        Column("password_hash", String(255)),
        Column("created_at", BigInteger, nullable=False),
        **OPTIONS,
    )
    _create_index("ux_users_username_key", "users", ["username_key"], unique=True)

    _create_table(
        "posts",
        _key("post_id"),
        Column("author_id", ID, nullable=False),
        Column("text", Text, nullable=False),
        Column("tags", JSON, nullable=False),
        Column("media", JSON, nullable=False),
        Column("like_count", ID, nullable=False),
        Column("created_at", BigInteger, nullable=False),
        is_clustered=False,
        **SCATTERED,
    )
    _create_index("ix_posts_author", "posts", ["author_id", "post_id"])

    _create_table(
        "likes",
        _key("user_id"),
        _key("post_id"),
        Column("created_at", BigInteger, nullable=False),
        **CLUSTERED,
    )
    _create_index("ix_likes_post", "likes", ["post_id"])
    _create_index("ix_likes_recent", "likes", ["user_id", "created_at"])

    _create_table(
        "idempotency_keys",
        _key("author_id"),
        Column("idempotency_key", String(255), primary_key=True),
        Column("fingerprint", String(255), nullable=False),
        Column("post_id", ID, nullable=False),
        **CLUSTERED,
    )

    _create_table(
        "outbox",
        Column("row_id", ID, primary_key=True, autoincrement=True),
        Column("topic", String(255), nullable=False),
        Column("record_key", String(255), nullable=False),
        Column("value", Text, nullable=False),
        Column("headers", JSON, nullable=False),
        sqlite_autoincrement=True,
        is_clustered=False,
        # One counter for all nodes: a later row has a higher number.
        mysql_auto_id_cache="1",
        **SCATTERED,
    )

    _create_table("follows", _key("follower_id"), _key("author_id"), **CLUSTERED)
    _create_index("ix_follows_author", "follows", ["author_id", "follower_id"])

    _create_table("blocks", _key("user_id"), _key("target_id"), **CLUSTERED)
    _create_index("ix_blocks_target", "blocks", ["target_id", "user_id"])

    _create_table("pulled_authors", _key("author_id"), **OPTIONS)

    _create_table(
        "impressions",
        Column("event_id", String(128), primary_key=True),
        Column("user_id", ID, nullable=False),
        Column("post_id", ID, nullable=False),
        Column("author_id", ID, nullable=False),
        Column("seen_at_ms", BigInteger, nullable=False),
        Column("position", BigInteger),
        Column("feed_id", String(64), nullable=False),
        Column("dwell_ms", BigInteger),
        **OPTIONS,
    )
    _create_index("ix_impressions_user", "impressions", ["user_id", "seen_at_ms", "post_id"])
    _create_index("ix_impressions_time", "impressions", ["seen_at_ms", "event_id"])

    _create_table(
        "leases",
        Column("name", String(128), primary_key=True),
        Column("holder", String(128), nullable=False),
        Column("expires_at_ms", BigInteger, nullable=False),
        **OPTIONS,
    )


def downgrade() -> None:
    for table in (
        "leases",
        "impressions",
        "pulled_authors",
        "blocks",
        "follows",
        "outbox",
        "idempotency_keys",
        "likes",
        "posts",
        "users",
    ):
        op.drop_table(table)

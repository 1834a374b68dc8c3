"""Idempotency keys say when they were made, so that they can end."""

from alembic import context, op
from sqlalchemy import TIMESTAMP, Column, inspect, text

revision = "0002"
down_revision = "0001"

TABLE = "idempotency_keys"


def _created_at() -> Column[object]:
    return Column("created_at", TIMESTAMP, nullable=False, server_default=text("CURRENT_TIMESTAMP"))


def upgrade() -> None:
    if context.get_context().dialect.name == "sqlite":
        # SQLite adds no column whose default is not constant.
        with op.batch_alter_table(
            TABLE, recreate="always", table_kwargs={"sqlite_with_rowid": False}
        ) as table:
            table.add_column(_created_at())
        return
    # A migration of TiDB that was cut off is begun again.
    if "created_at" not in {column["name"] for column in inspect(op.get_bind()).get_columns(TABLE)}:
        op.add_column(TABLE, _created_at())
    op.execute(f"ALTER TABLE {TABLE} TTL = created_at + INTERVAL 1 DAY TTL_JOB_INTERVAL = '1h'")


def downgrade() -> None:
    if context.get_context().dialect.name == "mysql":
        op.execute(f"ALTER TABLE {TABLE} REMOVE TTL")
    with op.batch_alter_table(TABLE, table_kwargs={"sqlite_with_rowid": False}) as table:
        table.drop_column("created_at")

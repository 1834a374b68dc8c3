"""What Alembic runs; the connection, and the transaction around it, are `migrate`'s."""

from alembic import context

from stores.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
)
context.run_migrations()

"""Alembic's folder; revisions are written by hand, `stores.sql.migrate` runs them."""

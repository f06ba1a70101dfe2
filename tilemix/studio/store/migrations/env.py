"""Alembic's environment: the revisions run on the connection that `tilemix.studio.store.database` passes in."""

from __future__ import annotations

from alembic import context

from tilemix.studio.store.schema import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()

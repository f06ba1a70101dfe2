"""Indexes for the search by text: every three letters in a row, SQLite's by FTS5, PostgreSQL's by pg_trgm."""

from __future__ import annotations

import logging

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

logger = logging.getLogger(__name__)

# The texts of a prediction never change.
SQLITE = (
    "CREATE VIRTUAL TABLE predictions_text USING fts5(prompt, sent_prompt, tokenize='trigram',"
    " content='predictions', content_rowid='number')",
    "CREATE TRIGGER predictions_text_insert AFTER INSERT ON predictions BEGIN"
    " INSERT INTO predictions_text(rowid, prompt, sent_prompt) VALUES (new.number, new.prompt, new.sent_prompt);"
    " END",
    "CREATE TRIGGER predictions_text_delete AFTER DELETE ON predictions BEGIN"
    " INSERT INTO predictions_text(predictions_text, rowid, prompt, sent_prompt)"
    " VALUES ('delete', old.number, old.prompt, old.sent_prompt); END",
    "INSERT INTO predictions_text(predictions_text) VALUES ('rebuild')",
)
POSTGRESQL = (
    "CREATE EXTENSION IF NOT EXISTS pg_trgm",
    "CREATE INDEX predictions_text ON predictions USING gin (prompt gin_trgm_ops, sent_prompt gin_trgm_ops)",
)


def upgrade() -> None:
    """Make the index; a PostgreSQL that has no pg_trgm for us does without, only slower."""
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        for statement in SQLITE:
            connection.exec_driver_sql(statement)
        return
    try:
        with connection.begin_nested():
            for statement in POSTGRESQL:
                connection.exec_driver_sql(statement)
    except sa.exc.DBAPIError as error:
        logger.warning("searches by text have no index: %s", type(error.orig).__name__)


def downgrade() -> None:
    """Remove the index."""
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        for name in ("insert", "delete"):
            connection.exec_driver_sql(f"DROP TRIGGER predictions_text_{name}")
        connection.exec_driver_sql("DROP TABLE predictions_text")
    else:
        connection.exec_driver_sql("DROP INDEX IF EXISTS predictions_text")

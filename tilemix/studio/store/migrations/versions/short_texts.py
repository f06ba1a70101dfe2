"""SQLite's index of the texts finds one or two letters, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import op

from tilemix.studio.store.migrations.versions.text_search import SQLITE as EARLIER

if TYPE_CHECKING:
    from collections.abc import Iterable

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# The index holds every three letters in a row, and `predictions_letters` lists them. With two signs after the end of a
# text, each of its letters begins such a three; the sign is U+0003, which no prompt holds. Nothing reads a text from
# the index, so that it keeps none.
# Source: https://sqlite.org/fts5.html, sections 4.3.4, 4.4.1 and 9
REMOVE = (
    "DROP TRIGGER predictions_text_insert",
    "DROP TRIGGER predictions_text_delete",
    "DROP TABLE predictions_text",
)
MAKE = (
    "CREATE VIRTUAL TABLE predictions_text USING fts5(prompt, sent_prompt, tokenize='trigram', content='')",
    "CREATE VIRTUAL TABLE predictions_letters USING fts5vocab(predictions_text, row)",
    "CREATE TRIGGER predictions_text_insert AFTER INSERT ON predictions BEGIN"
    " INSERT INTO predictions_text(rowid, prompt, sent_prompt) VALUES"
    " (new.number, new.prompt || char(3, 3), new.sent_prompt || char(3, 3)); END",
    "CREATE TRIGGER predictions_text_delete AFTER DELETE ON predictions BEGIN"
    " INSERT INTO predictions_text(predictions_text, rowid, prompt, sent_prompt) VALUES"
    " ('delete', old.number, old.prompt || char(3, 3), old.sent_prompt || char(3, 3)); END",
    "INSERT INTO predictions_text(rowid, prompt, sent_prompt)"
    " SELECT number, prompt || char(3, 3), sent_prompt || char(3, 3) FROM predictions",
)


def upgrade() -> None:
    """Make the index anew; PostgreSQL's stays."""
    _run_on_sqlite((*REMOVE, *MAKE))


def downgrade() -> None:
    """Make the earlier index anew."""
    _run_on_sqlite(("DROP TABLE predictions_letters", *REMOVE, *EARLIER))


def _run_on_sqlite(statements: Iterable[str]) -> None:
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        for statement in statements:
            connection.exec_driver_sql(statement)

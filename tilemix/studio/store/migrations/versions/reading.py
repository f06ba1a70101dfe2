"""Predictions keep the mix as it was read and the notes on it; `shares` hold it as it is sent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the two columns; for older predictions they stay empty."""
    with op.batch_alter_table("predictions") as table:
        table.add_column(sa.Column("mix", sa.JSON))
        table.add_column(sa.Column("notes", sa.JSON))


def downgrade() -> None:
    """Forget both."""
    with op.batch_alter_table("predictions") as table:
        table.drop_column("notes")
        table.drop_column("mix")

"""Deadlines become the seconds of drawing that are left; what counts on one process's clock leaves the tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

GONE = (("predictions", "deadline_at"), ("predictions", "asked_at"), ("outputs", "next_attempt_at"))
USUAL_SECONDS = sa.text("1800")
LONG_AGO = sa.text("'2000-01-01 00:00:00.000000'")


def upgrade() -> None:
    """Give what has not ended the usual time: how long it has been drawn is not known."""
    op.add_column(
        "predictions", sa.Column("seconds_left", sa.Float, nullable=False, server_default=USUAL_SECONDS)
    )
    for table, column in GONE:
        op.drop_column(table, column)


def downgrade() -> None:
    """Let what has not ended be late: when its drawing began is not known."""
    op.drop_column("predictions", "seconds_left")
    for table, column in GONE:
        op.add_column(
            table,
            sa.Column(column, sa.DateTime(timezone=True), nullable=False, server_default=LONG_AGO),
        )

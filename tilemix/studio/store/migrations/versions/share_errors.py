"""Predictions keep how far their measured shares are off, so that the gallery can sort by it."""

from __future__ import annotations

from collections import defaultdict

import sqlalchemy as sa
from alembic import op

from tilemix.pictures.metrics import find_share_error

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

PREDICTIONS = sa.table(
    "predictions",
    sa.column("number", sa.Integer),
    sa.column("metrics", sa.JSON),
    sa.column("share_error", sa.Float),
)
SHARES = sa.table(
    "shares", sa.column("prediction", sa.Integer), sa.column("color", sa.Text), sa.column("percent", sa.Float)
)


def upgrade() -> None:
    """Add the column, and fill it from the metrics that are there."""
    op.add_column("predictions", sa.Column("share_error", sa.Float))
    op.create_index("predictions_share_error", "predictions", ["share_error", "number"])
    connection = op.get_bind()
    asked: dict[int, dict[str, float]] = defaultdict(dict)
    for number, color, percent in connection.execute(sa.select(*SHARES.c)):
        asked[number][color] = percent
    for number, metrics in connection.execute(sa.select(PREDICTIONS.c.number, PREDICTIONS.c.metrics)).all():
        error = find_share_error(asked[number], metrics)
        if error is not None:
            connection.execute(
                PREDICTIONS.update().where(PREDICTIONS.c.number == number).values(share_error=error)
            )


def downgrade() -> None:
    """Forget it."""
    op.drop_index("predictions_share_error", "predictions")
    op.drop_column("predictions", "share_error")

"""The first tables: predictions, shares, outputs, deliveries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "predictions",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("backend", sa.String(16), nullable=False),
        sa.Column("status", sa.String(64), nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("sent_prompt", sa.Text, nullable=False),
        sa.Column("inputs", sa.JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("deadline_at", TIME, nullable=False),
        sa.Column("cancel_requested_at", TIME),
        sa.Column("runner", sa.String(32)),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        sa.Column("remote_id", sa.String(128)),
        sa.Column("submitted_at", TIME),
        sa.Column("asked_at", TIME),
        sa.Column("started_at", TIME),
        sa.Column("completed_at", TIME),
        sa.Column("logs", sa.Text, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("error", sa.Text),
        sa.UniqueConstraint("backend", "remote_id", name="predictions_remote_id"),
    )
    op.create_index("predictions_status", "predictions", ["status"])
    op.create_table(
        "shares",
        sa.Column("prediction", sa.Integer, sa.ForeignKey("predictions.number"), primary_key=True),
        sa.Column("place", sa.Integer, primary_key=True),
        sa.Column("color", sa.String(2000), nullable=False),
        sa.Column("percent", sa.Float, nullable=False),
    )
    op.create_index("shares_color", "shares", ["color"])
    op.create_table(
        "outputs",
        sa.Column("prediction", sa.Integer, sa.ForeignKey("predictions.number"), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("source", sa.Text),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", TIME, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("taken_at", TIME),
        sa.Column("file", sa.String(64), unique=True),
        sa.Column("media_type", sa.String(32)),
        sa.Column("size", sa.Integer),
        sa.Column("sha256", sa.String(64)),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        sa.Column("record", sa.Text),
    )
    op.create_index("outputs_state", "outputs", ["state"])
    op.create_table(
        "deliveries",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("delivery_id", sa.String(128), nullable=False),
        sa.Column("prediction_id", sa.String(32)),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary),
        sa.Column("repetitions", sa.Integer, nullable=False),
        sa.Column("conflicts", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("remote_id", sa.String(128)),
        sa.Column("error", sa.Text),
        sa.UniqueConstraint("source", "delivery_id", name="deliveries_delivery_id"),
    )
    op.create_index("deliveries_state", "deliveries", ["state"])
    op.create_index("deliveries_received_at", "deliveries", ["received_at"])


def downgrade() -> None:
    """Remove the tables."""
    for table in ("deliveries", "outputs", "shares", "predictions"):
        op.drop_table(table)

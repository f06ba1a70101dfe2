"""Errors of predictions and outputs become JSON: code, field, message, values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic import op

if TYPE_CHECKING:
    from collections.abc import Callable

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = (
    sa.table("predictions", sa.column("number", sa.Integer), sa.column("error", sa.Text)),
    sa.table("outputs", sa.column("prediction", sa.Integer), sa.column("error", sa.Text)),
)


def upgrade() -> None:
    """Keep a line as an error of the code that is for any text."""
    _rewrite(
        lambda line: json.dumps(
            {"code": "prediction-failed", "field": None, "message": line, "values": {"reason": line}}
        )
    )


def downgrade() -> None:
    """Keep the line alone."""
    _rewrite(lambda error: str(json.loads(error)["message"]))


def _rewrite(change: Callable[[str], str]) -> None:
    connection = op.get_bind()
    for table in TABLES:
        key, error = table.c
        for number, text in connection.execute(sa.select(key, error).where(error.is_not(None))).all():
            connection.execute(table.update().where(key == number).values(error=change(text)))

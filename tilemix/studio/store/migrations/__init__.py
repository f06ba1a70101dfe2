"""The database's history, run by Alembic when the studio opens it."""

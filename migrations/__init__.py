"""Alembic revisions and the application of sql/."""

"""Satellite-image archives that live in PostgreSQL."""

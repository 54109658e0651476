"""Revisions; once released, one never changes."""

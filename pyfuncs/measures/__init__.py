"""Measures: of retrieval, and of hash codes."""

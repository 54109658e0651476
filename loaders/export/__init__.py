"""Patches written as files, and read back."""

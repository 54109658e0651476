"""Satellite products: read, cut into patches, stored."""

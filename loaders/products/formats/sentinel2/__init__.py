"""Sentinel-2 products, L1C and L2A: what they say of themselves, and their bands."""

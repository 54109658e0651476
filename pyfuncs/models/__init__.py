"""Encoders: the record of one, its weights, and what computes vectors with them."""

"""Encoders and hash functions: their versions, training, and encoding in bulk."""

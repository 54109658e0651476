"""Training of encoders and hash functions."""

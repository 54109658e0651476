"""The demonstration, its pictures, and the synthetic archive."""

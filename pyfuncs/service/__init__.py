"""The encoder process: what it says and hears, and how it works."""

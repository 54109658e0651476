"""Computation behind pgearth's PL/Python functions: rasters, features, networks, hashing. Importing it is cheap."""

__version__ = "0.1.0"

"""Weights that fit their architecture, for encoders and hash functions whose vectors and codes a test stores by itself."""

from __future__ import annotations

import numpy as np

from pgearth.pyfuncs.models import weights

NO_WEIGHTS = weights.dump({})
"""Those of the architecture spectral."""


def lsh_weights(bits: int, dimension: int) -> bytes:
    """Those of a hash function of the architecture lsh."""
    tensors = {"mean": np.zeros(dimension), "std": np.ones(dimension)}
    return weights.dump(tensors | {"hyperplanes": np.ones((bits, dimension), np.float32)})


def literal(content: bytes) -> str:
    """Bytes as they stand in SQL."""
    return f"'\\x{content.hex()}'::bytea"

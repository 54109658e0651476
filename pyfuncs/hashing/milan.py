"""The `milan` hash: a small network trained by metric learning (MiLaN; Roy, Sangineto, Demir and Sebe 2021,
Metric-learning-based deep hashing network for content-based retrieval of remote sensing images, GRSL 18(2)).

Three dense layers, 1024, 512 and as many as bits, LeakyReLU between them and a sigmoid at the end, whose outputs above
one half are the bits. `pyfuncs/training/milan.py` trains it.
"""

from collections.abc import Mapping

import numpy as np

from pgearth.pyfuncs.hashing.projection import Product, signs, standardise

LAYERS = ("hidden1", "hidden2", "output")
HIDDEN = (1024, 512)
NEGATIVE_SLOPE = 0.2


def hash_codes(weights: Mapping[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Hash vectors (n, d) to codes (n, bits) of bool, computed in float64.

    `weights` has `mean` (d) and `std` (d) and, of each of LAYERS, `<layer>.weight` (outputs, inputs) and `<layer>.bias`
    (outputs). Raises PgearthError when the vectors have another dimension.
    """
    layers = [
        (weights[f"{layer}.weight"].astype(np.float64), weights[f"{layer}.bias"].astype(np.float64)) for layer in LAYERS
    ]

    def logits(inputs: np.ndarray, product: Product) -> np.ndarray:
        for weight, bias in layers[:-1]:
            outputs = product(weight, inputs) + bias
            inputs = np.maximum(outputs, NEGATIVE_SLOPE * outputs)
        weight, bias = layers[-1]
        return product(weight, inputs) + bias

    # A sigmoid is above one half where its argument is positive.
    return signs(logits, standardise(weights, vectors))

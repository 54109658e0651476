"""The seam: batches of mixed patches, architectures by name, and imports that stay cheap."""

import subprocess
import sys

import numpy as np
import pytest

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing import lsh
from pgearth.pyfuncs.models import spectral
from pgearth.pyfuncs.models.encoder import BATCH_SIZE, Encoder, encode, hash_codes

RANDOM = np.random.default_rng(1)
COARSE = ("B01", "B09")


def encoder(**changes: object) -> Encoder:
    row = {
        "encoder_id": 1,
        "name": "spectral",
        "version": 1,
        "architecture": "spectral",
        "bands": spectral.BANDS,
        "input_size": None,
        "dimension": 128,
        "bits": None,
        "weights": {},
    }
    return Encoder(**(row | changes))


def patch(side: int) -> dict[str, np.ndarray]:
    return {
        band: RANDOM.integers(0, 10_000, (side // (6 if band in COARSE else 1),) * 2).astype(np.uint16)
        for band in spectral.BANDS
    }


def test_mixed_shapes_come_back_in_order() -> None:
    patches = [patch(side) for side in [6, 12, 6, 18, 12] * 2 + [6] * (2 * BATCH_SIZE + 1)]
    vectors = encode(encoder(), patches)
    assert vectors.shape == (len(patches), 128)
    assert vectors.dtype == np.float32
    for one, vector in zip(patches, vectors, strict=True):
        expected = spectral.features({band: pixels[None] for band, pixels in one.items()})[0]
        assert vector.tobytes() == expected.tobytes()


def test_further_bands_are_ignored() -> None:
    one = patch(6)
    np.testing.assert_array_equal(encode(encoder(), [one | {"SCL": np.ones((3, 3))}]), encode(encoder(), [one]))


def test_no_patches() -> None:
    assert encode(encoder(), []).shape == (0, 128)


def test_missing_band_is_named() -> None:
    incomplete = patch(6)
    del incomplete["B11"]
    with pytest.raises(PgearthError, match="missing band B11") as error:
        encode(encoder(), [patch(6), incomplete])
    assert "B01, B02, B03" in str(error.value.hint)


def test_size_is_checked_where_it_matters() -> None:
    sized = encoder(input_size=12)
    assert encode(sized, [patch(12)]).shape == (1, 128)
    with pytest.raises(PgearthError, match="18 x 18 pixels"):
        encode(sized, [patch(12), patch(18)])


def test_hash_codes_are_texts_of_bits() -> None:
    vectors = encode(encoder(), [patch(6) for _ in range(20)])
    weights = lsh.fit(vectors, bits=32, seed=1)
    hashing = encoder(name="lsh", architecture="lsh", bands=(), dimension=None, bits=32, weights=weights)
    codes = hash_codes(hashing, vectors)
    assert [[bit == "1" for bit in code] for code in codes] == lsh.hash_codes(weights, vectors).tolist()
    assert len(set(codes)) > 1


@pytest.mark.parametrize("architecture", ["resnet", "lsh"])
def test_architecture_that_encodes_nothing_is_refused(architecture: str) -> None:
    with pytest.raises(
        PgearthError, match=f"architecture '{architecture}', not one of onnx, resnet18, resnet50, spectral"
    ) as error:
        encode(encoder(architecture=architecture), [patch(6)])
    assert error.value.sqlstate == "42704"


def test_architecture_that_hashes_nothing_is_refused() -> None:
    with pytest.raises(PgearthError, match="architecture 'spectral', not one of itq, kslsh, lsh, milan, sign, trivial"):
        hash_codes(encoder(), np.ones((1, 128)))


def test_import_is_cheap() -> None:
    """In a fresh interpreter, as in a new backend: nothing else comes with it."""
    program = "import sys; before = set(sys.modules); import pyfuncs; print(sorted(set(sys.modules) - before))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "['pyfuncs']\n"


def test_encoders_import_no_heavy_library() -> None:
    program = "import sys, pgearth.pyfuncs.models.encoder; print({'torch', 'scipy', 'rasterio'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"

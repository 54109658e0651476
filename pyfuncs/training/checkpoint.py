"""What a training has to remember so that it can go on after it was killed: a safetensors file with a JSON record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from pgearth.pyfuncs.errors import DATA_CORRUPTED, PgearthError
from pgearth.pyfuncs.tensor_file import write_tensors

_RECORD = "pgearth"


def write(path: Path, tensors: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """Write tensors and what JSON can hold of the rest; the file takes an older one's place when it is whole."""
    write_tensors(path, tensors, {_RECORD: json.dumps(record)})


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Tensors and record that `write` wrote; None where there is no file. Raises PgearthError for any other file.

    Tensors of no dimensions come back with one.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            record = json.loads((file.metadata() or {})[_RECORD])
            return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, KeyError, ValueError) as error:
        raise PgearthError(
            f"{path}: not a checkpoint of a training: {error}",
            sqlstate=DATA_CORRUPTED,
            hint="Remove the file to train from the beginning, or name another folder.",
        ) from error

"""Arrays in a safetensors file that is mapped into memory, so that all backends share its pages."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = {"U64": np.uint64, "I64": np.int64, "I32": np.int32, "F32": np.float32}


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> int:
    """Write a file under `path`, where it appears only when it is whole; return its size in bytes."""
    from safetensors.numpy import save

    content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, dict(metadata))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    return len(content)


def map_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Tensors, read-only, and metadata of a file that `write_tensors` wrote.

    Raises OSError where there is none, or a part of one only, such as a backup may hold.
    """
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(size, length)))
        except ValueError as error:
            raise OSError(f"{path.name} is incomplete") from error
        metadata = header.pop("__metadata__", {})
        if 8 + size + max(entry["data_offsets"][1] for entry in header.values()) != length:
            raise OSError(f"{path.name} is incomplete")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensors = {}
    for name, entry in header.items():
        data = np.frombuffer(
            content,
            TYPES[entry["dtype"]],
            count=math.prod(entry["shape"]),
            offset=8 + size + entry["data_offsets"][0],
        )
        tensors[name] = data.reshape(entry["shape"])
    return tensors, metadata

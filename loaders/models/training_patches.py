"""Which patches a training learns from, and which tell how well it did: the same for encoders and hash functions."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from psycopg import Connection
from psycopg.sql import SQL

from pgearth import pyfuncs
from pgearth.loaders.archive.filters import search_call
from pgearth.pyfuncs.errors import PgearthError

MAY_REGISTER = """
select current_user, bool_or(has_function_privilege(oid, 'execute'))
from pg_proc
where pronamespace = 'eo'::regnamespace and proname = 'register_encoder'
"""


@dataclass(frozen=True)
class Chosen:
    """Ids of the patches to train on, and of those to validate on; no patch of the split `test` is among them."""

    training: list[int]
    validation: list[int]


def choose_patches(
    connection: Connection, filters: Mapping[str, Any], validation_fraction: float | None = None, seed: int = 0
) -> Chosen:
    """Divide the patches that pass `filters`, arguments of eo.filter, by the splits that the archive has them in.

    With `validation_fraction` it is by place instead: that share of the cells, at random, is for validation, the others
    are for training, so that no place is in both. Raises PgearthError where one of the two gets no patch.
    """
    query = SQL("select p.patch_id, p.cell, p.split from {search} p").format(search=search_call(filters))
    rows = connection.execute(query, filters).fetchall()
    if not rows:
        raise PgearthError("No patch passes the filters.", "Count them first: select eo.count_patches(...).")
    if validation_fraction is None:
        chosen = Chosen(*([row[0] for row in rows if row[2] == split] for split in ("train", "validation")))
        if not chosen.training or not chosen.validation:
            raise PgearthError(
                f"Of the {len(rows):,} patches that pass the filters {len(chosen.training):,} are of the split train,"
                f" {len(chosen.validation):,} of the split validation: both are needed.",
                "Widen the filters; or set places aside for validation, whatever the splits: --validation-fraction 0.2",
            )
        return chosen
    usable = [(patch_id, cell) for patch_id, cell, split in rows if split != "test"]
    cells = sorted({cell for _, cell in usable})
    if len(cells) < 2:
        raise PgearthError(
            f"The patches that pass the filters and are not of the split test are in {len(cells)} cells of about 5 km:"
            " there are no places to set aside.",
            "Widen the filters.",
        )
    number = min(max(round(validation_fraction * len(cells)), 1), len(cells) - 1)
    aside = set(np.random.default_rng(seed).permutation(cells)[:number].tolist())
    return Chosen(
        [patch_id for patch_id, cell in usable if cell not in aside],
        [patch_id for patch_id, cell in usable if cell in aside],
    )


def require_writer(connection: Connection) -> None:
    """Raise PgearthError for a role that could not store what it trains."""
    row = connection.execute(MAY_REGISTER).fetchone()
    assert row is not None
    role, allowed = row
    if not allowed:
        raise PgearthError(f"The role {role} may not store what it trains.", "Train as a member of eo_writer.")


def software() -> dict[str, str]:
    """Versions of what a training's result depends on, and its device, for the record of the training."""
    import torch

    return {
        "pgearth": pyfuncs.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads",
    }

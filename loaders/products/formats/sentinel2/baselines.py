"""Processing baselines of Sentinel-2, and the offset that pixels as ESA delivers them have since one of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

OFFSET = -0.1  # of products as ESA delivers them, since this baseline:
OFFSET_BASELINE = "04.00"
OFFSET_SINCE = datetime(2022, 1, 25, tzinfo=UTC)
# Of processors run outside ESA's ground segment, which keep the offset of what they are given.
UNKNOWN_BASELINE = "99.99"


def baseline_of(value: Any) -> str:
    """A processing baseline as it is written here, 04.00, from 4, "4.0", "0400" or "04.00".

    Raises ValueError for anything else.
    """
    text = str(value).strip()
    if re.fullmatch(r"\d{4}", text):
        text = f"{text[:2]}.{text[2:]}"
    match = re.fullmatch(r"(\d{1,2})(?:\.(\d{1,2}))?", text)
    if match is None:
        raise ValueError(f"{value!r} is no processing baseline")
    return f"{match[1]:0>2}.{match[2] or '':0<2}"


def delivered_offset(baseline: str | None, sensing_time: datetime | None) -> float | None:
    """The offset of a product as ESA delivers it, by its baseline; None where that does not tell."""
    if baseline is None or (baseline == UNKNOWN_BASELINE and (sensing_time is None or sensing_time >= OFFSET_SINCE)):
        return None
    return OFFSET if OFFSET_BASELINE <= baseline < UNKNOWN_BASELINE else 0.0

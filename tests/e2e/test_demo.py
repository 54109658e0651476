"""The demo as a user runs it, with the sample data and without."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psycopg
import pytest
from click.testing import Result
from PIL import Image

from loaders.demo import annotate_countries
from loaders.nuts import load_nuts
from loaders.patches import Patch, Product, write_patches, write_products

PICTURES = ["contact_sheet.png", "label_chart.png", "result_map.png"]
COUNTS = """
select 'patch', count(*) from eo.patch union all select 'raster', count(*) from eo.patch_raster
union all select 'code', count(*) from eo.patch_bucket union all select 'corine', count(*) from eo.corine
union all select 'nuts', count(*) from eo.nuts union all select 'load', count(*) from eo.load order by 1
"""


def assert_pictures(folder: Path) -> None:
    for name in PICTURES:
        pixels = np.asarray(Image.open(folder / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 200, name
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, f"{name} is nearly blank"


def test_with_the_sample(
    module_archive: psycopg.Connection, run_pgearth: Callable[..., Result], sample: Path, tmp_path: Path
) -> None:
    result = run_pgearth(module_archive, "demo", "--sample", sample, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    counts = dict(module_archive.execute(COUNTS).fetchall())
    # The catalogue, one Sentinel-1 patch of v2 with pixels, 20 patches of v1, 163 of scenes, and the grid over CORINE.
    assert counts["patch"] == 549_488 + 1 + 20 + 163 + 475
    assert counts["code"] == 11 + 1 + 163
    assert counts["corine"] == 136 + 1158
    assert counts["nuts"] == 2010
    for printed in (
        "from eo.similar(:'patch'",
        "from eo.similar_to_image(decode(:'image', 'base64')",
        "label_match => 'at_least'",
        "from eo.label_statistics(",
        "% Discontinuous urban fabric",
    ):
        assert printed in result.output
    assert re.search(r"549489\s*\| 99\.16\s*\| 99\.60", result.output), "agreement of countries"
    assert_pictures(tmp_path)
    again = run_pgearth(module_archive, "demo", "--sample", sample, "--output", tmp_path)
    assert again.exit_code == 0, again.output
    assert dict(module_archive.execute(COUNTS).fetchall()) == counts


def test_an_interrupted_annotation_of_countries_goes_on(archive: psycopg.Connection, sample: Path) -> None:
    """Cancelled after some patches had theirs, it does the others in the next run, and nothing in the one after."""
    time = datetime(2018, 7, 1, tzinfo=UTC)
    load_nuts(archive, sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson")
    write_products(archive, [Product("p", "sentinel-2a", "L2A", time)])
    with archive.transaction():
        write_patches(
            archive,
            "bigearthnet-v2",
            [  # where Belgium, Germany and the Netherlands meet
                Patch(f"patch-{n}", "p", "sentinel-2a", time, 32632, x, 5_626_000, x + 1200, 5_627_200, country="LU")
                for n, x in enumerate(range(285_000, 297_000, 1200))
            ],
        )
    archive.execute("update eo.patch set country_codes = '{BE,DE}' where name = 'patch-0'")
    assert annotate_countries(archive) == {"patches of the catalogue": 10}
    codes = archive.execute("select distinct unnest(country_codes) from eo.patch order by 1").fetchall()
    assert codes == [("BE",), ("DE",), ("NL",)]
    assert annotate_countries(archive) == {"patches of the catalogue": 0}


def test_without_the_sample(
    archive: psycopg.Connection, run_pgearth: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loaders.demo.SYNTHETIC_PATCHES", 60)
    result = run_pgearth(archive, "demo", "--sample", tmp_path / "nowhere", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "making a synthetic archive instead" in result.output
    counts = dict(archive.execute(COUNTS).fetchall())
    assert counts["patch"] == counts["code"] == 60
    assert archive.execute("select count(*) from eo.patch where label_ids is not null").fetchone() == (60,)
    assert_pictures(tmp_path)
    assert run_pgearth(archive, "demo", "--sample", "", "--output", tmp_path).exit_code == 0
    assert dict(archive.execute(COUNTS).fetchall()) == counts

"""The demo as a user runs it, with the sample data and without."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psycopg
import pytest
from click.testing import Result
from PIL import Image

from tests.conftest import CHECKOUT
from tests.sql.base.test_help import run_examples
from tests.sql.public_calls import upload

PICTURES = ["query_by_example.png", "label_chart.png", "result_map.png"]
SYNTHETIC_PATCHES = 60
COUNTS = """
select 'patch', count(*) from eo.patch union all select 'raster', count(*) from eo.patch_raster
union all select e.name || ' code', count(*) from eo.patch_bucket join eo.encoder e using (encoder_id)
where segment = 0 group by e.name
union all select e.name || ' vector', count(*) from eo.embedding join eo.encoder e using (encoder_id) group by e.name
union all select 'segment code', count(*) from eo.patch_bucket where segment > 0
union all select 'corine', count(*) from eo.corine where source not like 'synthetic%'
union all select 'encoder', count(*) from eo.encoder
union all select 'nuts', count(*) from eo.nuts union all select 'load', count(*) from eo.load
union all select 'layer', count(*) from pg_tables where schemaname = 'eo_layers' order by 1
"""


def assert_pictures(folder: Path) -> None:
    for name in PICTURES:
        pixels = np.asarray(Image.open(folder / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 200, name
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, f"{name} is nearly blank"


@dataclass(frozen=True)
class Demo:
    """The archive that the demo made of the sample data, what it printed, and its folder of pictures."""

    archive: psycopg.Connection
    output: str
    pictures: Path


@pytest.fixture(scope="module")
def demo(
    module_archive: psycopg.Connection,
    run_pgearth: Callable[..., Result],
    sample: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Demo:
    pictures = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        make_smaller(patch)
        result = run_pgearth(module_archive, "demo", "--sample", sample, "--output", pictures)
    assert result.exit_code == 0, result.output
    return Demo(module_archive, result.output, pictures)


def make_smaller(patch: pytest.MonkeyPatch) -> None:
    """Have the demo make fewer patches and train less on them."""
    for name, value in {"SYNTHETIC_PATCHES": SYNTHETIC_PATCHES, "NETWORK_EPOCHS": 1, "HASH_STEPS": 30}.items():
        patch.setattr(f"pgearth.loaders.demo.demo.{name}", value)


def test_with_the_sample(demo: Demo, run_pgearth: Callable[..., Result], sample: Path) -> None:
    counts = dict(demo.archive.execute(COUNTS).fetchall())
    # The catalogue, one Sentinel-1 patch of v2 with pixels, 20 patches of v1, 163 of scenes, and the grid over CORINE.
    assert counts["patch"] == 549_488 + 1 + 20 + 163 + 475 + SYNTHETIC_PATCHES
    assert counts["lsh code"] == counts["spectral vector"] == 11 + 1 + 163 + SYNTHETIC_PATCHES
    assert counts["milan code"] == counts["cnn vector"] == counts["lsh code"]
    assert counts["segment code"] == 4 * counts["lsh code"], "quadrants"
    assert counts["encoder"] == 4
    assert counts["corine"] == 136 + 1158
    assert counts["nuts"] == 2010
    assert counts["layer"] == 2, "the raster layer of a scene, and its overview"
    for printed in (
        "from eo.similar(:'patch'",
        "encoder => 'milan'",
        "from eo.similar_to_image(decode(:'image', 'base64')",
        "from eo.similar_to_vector(eo.example_vector(:'positives', :'negatives')",
        "from eo.similar_segments(:'patch'",
        "from eo.similar_change(:'before', :'after'",
        " eo_layers.s2b_msil2a_20200223t032739_n9999_r018_t48qu",
        "label_match => 'at_least'",
        "from eo.label_statistics(",
        "% Discontinuous urban fabric",
    ):
        assert printed in demo.output
    assert "(0 rows)" not in demo.output
    assert re.search(r"549489\s*\| 99\.16\s*\| 99\.60", demo.output), "agreement of countries"
    assert_pictures(demo.pictures)
    with pytest.MonkeyPatch.context() as patch:
        make_smaller(patch)
        again = run_pgearth(demo.archive, "demo", "--sample", sample, "--output", demo.pictures)
    assert again.exit_code == 0, again.output
    assert dict(demo.archive.execute(COUNTS).fetchall()) == counts


def psql(demo: Demo, document: str, role: str, sample: Path, folder: Path) -> tuple[str, str]:
    """Run a document's SQL by psql in this folder, as somebody of this role; return the SQL and what psql printed."""
    session = "".join(re.findall(r"```sql\n(.*?)```", (CHECKOUT / document).read_text(), re.S))
    server = demo.archive.info
    address = {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": server.user, "PGDATABASE": server.dbname}
    options = {"PGEARTH_SAMPLE": str(sample), "PGOPTIONS": f"-c role={role}", "LC_ALL": "C.UTF-8"}
    result = subprocess.run(
        ["psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1"],
        input=session,
        cwd=folder,
        env={**os.environ, **address, **options},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return session, result.stdout


@pytest.mark.parametrize(
    ("document", "role", "least"),
    [("README.md", "eo_reader", 15), ("docs/search.md", "eo_reader", 40), ("docs/evaluation.md", "eo_writer", 5)],
)
def test_every_question_answers_from_psql(
    demo: Demo, sample: Path, tmp_path: Path, document: str, role: str, least: int
) -> None:
    """Each statement of the document finds something, and whoever has the role may run it."""
    session, printed = psql(demo, document, role, sample, tmp_path)
    results = [int(rows) for rows in re.findall(r"^\((\d+) rows?\)$", printed, re.M)]
    assert len(results) == len(re.findall(r"^select [^;\\]*;", session, re.M)) >= least
    assert min(results) > 0


def test_the_qgis_guide(demo: Demo, sample: Path, tmp_path: Path) -> None:
    psql(demo, "docs/qgis.md", "eo_writer", sample, tmp_path)
    assert min(Image.open(tmp_path / "sheet.png").size) > 200
    layers = demo.archive.execute(
        "select r_table_name, num_bands from raster_columns where r_table_schema = 'eo_layers'"
    )
    assert {("infrared", 3), ("s2a_msil2a_20200219t112111_n0214_r037_t29rkh", 3)} <= {
        (re.sub(r"_\d+$", "", name), bands) for name, bands in layers
    }


def test_the_examples_of_the_help(demo: Demo, sample: Path, tmp_path: Path) -> None:
    """The last of those that use the demo's archive: it makes an older encoder the current one, for example."""
    # Nothing is empty, for the guide to searches has made a collection.
    assert run_examples(demo.archive, tmp_path, upload(sample, "S2A_MSIL2A_20170613T101031_87_48")) == set()


def test_without_the_sample(
    archive: psycopg.Connection, run_pgearth: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_smaller(monkeypatch)
    result = run_pgearth(archive, "demo", "--sample", tmp_path / "nowhere", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "the archive will be a synthetic one" in result.output
    counts = dict(archive.execute(COUNTS).fetchall())
    assert counts["patch"] == counts["lsh code"] == counts["milan code"] == SYNTHETIC_PATCHES
    assert counts["segment code"] == 4 * SYNTHETIC_PATCHES
    assert counts["layer"] > 0
    assert archive.execute("select count(*) from eo.patch where label_ids is not null").fetchone() == (
        SYNTHETIC_PATCHES,
    )
    assert_pictures(tmp_path)
    assert run_pgearth(archive, "demo", "--sample", "", "--output", tmp_path).exit_code == 0
    assert dict(archive.execute(COUNTS).fetchall()) == counts

"""Reference maps against the real one of BigEarthNet v2, and against rasterio."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psycopg
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from psycopg import errors
from pyproj import Transformer
from rasterio.features import shapes

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.loaders.reference.corine import class_label_ids, store_polygons
from pgearth.pyfuncs.pixels.rasters import from_wkb

TIME = datetime(2017, 6, 13, tzinfo=UTC)
PATCH = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"


@pytest.fixture(scope="module")
def real_map(sample: Path) -> rasterio.DatasetReader:
    (path,) = (sample / "bigearthnet-v2" / "Reference_Maps").rglob(f"{PATCH}_reference_map.tif")
    with rasterio.open(path) as dataset:
        yield dataset


@pytest.fixture(scope="module")
def mapped(module_archive: psycopg.Connection, real_map: rasterio.DatasetReader) -> psycopg.Connection:
    """The real map's patch, and its classes as CORINE polygons."""
    write_products(module_archive, [Product("p", "sentinel-2a", "L2A", TIME)])
    west, south, east, north = real_map.bounds
    with module_archive.transaction():
        write_patches(
            module_archive,
            "s",
            [Patch(PATCH, "p", "sentinel-2a", TIME, real_map.crs.to_epsg(), west, south, east, north)],
        )
    transformer = Transformer.from_crs(real_map.crs, 3035, always_xy=True)
    label_ids = class_label_ids(module_archive)
    polygons = [
        (
            label_ids[str(int(code))],
            shapely.transform(shapely.geometry.shape(outline), transformer.transform, interleaved=False),
        )
        for outline, code in shapes(real_map.read(1), transform=real_map.transform)
    ]
    assert len(polygons) == 5
    with module_archive.transaction():
        store_polygons(
            module_archive,
            "real map",
            [
                (label_id, shapely.to_wkb(shapely.set_srid(shapely.multipolygons([polygon]), 3035), include_srid=True))
                for label_id, polygon in polygons
            ],
        )
    return module_archive


def reference_map(connection: psycopg.Connection, patch: str) -> bytes:
    row = connection.execute("select st_aswkb(eo.reference_map(%s))", (patch,)).fetchone()
    assert row is not None
    return bytes(row[0])


def test_polygons_of_the_real_map_give_it_back(mapped: psycopg.Connection, real_map: rasterio.DatasetReader) -> None:
    """Format, place and every pixel; before pieces of the polygons are derived, and from the pieces."""
    for pieces in (0, 1):
        row = mapped.execute("select count(*) from eo_internal.corine_part").fetchone()
        assert row is not None and min(row[0], 1) == pieces
        found = from_wkb(reference_map(mapped, PATCH))
        assert found.srid == real_map.crs.to_epsg()
        assert found.transform == (10, -10, real_map.bounds.left, real_map.bounds.top, 0, 0)
        assert found.nodata == (real_map.nodata,)
        assert found.bands[0].dtype == real_map.dtypes[0]
        np.testing.assert_array_equal(found.bands[0], real_map.read(1))
        mapped.execute("select eo.derive_corine_parts()")


def test_labels_by_the_rule_are_those_of_the_real_catalogue(
    mapped: psycopg.Connection, real_map: rasterio.DatasetReader, sample: Path
) -> None:
    mapped.execute("call eo.annotate(rule => 'bigearthnet-v2', \"replace\" => true)")
    labels = mapped.execute(
        """
        select array_agg(distinct b.name)
        from eo.patch p, unnest(p.label_ids) c
        join eo.label_closure k on k.descendant_id = c
        join eo.label b on b.label_id = k.ancestor_id and b.scheme = 'ben19'
        """
    ).fetchone()
    catalogue = pq.read_table(
        sample / "bigearthnet-v2" / "metadata.parquet",
        columns=["patch_id", "labels"],
        filters=[("patch_id", "=", PATCH)],
    ).to_pylist()
    assert labels is not None and len(catalogue) == 1
    spelled = mapped.execute(
        "select array_agg(l.name order by l.name) from eo.label_spelling s join eo.label l using (label_id)"
        " where s.scheme = 'ben19' and s.spelling = any (%s)",
        (catalogue[0]["labels"],),
    ).fetchone()
    assert spelled is not None and sorted(labels[0]) == spelled[0] and len(spelled[0]) == len(catalogue[0]["labels"])
    stored = mapped.execute("select label_ids, label_fraction from eo.patch").fetchone()
    codes, counts = np.unique(real_map.read(1), return_counts=True)
    assert stored is not None and stored[0] == codes.tolist()
    np.testing.assert_allclose(stored[1], counts / 120**2, rtol=1e-6)


@pytest.mark.parametrize(("width", "labelled"), [(900, False), (910, True)])
def test_a_quarter_without_a_class_is_too_much(archive: psycopg.Connection, width: int, labelled: bool) -> None:
    """Of 120 columns of pixels, 30 and 29 have a class that BigEarthNet-19 leaves out (132, dump sites)."""
    x, y = 4_321_000, 3_210_000
    write_products(archive, [Product("p", "sentinel-2a", "L2A", TIME)])
    with archive.transaction():
        write_patches(archive, "s", [Patch("p", "p", "sentinel-2a", TIME, 3035, x, y, x + 1200, y + 1200)])
    edge = x + width
    for code, left, right in ((211, x, edge), (132, edge, x + 1200)):
        archive.execute(
            "insert into eo.corine (source, label_id, geom) values ('t', %s, st_multi(st_makeenvelope(%s, %s, %s, %s, 3035)))",
            (code, left, y, right, y + 1200),
        )
    archive.execute("call eo.annotate(rule => 'bigearthnet-v2')")
    row = archive.execute("select label_ids, label_fraction from eo.patch").fetchone()
    assert row == (([132, 211], pytest.approx([29 / 120, 91 / 120])) if labelled else (None, None))


def test_places_without_land_cover_are_nodata(archive: psycopg.Connection) -> None:
    write_products(archive, [Product("p", "sentinel-2a", "L2A", TIME)])
    with archive.transaction():
        write_patches(
            archive, "s", [Patch("p", "p", "sentinel-2a", TIME, 32632, 600_000, 5_700_000, 601_200, 5_701_200)]
        )
    raster = from_wkb(reference_map(archive, "p"))
    assert raster.bands[0].shape == (120, 120) and not raster.bands[0].any()


def test_what_has_no_reference_map(archive: psycopg.Connection) -> None:
    with pytest.raises(errors.NoDataFound, match='no patch "nowhere"') as caught:
        archive.execute("select eo.reference_map('nowhere')")
    assert caught.value.diag.message_hint
    write_products(archive, [Product("p", "sentinel-2a", "L2A", TIME)])
    with archive.transaction():
        write_patches(archive, "s", [Patch("p", "p", "sentinel-2a", TIME, 4326, 7, 51, 7.1, 51.1)])
    with pytest.raises(errors.FeatureNotSupported, match="4326"):
        archive.execute("select eo.reference_map('p')")

"""Sentinel-1 GRD: real metadata, real backscatter put back into the radar's geometry and found again on the map."""

from __future__ import annotations

import shutil
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.windows import Window

from pgearth.loaders.products.files import Given, ProductFiles
from pgearth.loaders.products.formats.known import open_product
from pgearth.loaders.products.formats.sentinel1 import CalibrationTable, utm_zone
from pgearth.pyfuncs.errors import PgearthError

NAME = "S1A_IW_GRDH_1SDV_20210809T173953_20210809T174018_039156_049F13_6FF8"
METADATA = Path(__file__).parent / "data" / "sentinel1"
STEM = "s1a-iw-grd-{}-20210809t173953-20210809t174018-039156-049f13-{}"
MEASUREMENT = f"measurement/{STEM.format('vv', '001')}.tiff"
CALIBRATION = f"annotation/calibration/calibration-{STEM.format('vv', '001')}.xml"
BACKSCATTER = Path("ssl4eo/s1/0000200/S1A_IW_GRDH_1SDV_20200607T010800_20200607T010825_032904_03CFBA_D457/VV.tif")
LINES, PIXELS = 700, 1000


def open_path(path: Path, **given) -> ProductFiles:
    return open_product(path, Given(**given))


def sigma_nought(sample: Path) -> np.ndarray:
    """Real backscatter in decibels, stretched to the image."""
    with rasterio.open(sample / BACKSCATTER) as file:
        return file.read(1, out_shape=(LINES, PIXELS)).astype(float)


def amplitude(folder: Path) -> np.ndarray:
    """The calibration's A along a line; its two vectors are the same."""
    content = (folder / CALIBRATION).read_text()
    pixels, values = (
        np.array(content.split(f'<{name} count="26">')[1].split("<")[0].split(), dtype=float)
        for name in ("pixel", "sigmaNought")
    )
    return np.interp(np.arange(PIXELS), pixels, values)


def write_measurement(folder: Path, numbers: np.ndarray, place: Affine, utm: int = 32631) -> None:
    """A measurement whose image lies on the map as the affine transformation `place` says."""
    to_degrees = Transformer.from_crs(utm, 4326, always_xy=True)
    points = []
    for line in np.linspace(0, numbers.shape[0], 10):
        for pixel in np.linspace(0, numbers.shape[1], 21):
            longitude, latitude = to_degrees.transform(*(place @ (pixel, line)))
            points.append(GroundControlPoint(line, pixel, longitude, latitude, 0))
    (folder / "measurement").mkdir(exist_ok=True)
    height, width = numbers.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": 1, "dtype": "uint16"}
    with rasterio.open(folder / MEASUREMENT, "w", gcps=points, crs="EPSG:4326", **profile) as file:
        file.write(numbers, 1)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A writable copy of the metadata."""
    return Path(shutil.copytree(METADATA, tmp_path / f"{NAME}.SAFE", copy_function=shutil.copyfile))


# The orbit's heading, an ascending one, turns the image by some 12 degrees; lines come from south to north.
PLACE = Affine.translation(500_003, 5_050_007) @ Affine.rotation(-12) @ Affine.scale(10, -10)


@pytest.fixture
def complete(folder, sample) -> tuple[Path, np.ndarray]:
    """A product whose image has a real scene's backscatter, and the image's digital numbers."""
    numbers = np.rint(amplitude(folder) * 10 ** (sigma_nought(sample) / 20)).astype("uint16")
    numbers[:, :30] = 0  # as at the borders of old products
    write_measurement(folder, numbers, PLACE)
    return folder, numbers


def test_metadata(folder):
    files = open_path(folder)
    product = files.product
    assert (product.name, product.platform, product.level) == (NAME, "sentinel-1a", "GRD")
    assert product.sensing_time == datetime(2021, 8, 9, 17, 39, 53, 153776, tzinfo=UTC)
    assert product.end_time == datetime(2021, 8, 9, 17, 40, 18, 152800, tzinfo=UTC)
    assert product.processed_at == datetime(2021, 8, 9, 20, 19, 58, tzinfo=UTC)
    assert (product.processing_baseline, product.relative_orbit) == ("003.31", 59)
    assert (product.mgrs_tile, product.cloud_cover, product.scales) == (None, None, None)
    corners = [(1.512143, 46.03389), (4.85136, 46.436539), (5.188996, 44.938713), (1.937196, 44.536255)]
    assert shapely.from_wkb(product.footprint).equals(shapely.Polygon(corners))
    assert "IW" in str(product.metadata["manifest.safe"])
    assert (files.expected, files.bands, files.grid) == (("VV", "VH"), (), "aligned:120")
    when = datetime(2001, 1, 1, tzinfo=UTC)
    given = open_path(folder, name="mine", sensing_time=when, platform="sentinel-1b").product
    assert (given.name, given.sensing_time, given.platform) == ("mine", when, "sentinel-1b")


def test_sigma_nought_on_the_map(complete, sample):
    folder, numbers = complete
    (band,) = open_path(folder).bands
    assert (band.name, band.offset, band.srid) == ("VV", 0, None)
    band = deepcopy(band)  # as it gets to worker processes
    with band.open() as dataset:
        assert dataset.crs.to_epsg() == 32631
        assert tuple(dataset.transform)[:6] == (10, 0, dataset.bounds.left, 0, -10, dataset.bounds.top)
        assert dataset.bounds.left % 10 == dataset.bounds.top % 10 == 0
        window = Window(0, 0, dataset.width, dataset.height)
        decibels = band.read(dataset, window)
        assert decibels.dtype == dataset.dtypes[0] == "float32"
        assert np.isnan(dataset.nodata) and np.isnan(band.nodata)
        columns, rows = np.meshgrid(np.arange(dataset.width) + 0.5, np.arange(dataset.height) + 0.5)
        pixel, line = ~PLACE @ (dataset.transform @ (columns, rows))
        part = band.read(dataset, Window(300, 200, 120, 90))
    np.testing.assert_allclose(part, decibels[200:290, 300:420], atol=1e-4)
    inside = (line >= 0) & (line < LINES) & (pixel >= 0) & (pixel < PIXELS)
    near_edge = np.abs(line - np.rint(line)) + np.abs(pixel - np.rint(pixel)) < 0.05  # of two pixels
    line, pixel = (np.where(inside, axis, 0).astype(int) for axis in (line, pixel))
    with np.errstate(divide="ignore"):
        expected = 20 * np.log10(numbers[line, pixel] / amplitude(folder)[pixel])
    expected[~inside | np.isinf(expected)] = np.nan
    agree = np.isclose(decibels, expected, atol=0.002, equal_nan=True)  # A changes by 0.004 dB over 40 pixels
    assert agree[~near_edge].mean() > 0.98
    valid = inside & ~np.isnan(decibels)
    assert valid.mean() > 0.6
    # digital numbers are whole, so what comes back is the scene's backscatter to less than 1 %
    assert np.median(np.abs(decibels - sigma_nought(sample)[line, pixel])[valid & agree]) < 0.05


def test_zip(complete, tmp_path):
    folder, _ = complete
    archive = Path(shutil.make_archive(str(tmp_path / NAME), "zip", folder.parent, folder.name))
    zipped, unpacked = open_path(archive), open_path(folder)
    assert (zipped.product.name, zipped.sources) == (NAME, (archive,))
    with zipped.bands[0].open() as inside, unpacked.bands[0].open() as outside:
        window = Window(400, 300, 100, 100)
        expected = unpacked.bands[0].read(outside, window)
        np.testing.assert_array_equal(zipped.bands[0].read(inside, window), expected)
    assert np.isfinite(expected).all()


def test_a_conversion_that_wraps_the_processing(complete):
    """CDSE's COGs: the name and the files end in COG, and a step of the conversion is put around ESA's processing."""
    folder, _ = complete
    expected = vars(open_path(folder).product)
    manifest = (folder / "manifest.safe").read_text()
    start, end = manifest.index("<safe:processing"), manifest.rindex("</safe:processing>") + len("</safe:processing>")
    wrapped = (
        '<safe:processing name="COG Conversion" start="2023-01-01T00:00:00Z">'
        '<safe:facility organisation="CloudFerro"><safe:software name="Sentinel-1 COGifier" version="001.00"/>'
        f'</safe:facility><safe:resource name="x" role="y">{manifest[start:end]}</safe:resource></safe:processing>'
    )
    (folder / "manifest.safe").write_text(manifest[:start] + wrapped + manifest[end:])
    cog = folder.rename(folder.with_name(f"{NAME}_COG.SAFE"))
    for file in (MEASUREMENT, CALIBRATION):
        path = cog / file
        path.rename(path.with_stem(f"{path.stem}-cog"))
    files = open_path(cog)
    for fact in ("processing_baseline", "processed_at", "platform", "sensing_time", "relative_orbit"):
        assert getattr(files.product, fact) == expected[fact]
    assert files.product.name == f"{NAME}_COG"
    assert [band.name for band in files.bands] == ["VV"]


def test_no_processing_by_esa(folder):
    rewrite("manifest.safe", "Sentinel-1 IPF", "another")(folder)
    with pytest.raises(PgearthError, match="no processing by the Sentinel-1 IPF"):
        open_path(folder)


def test_look_up_table_is_bilinear():
    table = CalibrationTable(
        np.array([0.0, 100.0, 250.0]),
        (np.array([0.0, 40.0, 80.0]), np.array([0.0, 40.0, 80.0]), np.array([0.0, 50.0, 80.0])),
        (np.array([1.0, 2.0, 4.0]), np.array([3.0, 6.0, 9.0]), np.array([5.0, 6.0, 7.0])),
    )
    line, pixel = np.array([[0.0, 50, 100], [175, 250, 400]]), np.array([[0.0, 20, 60], [40, 50, 90]])
    expected = [[1, (1.5 + 4.5) / 2, 7.5], [(6 + 5.8) / 2, 6, 7]]
    np.testing.assert_allclose(table.at(line, pixel), expected)


def test_scene_across_the_antimeridian(folder):
    """In zone 60, with control points on both sides of 180 degrees."""
    manifest = (folder / "manifest.safe").read_text()
    corners = "46.0,179.5 46.2,-179.0 44.9,-179.0 44.5,179.8"
    old = manifest[manifest.index("<gml:coordinates>") + 17 : manifest.index("</gml:coordinates>")]
    (folder / "manifest.safe").write_text(manifest.replace(old, corners))
    place = Affine.translation(730_000, 5_000_000) @ Affine.rotation(-12) @ Affine.scale(10, -10)
    write_measurement(folder, np.full((LINES, PIXELS), 500, "uint16"), place, utm=32660)
    files = open_path(folder)
    assert len(shapely.get_parts(shapely.from_wkb(files.product.footprint))) == 2
    (band,) = files.bands
    assert band.utm == 32601
    with band.open() as dataset:
        assert dataset.width < 1.2 * PIXELS
        decibels = band.read(dataset, Window(0, 0, dataset.width, dataset.height))
    assert np.isfinite(decibels).sum() == pytest.approx(LINES * PIXELS, rel=0.01)


@pytest.mark.parametrize(
    ("box", "srid"),
    [
        ((1, 44, 5, 46), 32631),
        ((-75, -10, -71, -8), 32718),
        ((179, 10, 179.9, 11), 32660),
        ((-179.9, -11, -179, -10), 32701),
    ],
)
def test_utm_zone(box, srid):
    assert utm_zone(shapely.box(*box)) == srid


# ---- bad input ----


def no_calibration(folder: Path) -> None:
    (folder / CALIBRATION).unlink()


def cut_calibration(folder: Path) -> None:
    (folder / CALIBRATION).write_text((folder / CALIBRATION).read_text()[:1500])


def rewrite(file: str, old: str, new: str):
    def change(folder: Path) -> None:
        content = (folder / file).read_text()
        assert old in content
        (folder / file).write_text(content.replace(old, new))

    return change


BAD = {
    "no calibration": (no_calibration, rf"{MEASUREMENT}: no {CALIBRATION} beside it"),
    "cut calibration": (cut_calibration, rf"{CALIBRATION}: not valid XML"),
    "no vectors": (rewrite(CALIBRATION, "calibrationVector>", "vector>"), "no calibrationVector"),
    "short vector": (rewrite(CALIBRATION, "6.628682e+02 ", ""), "does not fit its pixels"),
    "zero": (rewrite(CALIBRATION, "6.628682e+02 ", "0 "), "does not fit its pixels"),
    "no polarisation": (rewrite("manifest.safe", ">VV<", ">XX<"), "no known polarisations: VH, XX"),
    "no time": (rewrite("manifest.safe", "startTime>", "time>"), "not valid metadata: no startTime"),
    "no footprint": (rewrite("manifest.safe", "46.033890,1.512143 ", "46.033890 "), "not valid metadata"),
    "no orbit": (rewrite("manifest.safe", ">59<", "><"), "not valid metadata"),
}


@pytest.mark.parametrize("damage", BAD)
def test_bad_product(complete, damage):
    folder, _ = complete
    change, message = BAD[damage]
    change(folder)
    with pytest.raises(PgearthError, match=message) as error:
        open_path(folder)
    assert str(folder) in str(error.value)
    assert error.value.hint


def test_other_products_of_sentinel_1(folder):
    for name in (NAME.replace("GRDH", "SLC_"), "S1A_something"):
        folder = folder.rename(folder.with_name(f"{name}.SAFE"))
        with pytest.raises(PgearthError, match="no GRD product of Sentinel-1"):
            open_path(folder)


def test_measurement_without_control_points(folder):
    write_measurement(folder, np.ones((50, 60), "uint16"), PLACE)
    with rasterio.open(folder / MEASUREMENT, "w", driver="GTiff", width=60, height=50, count=1, dtype="uint16") as file:
        file.write(np.ones((50, 60), "uint16"), 1)
    (band,) = open_path(folder).bands
    with pytest.raises(rasterio.errors.RasterioError, match="no ground control points"):
        band.open()

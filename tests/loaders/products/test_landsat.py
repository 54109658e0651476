"""Landsat 8 and 9: a real MTL file in its three encodings, with real pixels of another sensor; what can be wrong."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin
from rasterio.windows import Window

from pgearth.loaders.products.files import Given, ProductFiles
from pgearth.loaders.products.formats.known import open_product
from pgearth.loaders.products.formats.landsat import parse_odl
from pgearth.loaders.products.load import Options, load_product
from pgearth.pyfuncs.errors import PgearthError

LEVEL_2 = "LC09_L2SP_010065_20220129_20220131_02_T1"
LEVEL_1 = "LC09_L1TP_010065_20220129_20220129_02_T1"
MTL = Path(__file__).parent / "data" / "landsat" / f"{LEVEL_2}_MTL.txt"
BANDS_2 = [*(f"SR_B{number}" for number in range(1, 8)), "ST_B10"]
BANDS_1 = [f"B{number}" for number in range(1, 12)]


def groups() -> dict:
    return parse_odl(MTL.read_text())


def level_1() -> dict:
    """The metadata of the Level 1 product, which those of Level 2 have among them, in their place in a file of its own."""
    document = groups()["LANDSAT_METADATA_FILE"]
    record = document["LEVEL1_PROCESSING_RECORD"]
    contents = {**document["PRODUCT_CONTENTS"], "PROCESSING_LEVEL": "L1TP", "LANDSAT_PRODUCT_ID": LEVEL_1}
    kept = {name: group for name, group in document.items() if not name.startswith("LEVEL2")}
    return {"LANDSAT_METADATA_FILE": kept | {"PRODUCT_CONTENTS": contents, "LEVEL1_PROCESSING_RECORD": record}}


def as_xml(document: dict) -> bytes:
    root = ElementTree.Element("LANDSAT_METADATA_FILE")
    for name, group in document["LANDSAT_METADATA_FILE"].items():
        element = ElementTree.SubElement(root, name)
        for key, value in group.items():
            ElementTree.SubElement(element, key).text = value
    return ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)


def write_bands(folder: Path, product: str, bands: list[str], sample: Path) -> None:
    """Real pixels in the product's place, 50 times as large."""
    with rasterio.open(sample / "sentinel2-cog/S2A_29RKH_20200219_0_L2A/B04.tif") as file:
        pixels = file.read(1, out_shape=(155, 152))
    profile = {"driver": "GTiff", "width": 152, "height": 155, "count": 1, "dtype": "uint16", "crs": "EPSG:32617"}
    with rasterio.open(
        folder / f"{product}_{bands[0]}.TIF", "w", transform=from_origin(491985, -683685, 1500, 1500), **profile
    ) as file:
        file.write(pixels, 1)
    for band in bands[1:]:
        shutil.copyfile(folder / f"{product}_{bands[0]}.TIF", folder / f"{product}_{band}.TIF")


@pytest.fixture
def folder(sample, tmp_path) -> Path:
    """A complete Level 2 product."""
    folder = tmp_path / LEVEL_2
    folder.mkdir()
    shutil.copyfile(MTL, folder / MTL.name)
    write_bands(folder, LEVEL_2, [*BANDS_2, "QA_PIXEL", "ST_QA", "SR_QA_AEROSOL"], sample)
    return folder


def open_path(path: Path, **given) -> ProductFiles:
    return open_product(path, Given(**given))


def test_level_2(folder):
    files = open_path(folder)
    product = files.product
    assert (product.name, product.platform, product.level) == (LEVEL_2, "landsat-9", "L2SP")
    assert product.sensing_time == datetime(2022, 1, 29, 15, 28, 34, 396428, tzinfo=UTC)
    assert product.processed_at == datetime(2022, 1, 31, 5, 45, 26, tzinfo=UTC)
    assert (product.processing_baseline, product.relative_orbit, product.mgrs_tile) == ("02", 10, None)
    assert product.cloud_cover == 21.12
    assert product.scales == dict.fromkeys(BANDS_2[:7], 2.75e-05) | {"ST_B10": 0.00341802}
    assert product.offsets == dict.fromkeys(BANDS_2[:7], -0.2) | {"ST_B10": 149.0}
    assert product.bytes == sum(file.stat().st_size for file in folder.iterdir())
    corners = [(-81.07231, -6.1854), (-79.00911, -6.18168), (-78.99989, -8.28085), (-81.07265, -8.28585)]
    assert shapely.from_wkb(product.footprint).equals(shapely.Polygon(corners))
    assert [band.name for band in files.bands] == [*BANDS_2, "QA_PIXEL"]
    assert [band.nodata for band in files.bands] == [0] * 8 + [1]
    assert {band.offset for band in files.bands} == {0}
    assert files.expected == tuple(BANDS_2)
    assert (files.grid, files.classes) == ("aligned:120", None)
    assert len(files.sources) == 10
    with files.bands[0].open() as dataset:
        assert dataset.crs.to_epsg() == 32617
        assert files.bands[0].read(dataset, Window(0, 0, 152, 155)).shape == (155, 152)
    assert files.named("sr_b02") == "SR_B2"


def test_level_1(sample, tmp_path):
    (tmp_path / f"{LEVEL_1}_MTL.json").write_text(json.dumps(level_1()))
    write_bands(tmp_path, LEVEL_1, [*BANDS_1, "QA_PIXEL", "SAA"], sample)
    files = open_path(tmp_path)
    product = files.product
    assert (product.name, product.level) == (LEVEL_1, "L1TP")
    assert product.processed_at == datetime(2022, 1, 29, 19, 0, 10, tzinfo=UTC)
    assert product.scales == dict.fromkeys(BANDS_1[:9], 2e-5) | {"B10": 3.8e-4, "B11": 3.49e-4}
    assert product.offsets == dict.fromkeys(BANDS_1, -0.1) | {"B10": 0.1, "B11": 0.1}
    assert [band.name for band in files.bands] == [*BANDS_1, "QA_PIXEL"]
    assert files.expected == tuple(BANDS_1)


def test_encodings_say_the_same(tmp_path):
    products = {}
    for suffix, content in {
        "txt": MTL.read_bytes(),
        "json": json.dumps(groups()).encode(),
        "xml": as_xml(groups()),
    }.items():
        place = tmp_path / suffix
        place.mkdir()
        (place / f"{LEVEL_2}_MTL.{suffix}").write_bytes(content)
        products[suffix] = {**vars(open_path(place).product), "source_path": None, "bytes": None}
    assert products["txt"] == products["json"] == products["xml"]
    metadata = products["txt"]["metadata"]["LANDSAT_METADATA_FILE"]
    assert metadata["PRODUCT_CONTENTS"]["ORIGIN"] == "Image courtesy of the U.S. Geological Survey"
    assert sum(len(group) for group in metadata.values()) == MTL.read_text().count(" = ") - 2 * (len(metadata) + 1)


def test_tar_as_delivered(folder, tmp_path):
    archive = tmp_path / f"{LEVEL_2}.tar"
    with tarfile.open(archive, "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    found = open_path(archive)
    assert (found.product.name, found.sources) == (LEVEL_2, (archive,))
    assert [band.name for band in found.bands] == [*BANDS_2, "QA_PIXEL"]
    window = Window(10, 20, 30, 40)
    for one, other in zip(found.bands, open_path(folder).bands, strict=True):
        with one.open() as inside, other.open() as outside:
            np.testing.assert_array_equal(one.read(inside, window), other.read(outside, window))
    archive.write_bytes(archive.read_bytes()[:700])
    with pytest.raises(PgearthError, match=r"\.tar: a damaged archive"):
        open_path(archive)


def test_metadata_only_and_arguments(tmp_path):
    shutil.copyfile(MTL, tmp_path / MTL.name)
    when = datetime(2001, 1, 1, tzinfo=UTC)
    files = open_path(tmp_path, name="mine", sensing_time=when, platform="landsat-8")
    assert (files.product.name, files.product.sensing_time, files.product.platform) == ("mine", when, "landsat-8")
    assert files.bands == ()


def test_clouds_not_assessed(folder):
    rewrite("CLOUD_COVER = 21.12", "CLOUD_COVER = -1.00")(folder)
    assert open_path(folder).product.cloud_cover is None


def test_without_surface_temperature(folder):
    content = (folder / MTL.name).read_text().replace("L2SP", "L2SR")
    start, end = (content.index(f"{word} = LEVEL2_SURFACE_TEMPERATURE_PARAMETERS") for word in ("GROUP", "END_GROUP"))
    (folder / MTL.name).write_text(content[:start] + content[content.index("\n", end) :])
    files = open_path(folder)
    assert files.product.level == "L2SR"
    assert files.expected == tuple(BANDS_2[:7])
    assert "ST_B10" not in files.product.scales


@pytest.mark.parametrize(("sensor", "prefix", "bands"), [("OLI", "LO09", BANDS_1[:9]), ("TIRS", "LT09", BANDS_1[9:])])
def test_products_of_one_sensor(archive, sample, tmp_path, sensor, prefix, bands):
    document = level_1()["LANDSAT_METADATA_FILE"]
    product = LEVEL_1.replace("LC09", prefix)
    document["PRODUCT_CONTENTS"]["LANDSAT_PRODUCT_ID"] = product
    document["IMAGE_ATTRIBUTES"]["SENSOR_ID"] = sensor
    numbers = {band[1:] for band in set(BANDS_1) - set(bands)}
    rescaling = document["LEVEL1_RADIOMETRIC_RESCALING"]
    for key in [key for key in rescaling if key.rpartition("_")[2] in numbers]:
        del rescaling[key]
    (tmp_path / f"{product}_MTL.json").write_text(json.dumps({"LANDSAT_METADATA_FILE": document}))
    write_bands(tmp_path, product, [*bands, "QA_PIXEL"], sample)
    files = open_path(tmp_path)
    assert (files.product.name, files.expected) == (product, tuple(bands))
    assert list(files.product.scales) == list(files.product.offsets) == bands
    assert load_product(archive, tmp_path, Options(grid="fixed:60"))["patches"] > 0
    assert archive.execute("select distinct bands from eo.patch_raster").fetchall() == [([*bands, "QA_PIXEL"],)]


def scene(folder: Path, sample: Path, date: str, west: int, north: int, bands: list[str], level: dict) -> Path:
    """A scene of 300 x 300 pixels of 30 m of another date, its corner elsewhere, as Landsat's are from date to date."""
    document = json.loads(json.dumps(level).replace("20220129", date))
    document["LANDSAT_METADATA_FILE"]["IMAGE_ATTRIBUTES"]["DATE_ACQUIRED"] = f"{date[:4]}-{date[4:6]}-{date[6:]}"
    product = document["LANDSAT_METADATA_FILE"]["PRODUCT_CONTENTS"]["LANDSAT_PRODUCT_ID"]
    place = folder / product
    place.mkdir()
    (place / f"{product}_MTL.json").write_text(json.dumps(document))
    with rasterio.open(sample / "sentinel2-cog/S2A_29RKH_20200219_0_L2A/B04.tif") as file:
        pixels = file.read(1)
    for band in bands:
        # of the panchromatic band, the first pixel's centre is that of the others' first pixel
        metres, side = (15, 599) if band == "B8" else (30, 300)
        corner = from_origin(west + (7.5 if band == "B8" else 0), north - (7.5 if band == "B8" else 0), metres, metres)
        profile = {"driver": "GTiff", "width": side, "height": side, "count": 1, "dtype": "uint16", "crs": "EPSG:32617"}
        with rasterio.open(place / f"{product}_{band}.TIF", "w", transform=corner, **profile) as file:
            file.write(pixels[:side, :side], 1)
    return place


@pytest.mark.parametrize("level", ["L2SP", "L1TP"])
def test_default_grid_is_the_same_on_every_date(archive, sample, tmp_path, level):
    document, bands = (groups(), BANDS_2) if level == "L2SP" else (level_1(), BANDS_1)
    for date, east, north in (("20220129", 0, 0), ("20220214", -90, 210), ("20220302", 390, -120)):
        path = scene(tmp_path, sample, date, 491985 + east, -683685 + north, bands, document)
        assert load_product(archive, path)["patches"] > 0
    # 120 pixels of the finest band; pixels lie half a pixel of 30 m beside the origin, of 15 m a quarter more
    side, shift = (1800, 22.5) if level == "L1TP" else (3600, 15)
    for west, south, east, north in archive.execute("select west, south, east, north from eo.patch"):
        assert (east - west, north - south) == (side, side)
        assert (west % side, -north % side) == (shift, shift)
    places = archive.execute(
        "select count(*), count(distinct product_id) from eo.patch group by srid, west, south, east, north"
    ).fetchall()
    assert max(places) == (3, 3)
    dates = archive.execute("select distinct before_time::date::text, after_time::date::text from eo.change")
    assert {("2022-01-29", "2022-02-14"), ("2022-02-14", "2022-03-02")} <= set(dates.fetchall())


def test_patches_of_the_former_default_grid_are_not_mixed_with_those_of_todays(archive, sample, tmp_path):
    first = scene(tmp_path, sample, "20220129", 491985, -683685, BANDS_2, groups())
    second = scene(tmp_path, sample, "20220214", 491895, -683475, BANDS_2, groups())
    load_product(archive, first, Options(grid="fixed:120"))  # as earlier versions did by default
    for path in (first, second):
        with pytest.raises(PgearthError, match=f"on the grid fixed:120, the default of earlier.*{first.name}") as error:
            load_product(archive, path)
        assert "--grid fixed:120" in error.value.hint and "--grid aligned:120" in error.value.hint
    assert load_product(archive, first, Options(grid="fixed:120")) == {"loaded_before": 1}
    assert load_product(archive, second, Options(grid="aligned:120"))["patches"] > 0
    # what docs/loading.md says: delete the old ones, then load again
    archive.execute("delete from eo.patch where source = 'product' and name like '%\\_120px\\_%'")
    archive.execute("delete from eo.load where loader = 'product' and source like '%|fixed:120'")
    assert load_product(archive, first)["patches"] > 0
    assert load_product(archive, second) == {"loaded_before": 1}
    assert archive.execute("select count(*) > 0 from eo.change").fetchone() == (True,)
    names = archive.execute("select distinct split_part(name, '_T1_', 2) ~ '^aligned120_-?\\d+_-?\\d+$' from eo.patch")
    assert names.fetchall() == [(True,)]


@pytest.mark.parametrize(
    ("scale", "offset", "dtype", "message"),
    [
        (2.75e-05, -0.2, "uint16", None),
        (
            1e-4,
            0,
            "uint16",
            r"SR_B2\.TIF: its tags say scale 0.0001 and offset 0, the product's metadata 2.75e-05 and -0.2",
        ),
        (1, 0, "float32", r"SR_B2\.TIF: floating-point pixels, but the product's scale, 2.75e-05, is of whole numbers"),
    ],
)
def test_units_of_the_files(archive, folder, scale, offset, dtype, message):
    file = folder / f"{LEVEL_2}_SR_B2.TIF"
    with rasterio.open(file) as dataset:
        pixels, profile = dataset.read(), dataset.profile
    with rasterio.open(file, "w", **profile | {"dtype": dtype}) as dataset:
        dataset.write(pixels.astype(dtype))
        dataset.scales, dataset.offsets = [scale], [offset]
    options = Options(grid="fixed:120", bands=("SR_B1", "SR_B2"))
    if message is None:
        assert load_product(archive, folder, options)["patches"] == 1
        return
    with pytest.raises(PgearthError, match=message):
        load_product(archive, folder, options)
    assert archive.execute("select count(*) from eo.product").fetchone() == (0,)


COLLECTION_1 = "LC08_L1TP_013032_20180131_20180207_01_T1"
OTHERS = {
    COLLECTION_1: "Landsat Collection 1 is not supported",
    "LC80130322018031LGN00": "a Landsat scene of before the collections is not supported",
    "LE07_L1TP_013032_20180131_20200901_02_T1": "Landsat 1 to 7 are not supported",
    "LT05_L2SP_013032_19990131_20200901_02_T1": "Landsat 1 to 7 are not supported",
    "LM01_L1TP_013032_19730131_20200901_02_T2": "Landsat 1 to 7 are not supported",
    "LC08_L1TP_013032_20180131_20200901_02_T1": "Landsat bands without their metadata",
    "LC08_CU_028008_20180131_20200901_02_SR": "Landsat's Analysis Ready Data are not supported",
    "LC08_013032_20180131": "a Landsat scene of Earth Engine is not supported",
    "HLS.L30.T18TWL.2018031T153123.v2.0": "Harmonized Landsat Sentinel-2",
    "S2A_MSIL1B_20180131T153123_N0206_R025_20180131T183123": "Sentinel-2 below level 1C is not supported",
    "SENTINEL2A_20180131-105612-463_L2A_T31TCJ_C_V2-2": "a MAJA product of Theia is not supported",
    "S1A_IW_GRDH_1SDV_20210809T173953_20210809T174018_039156_049F13_6FF8": "not a complete Sentinel-1 GRD product",
    "S3A_OL_1_EFR____20180131T095512_20180131T095812_20180201T142342_0179_027_236_1980_LN1_O_NT_002": "Sentinel-3",
    "20180131_153123_0f17_3B_AnalyticMS": "PlanetScope is not supported",
    "AST_L1T_00301312018153123_20180201095512_12345": "ASTER is not supported",
    "MOD021KM.A2018031.1530.061.2018032012345": "a MODIS swath is not supported",
    "VNP09GA.A2018031.h12v04.001.2018032083210": "VIIRS is not supported",
    "W_XX-EUMETSAT-Darmstadt,IMG+SAT,MTI1+FCI": "a EUMETSAT product is not supported",
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("place", ["folder", "files", "name given", "zip"])
def test_bands_of_other_missions_are_not_taken_for_sentinel_2(sample, tmp_path, name, place):
    """Bands called B1, B2, ..., where the folder, the files or the caller tell what they are of."""
    folder = tmp_path / (name if place in ("folder", "zip") else "scene")
    folder.mkdir()
    write_bands(folder, name if place == "files" else "x", ["B1", "B2", "B3"], sample)
    if place != "files":
        for file in folder.iterdir():
            file.rename(folder / file.name.removeprefix("x_"))
    if place == "zip":
        folder = Path(shutil.make_archive(str(tmp_path / name), "zip", folder))
    given = {"name": name} if place == "name given" else {}
    when = datetime(2018, 1, 31, tzinfo=UTC)
    with pytest.raises(PgearthError, match=re.escape(OTHERS[name])) as error:
        open_path(folder, sensing_time=when, platform="sentinel-2a", **given)
    assert error.value.hint


def test_collection_1_with_the_hints_of_errors_followed(sample, tmp_path):
    """Nothing names the mission but the platform, or the pixels of the panchromatic band."""
    write_bands(tmp_path, "x", BANDS_1, sample)
    for file in tmp_path.iterdir():
        file.rename(tmp_path / file.name.removeprefix("x_"))
    given = {"name": "mine", "sensing_time": datetime(2018, 1, 31, tzinfo=UTC), "offset": 0.0}
    with pytest.raises(PgearthError, match="bands named as Sentinel-2's, but the platform is landsat-8"):
        open_path(tmp_path, platform="landsat-8", **given)
    with rasterio.open(tmp_path / "B2.TIF") as file:
        pixels, profile = file.read().repeat(2, axis=1).repeat(2, axis=2), file.profile
    profile |= {"width": 304, "height": 310, "transform": from_origin(491985, -683685, 750, 750)}
    with rasterio.open(tmp_path / "B8.TIF", "w", **profile) as file:
        file.write(pixels)
    with pytest.raises(PgearthError, match="these are bands of Landsat, not of Sentinel-2"):
        open_path(tmp_path, platform="sentinel-2a", **given)


def test_collection_1_with_its_metadata(folder):
    for file in list(folder.iterdir()):
        file.rename(folder / file.name.replace(LEVEL_2, COLLECTION_1))
    with pytest.raises(PgearthError, match="Landsat Collection 1 is not supported") as error:
        open_path(folder)
    assert "Collection 2" in error.value.hint


def test_compressed_tar(tmp_path):
    file = tmp_path / "LC09.tar.gz"
    file.touch()
    with pytest.raises(PgearthError, match=r"a compressed archive") as error:
        open_path(file)
    assert "Unpack" in error.value.hint
    file = file.rename(tmp_path / f"{COLLECTION_1}.tar.gz")
    with pytest.raises(PgearthError, match="Landsat Collection 1 is not supported"):
        open_path(file)


def rewrite(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / MTL.name).read_text()
        assert old in content
        (folder / MTL.name).write_text(content.replace(old, new))

    return change


def cut_off(folder: Path) -> None:
    (folder / MTL.name).write_text(MTL.read_text()[: MTL.read_text().index("    SPACECRAFT_ID")])


def no_metadata(folder: Path) -> None:
    (folder / MTL.name).unlink()


def two_products(folder: Path) -> None:
    shutil.copyfile(folder / f"{LEVEL_2}_SR_B1.TIF", folder / f"{LEVEL_2.replace('010065', '010066')}_SR_B1.TIF")


def damaged_json(folder: Path) -> None:
    (folder / f"{LEVEL_2}_MTL.json").write_text("[]")


BAD = {
    "no metadata": (no_metadata, "Landsat bands without their metadata"),
    "two products": (two_products, "files of 2 products: LC09_L2SP_010065.*LC09_L2SP_010066"),
    "cut off": (cut_off, r"MTL\.txt: not valid metadata: it is cut off"),
    "not text": (lambda folder: (folder / MTL.name).write_bytes(b"\xff\xfe"), r"MTL\.txt: not valid metadata"),
    "a list": (damaged_json, r"MTL\.json: not valid metadata"),
    "no cloud cover": (rewrite("CLOUD_COVER =", "CLOUDS ="), "not valid metadata: no CLOUD_COVER"),
    "no time": (rewrite("15:28:34", "half past three"), "not valid metadata: Invalid isoformat"),
    "no number": (rewrite("2.75e-05", "small"), "not valid metadata: could not convert"),
    "a line of its own": (rewrite("WRS_TYPE = 2", "WRS_TYPE"), "not valid metadata: line 55"),
    "Landsat 7": (rewrite("LANDSAT_9", "LANDSAT_7"), "a product of LANDSAT_7, which is not supported"),
    "Collection 1": (rewrite("PRODUCT_CONTENTS", "METADATA_FILE_INFO"), "Landsat Collection 1 is not supported"),
}


@pytest.mark.parametrize("damage", BAD)
def test_bad_product(folder, damage):
    change, message = BAD[damage]
    change(folder)
    with pytest.raises(PgearthError, match=message) as error:
        open_path(folder)
    assert str(folder) in str(error.value)
    assert error.value.hint

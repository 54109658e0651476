"""Sentinel-2 products: metadata of all layouts against STAC items, XML and GDAL; their bands; what can be wrong."""

from __future__ import annotations

import json
import shutil
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from rasterio.windows import Window
from shapely.geometry import box, shape

from loaders import product_files
from loaders.errors import InputError
from loaders.product_files import Given, ProductFiles, footprint, open_folder, split_at_antimeridian
from loaders.product_formats import open_product
from loaders.sentinel2 import find_band_files
from tests.loaders.safe_product import BEFORE_OFFSET, L1C, SINCE_OFFSET, assemble_safe, pixels_of

ESRI = "S2A_MSIL2A_20180721T053721_N0212_R062_T43MDV_20201011T181419.SAFE"
SAFES = [
    L1C,
    "S2A_MSIL2A_20190212T192651_N0212_R013_T07HFE_20201007T160857.SAFE",
    BEFORE_OFFSET,
    "S2B_MSIL2A_20220413T150759_N0400_R025_T33XWJ_20220414T082126.SAFE",
    SINCE_OFFSET,
]
COG = Path("sentinel2-cog/S2A_29RKH_20200219_0_L2A")
MAJORTOM = Path("majortom/199U_1099R/S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543")
SSL4EO_JUNE = Path("ssl4eo/s2a/0000200/20200604T054639_20200604T054831_T43RCP")
SSL4EO_JUNE_L1C = Path("ssl4eo/s2c/0000200/20200604T054639_20200604T054831_T43RCP")
JP2_L1C = Path("sentinel2-jp2/L1C_19UDP_20170729")
JP2_L2A = Path("sentinel2-jp2/L2A_19UDP_20170729")
# Product name and cloud cover, as the metadata give them (no cloud cover for Major TOM).
FOLDERS = {
    COG: ("S2A_MSIL2A_20200219T112111_N0214_R037_T29RKH_20200219T123947", 4.051854),
    MAJORTOM: ("S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543", None),
    SSL4EO_JUNE: ("S2B_MSIL2A_20200604T054639_N0214_R048_T43RCP_20200604T094332", 4.184628),
    SSL4EO_JUNE_L1C: ("S2B_MSIL1C_20200604T054639_N0209_R048_T43RCP_20200604T083537", 0.8438),
    JP2_L1C: ("S2A_MSIL1C_20170729T153601_N0205_R111_T19UDP_20170729T153557", 24.48),
    JP2_L2A: ("S2A_MSIL2A_20170729T153601_N0001_R111_T19UDP_20200401T051009", 0.0),
}
TWELVE = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


def open_path(path: Path, **given) -> ProductFiles:
    return open_product(path, Given(**given))


def outline(files: ProductFiles) -> shapely.Geometry:
    geometry = shapely.from_wkb(files.product.footprint)
    assert geometry.geom_type == "MultiPolygon"
    assert geometry.is_valid
    return geometry


def in_degrees(geometry: shapely.Geometry, srid: int, step: float) -> shapely.Geometry:
    to_degrees = pyproj.Transformer.from_crs(srid, 4326, always_xy=True)
    return shapely.transform(shapely.segmentize(geometry, step), to_degrees.transform, interleaved=False)


@pytest.fixture
def small(sample, tmp_path) -> Path:
    """A writable copy of a small product in Earth Engine's layout."""
    return Path(shutil.copytree(sample / SSL4EO_JUNE, tmp_path / SSL4EO_JUNE.name, copy_function=shutil.copyfile))


@pytest.fixture
def safe(sample, tmp_path) -> Path:
    """A writable copy of a .SAFE folder with metadata only."""
    return Path(shutil.copytree(sample / "safe-metadata" / SINCE_OFFSET, tmp_path / SINCE_OFFSET))


@pytest.fixture(scope="module")
def complete(sample, tmp_path_factory) -> dict[str, Path]:
    """Complete .SAFE folders, by the name of their metadata."""
    folder = tmp_path_factory.mktemp("safe")
    return {name: assemble_safe(sample, name, folder) for name in (L1C, BEFORE_OFFSET, SINCE_OFFSET)}


# ---- .SAFE metadata ----


@pytest.mark.parametrize("name", SAFES)
def test_safe_says_what_its_stac_item_says(sample, name):
    """The items were made by stactools from the same metadata."""
    folder = sample / "safe-metadata" / name
    item = json.loads((folder / "expected_output.json").read_text())
    properties = item["properties"]
    files = open_path(folder)
    product = files.product
    assert product.name == properties["s2:product_uri"].removesuffix(".SAFE")
    assert product.level == properties["s2:product_type"].replace("S2MSI", "L")
    assert product.sensing_time == product.end_time == datetime.fromisoformat(properties["datetime"])
    assert product.processed_at == datetime.fromisoformat(properties["s2:generation_time"])
    assert product.platform == properties["platform"]
    assert product.processing_baseline == properties["s2:processing_baseline"]
    assert product.relative_orbit == properties["sat:relative_orbit"]
    assert product.mgrs_tile == properties["grid:code"].removeprefix("MGRS-")
    assert product.cloud_cover == properties["eo:cloud_cover"]
    assert product.bytes == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert product.source_path == str(folder)
    expected = shapely.make_valid(shape(item["geometry"]))  # to six decimals
    assert outline(files).symmetric_difference(expected).area < 1e-4 * expected.area
    assert (files.bands, files.classes) == ((), None)


def test_tiles_across_the_antimeridian_are_two_parts(sample):
    for name in (L1C, SINCE_OFFSET):
        parts = shapely.get_parts(outline(open_path(sample / "safe-metadata" / name)))
        assert sorted(part.bounds[0] < 0 for part in parts) == [False, True]
        assert {-180.0, 180.0} == {min(parts[0].bounds[0], parts[1].bounds[0]), max(p.bounds[2] for p in parts)}
        assert all(part.bounds[2] - part.bounds[0] < 1.1 for part in parts)


def test_a_lone_product_metadata_file_in_another_spelling(sample):
    product = open_path(sample / "safe-metadata" / ESRI).product
    assert product.name == ESRI.removesuffix(".SAFE")
    assert (product.platform, product.level, product.mgrs_tile) == ("sentinel-2a", "L2A", "43MDV")
    assert (product.processing_baseline, product.relative_orbit) == ("02.12", 62)
    assert product.cloud_cover == pytest.approx(99.999999)
    assert list(product.metadata) == ["MTD_MSIL2a.xml"]


@pytest.mark.parametrize(
    ("name", "offset", "bands"),
    [(L1C, 0, 13), (ESRI, 0, 12), (BEFORE_OFFSET, 0, 12), (SAFES[3], -0.1, 12), (SINCE_OFFSET, -0.1, 12)],
)
def test_scales_and_offsets(sample, name, offset, bands):
    product = open_path(sample / "safe-metadata" / name).product
    assert len(product.scales) == len(product.offsets) == bands
    assert set(product.scales.values()) == {0.0001}
    assert set(product.offsets.values()) == {offset}
    assert ("B10" in product.scales) is (bands == 13)


@pytest.mark.parametrize("name", SAFES)
def test_metadata_keep_the_documents(sample, name):
    """Every text and attribute of the XML is in the JSON, but for the grids of angles."""
    folder = sample / "safe-metadata" / name
    metadata = open_path(folder).product.metadata

    def leaves(value):
        if isinstance(value, dict):
            return [leaf for member in value.values() for leaf in leaves(member)]
        if isinstance(value, list):
            return [leaf for member in value for leaf in leaves(member)]
        return [] if value is None else [value]

    def texts(element):
        if element.tag in ("Sun_Angles_Grid", "Viewing_Incidence_Angles_Grids"):
            return []
        own = [*element.attrib.values(), *([element.text.strip()] if (element.text or "").strip() else [])]
        return own + [text for child in element for text in texts(child)]

    assert len(metadata) == 2
    for file in [*folder.glob("MTD_MSI*.xml"), *folder.glob("GRANULE/*/MTD_TL.xml")]:
        assert sorted(leaves(metadata[file.name])) == sorted(texts(ElementTree.parse(file).getroot()))
    assert len(json.dumps(metadata)) < 80_000
    info = metadata[next(folder.glob("MTD_MSI*.xml")).name]["General_Info"]["Product_Info"]
    assert info["Datatake"]["@datatakeIdentifier"].startswith("GS2")
    assert isinstance(info["Product_Organisation"]["Granule_List"]["Granule"]["IMAGE_FILE"], list)


# ---- complete .SAFE products ----


@pytest.mark.parametrize("name", [L1C, BEFORE_OFFSET, SINCE_OFFSET])
def test_bands_of_a_complete_product(sample, complete, name):
    files = open_path(complete[name])
    assert files.expected == TWELVE
    assert files.grid == "bigearthnet"
    assert files.classes == (None if name == L1C else "SCL")
    named = {Path(band.path).name for band in files.bands}
    images = {file.name for file in complete[name].rglob("*.jp2")}
    assert {image for image in images - named if not any(part in image for part in ("TCI", "AOT", "WVP"))} == set()
    assert not any(part in image for image in named for part in ("TCI", "AOT", "WVP"))
    optional = "B10" if name == L1C else "SCL"
    assert {band.name for band in files.bands} == {*TWELVE, optional}
    assert list(dict.fromkeys(band.name for band in files.bands))[-1] == ("B12" if name == L1C else "SCL")
    assert {band.nodata for band in files.bands} == {0}
    assert set(files.sources) == {
        *(Path(band.path) for band in files.bands),
        *complete[name].glob("MTD_MSI*.xml"),
        *complete[name].glob("GRANULE/*/MTD_TL.xml"),
    }


@pytest.mark.parametrize("name", [L1C, BEFORE_OFFSET, SINCE_OFFSET])
def test_offset_brings_back_reflectance(sample, complete, name):
    """assemble_safe adds 1,000 to the same pixels where the metadata say so."""
    bands = open_path(complete[name]).bands
    assert {band.offset for band in bands if band.name != "SCL"} == {-1000 if name == SINCE_OFFSET else 0}
    assert {band.offset for band in bands if band.name == "SCL"} <= {0}
    for band in bands:
        with band.open() as dataset:
            pixels = band.read(dataset, Window(0, 0, dataset.width, dataset.height)).astype(int)
        reflectance = np.where(pixels == 0, 0, pixels + band.offset)
        np.testing.assert_array_equal(reflectance, pixels_of(sample, band.name, len(pixels)))


@pytest.mark.parametrize("top", ["", f"{SINCE_OFFSET}/"], ids=["bare", "folder"])
def test_zip_is_read_without_unpacking(complete, tmp_path, top):
    archive = tmp_path / "product.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in sorted(complete[SINCE_OFFSET].rglob("*")):
            if file.is_file():
                zipped.write(file, top + str(file.relative_to(complete[SINCE_OFFSET])))
    folder, zipped = open_path(complete[SINCE_OFFSET]), open_path(archive)
    known = {"source_path": None}
    assert {**vars(zipped.product), **known} == {**vars(folder.product), **known}
    assert zipped.product.source_path == str(archive)
    assert zipped.sources == (archive,)
    assert [band.name for band in zipped.bands] == [band.name for band in folder.bands]
    for one, other in list(zip(zipped.bands, folder.bands, strict=True))[::5]:
        with one.open() as inside, other.open() as outside:
            window = Window(0, 0, 61, 61)
            assert inside.transform == outside.transform
            np.testing.assert_array_equal(one.read(inside, window), other.read(outside, window))
    assert list(tmp_path.iterdir()) == [archive]


# ---- other layouts ----


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_other_layouts(sample, folder):
    name, cloud_cover = FOLDERS[folder]
    files = open_path(sample / folder)
    product = files.product
    document = next((json.loads(file.read_text()) for file in (sample / folder).glob("*.json")), None)
    assert product.name == name
    assert (product.platform, product.level, product.mgrs_tile) == (
        f"sentinel-2{name[2].lower()}",
        name[7:10],
        name[39:44],
    )
    assert (product.processing_baseline, product.relative_orbit) == (f"{name[28:30]}.{name[30:32]}", int(name[34:37]))
    assert product.cloud_cover == cloud_cover
    assert product.metadata == document
    assert set(product.offsets.values()) == {0}  # all are from before baseline 04.00
    assert {band.offset for band in files.bands} == {0}
    assert {band.name for band in files.bands} - {"B10", "SCL"} == set(files.expected)
    if folder == COG:
        assert product.sensing_time == datetime(2020, 2, 19, 11, 34, 25, 405000, UTC)
        assert product.processed_at == datetime(2020, 2, 19, 12, 39, 47, tzinfo=UTC)
        expected = shape(document["geometry"])
    elif folder == MAJORTOM:
        assert product.sensing_time == datetime(2020, 2, 23, 3, 27, 39, tzinfo=UTC)
        with rasterio.open(sample / folder / "B02.tif") as file:
            expected = in_degrees(box(*file.bounds), 32648, 10)
    elif folder in (JP2_L1C, JP2_L2A):
        assert product.sensing_time == datetime(2017, 7, 29, 15, 35, 57, 455000, UTC)
        expected = in_degrees(shape(document["tileDataGeometry"]), 32619, 100)
    else:
        assert product.sensing_time == datetime.fromtimestamp(document["system:time_start"] / 1000, UTC)
        expected = shapely.Polygon(document["system:footprint"]["coordinates"])
    # straight edges between the corners, instead of more vertices, would differ by 1.7e-3 for a whole tile
    assert outline(files).symmetric_difference(expected).area < 2e-5 * expected.area


def test_bands_in_several_resolutions_are_all_listed(sample):
    files = open_path(sample / JP2_L2A)
    places = [Path(band.path).parent.name for band in files.bands if band.name == "B02"]
    assert places == ["R10m", "R20m", "R60m"]
    assert files.classes == "SCL"


@pytest.mark.parametrize(
    ("text", "band"), [("b2", "B02"), ("B02", "B02"), (" b8a ", "B8A"), ("scl", "SCL"), ("B10", None), ("red", None)]
)
def test_names_of_bands(sample, text, band):
    assert open_path(sample / COG).named(text) == band


def stac_item(folder: Path, properties: dict, offset: float | None) -> None:
    """Change the item of the COG folder."""
    file = next(folder.glob("*.json"))
    item = json.loads(file.read_text())
    item["properties"] |= properties
    for asset in item["assets"].values():
        for raster in asset.get("raster:bands", []):
            if raster.get("scale") == 0.0001:
                raster.pop("offset")
                if offset is not None:
                    raster["offset"] = offset
    file.write_text(json.dumps(item))


@pytest.mark.parametrize(
    ("applied", "raster_offset", "baseline", "expected"),
    [
        (True, -0.1, "05.09", 0),  # as Earth Search has it: the offset of ESA's product stays in raster:bands
        (False, -0.1, "04.00", -1000),
        (None, -0.1, "04.00", -1000),
        (None, 0, "04.00", 0),
        (None, None, "04.00", -1000),
        (None, None, "03.01", 0),
    ],
)
def test_offset_of_stac_items(sample, tmp_path, applied, raster_offset, baseline, expected):
    folder = Path(shutil.copytree(sample / COG, tmp_path / COG.name, copy_function=shutil.copyfile))
    properties = {"s2:processing_baseline": baseline, "earthsearch:boa_offset_applied": applied}
    stac_item(folder, properties, raster_offset)
    files = open_path(folder)
    assert {band.offset for band in files.bands if band.name != "SCL"} == {expected}
    assert {band.offset for band in files.bands if band.name == "SCL"} == {0}
    assert set(files.product.offsets.values()) == {expected / 10_000}


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("S2A_MSIL1C_20220129T153601_N0400_R111_T19UDP_20220129T173557", -1000),
        ("S2A_MSIL2A_20200129T153601_N0500_R111_T19UDP_20230401T051009", -1000),
        ("S2A_MSIL2A_20211129T153601_N0301_R111_T19UDP_20211129T173557", 0),
    ],
)
def test_offset_of_tile_info_is_that_of_the_baseline(sample, tmp_path, name, offset):
    folder = Path(shutil.copytree(sample / JP2_L1C, tmp_path / "tile", copy_function=shutil.copyfile))
    information = json.loads((folder / "tileInfo.json").read_text())
    (folder / "tileInfo.json").write_text(json.dumps(information | {"productName": name}))
    assert {band.offset for band in open_path(folder).bands} == {offset}


@pytest.mark.parametrize(("collection", "offset"), [("S2_SR", -1000), ("S2_SR_HARMONIZED", 0)])
def test_offset_of_earth_engine(small, collection, offset):
    document = json.loads((small / "metadata.json").read_text())
    document |= {"PROCESSING_BASELINE": "04.00", "system:id": f"COPERNICUS/{collection}/{small.name}"}
    (small / "metadata.json").write_text(json.dumps(document))
    assert {band.offset for band in open_path(small).bands} == {offset}


# ---- names ----


@pytest.mark.parametrize(
    ("file", "band"),
    [
        ("B02.tif", "B02"),
        ("B2.tif", "B02"),
        ("b2.TIFF", "B02"),
        ("B12.jp2", "B12"),
        ("B8A.tif", "B8A"),
        ("b8a.tif", "B8A"),
        ("T33UUP_20200219T112111_B02_10m.jp2", "B02"),
        ("T33UUP_20200219T112111_B8A.jp2", "B8A"),
        ("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57_B11.tif", "B11"),
        ("T33UUP_20200219T112111_SCL_20m.jp2", "SCL"),
        ("R20m/B05.jp2", "B05"),
        ("GRANULE/L2A_T33UUP_A1/IMG_DATA/R60m/T33UUP_20200219T112111_B09_60m.jp2", "B09"),
        ("GRANULE/L1C_T33UUP_A1/IMG_DATA/T33UUP_20200219T112111_B10.jp2", "B10"),
        ("TCI.tif", None),
        ("L2A_PVI.tif", None),
        ("AOT.jp2", None),
        ("WVP.jp2", None),
        ("cloud_mask.tif", None),
        ("thumbnail.png", None),
        ("preview.jp2", None),
        ("preview/B02.jp2", None),
        ("B02.tif.aux.xml", None),
        ("B13.tif", None),
        ("B00.tif", None),
        ("B012.tif", None),
        ("XB02.tif", None),
        ("GRANULE/L2A_T33UUP_A1/QI_DATA/MSK_QUALIT_B02.jp2", None),
    ],
)
def test_band_file_names(tmp_path, file, band):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert find_band_files(open_folder(tmp_path)) == ({band: [file]} if band else {})


def test_earth_engine_folder_without_metadata(sample, tmp_path):
    """Level from the data set's folders, name and time from the product's; the satellite must be told."""
    for folder, level in ((SSL4EO_JUNE, "L2A"), (SSL4EO_JUNE_L1C, "L1C")):
        copy = Path(shutil.copytree(sample / folder, tmp_path / folder, copy_function=shutil.copyfile))
        (copy / "metadata.json").unlink()
        with pytest.raises(InputError) as error:
            open_path(copy)
        assert error.value.hint == "Say so with --platform."
        product = open_path(copy, platform="sentinel-2b").product
        assert (product.name, product.level, product.mgrs_tile) == (f"{folder.name}_{level}", level, "43RCP")
        assert product.sensing_time == datetime(2020, 6, 4, 5, 46, 39, tzinfo=UTC)
        assert product.scales is product.offsets is product.processing_baseline is None


def test_unknown_product(small):
    (small / "metadata.json").unlink()
    folder = small.rename(small.with_name("my product"))
    with pytest.raises(InputError, match="my product") as error:
        open_path(folder)
    assert error.value.hint == "Say so with --name, --time, --platform."
    when = datetime(2020, 6, 4, 5, 46, 39, tzinfo=UTC)
    files = open_path(folder, name="mine", sensing_time=when, platform="sentinel-2b")
    product = files.product
    assert (product.name, product.platform, product.level) == ("mine", "sentinel-2b", "L2A")
    assert (product.sensing_time, product.mgrs_tile, product.metadata) == (when, None, None)
    with rasterio.open(folder / "B2.tif") as file:
        assert outline(files).equals(box(*file.bounds))


def test_arguments_override_metadata(small):
    when = datetime(2001, 1, 1, tzinfo=UTC)
    product = open_path(small, name="other", sensing_time=when, platform="sentinel-2c").product
    assert (product.name, product.sensing_time, product.platform) == ("other", when, "sentinel-2c")
    assert (product.level, product.cloud_cover) == ("L2A", 4.184628)


def test_json_of_other_kinds_is_ignored(small):
    (small / "a_list.json").write_text("[1, 2]")
    (small / "notes.json").write_text('{"type": "Feature", "comment": "no STAC item"}')
    assert open_path(small).product.name == FOLDERS[SSL4EO_JUNE][0]


def test_most_telling_metadata(sample, small, safe):
    shutil.copyfile(sample / JP2_L2A / "tileInfo.json", small / "A.json")
    assert open_path(small).product.name == FOLDERS[JP2_L2A][0]
    shutil.copyfile(next((sample / COG).glob("*.json")), small / "Z.json")
    assert open_path(small).product.name == FOLDERS[COG][0]
    shutil.copyfile(safe / "MTD_MSIL2A.xml", small / "MTD_MSIL2A.xml")
    assert open_path(small).product.name == SINCE_OFFSET.removesuffix(".SAFE")


# ---- footprints ----


def test_outlines_across_the_antimeridian():
    random = np.random.default_rng(5)
    for west in [*random.uniform(175, 185, 40), 180.0, 179.999999]:
        east = west + random.uniform(0.1, 4)
        whole = box(west, -10, east, 10)
        wrapped = shapely.transform(
            whole, lambda points: np.column_stack([(points[:, 0] + 180) % 360 - 180, points[:, 1]])
        )
        pieces = shapely.union_all(split_at_antimeridian(wrapped))
        expected = shapely.union_all(
            [
                whole.intersection(box(-180, -90, 180, 90)),
                shapely.transform(whole.intersection(box(180, -90, 540, 90)), lambda points: points - (360, 0)),
            ]
        )
        assert pieces.symmetric_difference(expected).area < 1e-9
        assert pieces.bounds[0] >= -180 and pieces.bounds[2] <= 180


def test_footprints_are_valid():
    bow_tie = shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
    assert shapely.from_wkb(footprint(bow_tie)).area == pytest.approx(0.5)
    assert footprint(shapely.Polygon([(0, 0), (1, 1), (2, 2)])) is None
    assert footprint(None) is None


# ---- bad input ----


def edit(file: Path, old: str, new: str) -> None:
    content = file.read_text()
    assert old in content
    file.write_text(content.replace(old, new))


DAMAGE = {
    "cut off": (lambda file: file.write_bytes(file.read_bytes()[:5000]), "not valid XML"),
    "empty": (lambda file: file.write_text(""), "not valid XML"),
    "entities": (
        lambda file: file.write_text('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'),
        r"not valid XML: a document type \(a\)",
    ),
    "no name": (lambda file: edit(file, "PRODUCT_URI", "PRODUCT"), "not valid metadata: no PRODUCT_URI"),
    "no outline": (lambda file: edit(file, "EXT_POS_LIST", "POSITIONS"), "not valid metadata: no EXT_POS_LIST"),
    "odd outline": (lambda file: edit(file, "<EXT_POS_LIST>", "<EXT_POS_LIST>1 "), "not valid metadata"),
    "two corners": (lambda file: edit(file, "<EXT_POS_LIST>", "<EXT_POS_LIST>1 2 3 4</EXT_POS_LIST><A>"), "not valid"),
    "no time": (lambda file: edit(file, "2023-08-21T22:19:41.024Z", "yesterday"), "not valid metadata.*'yesterday'"),
    "unknown band": (lambda file: edit(file, 'band_id="12"', 'band_id="13"'), "not valid metadata"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_xml(safe, damage):
    change, message = DAMAGE[damage]
    change(safe / "MTD_MSIL2A.xml")
    with pytest.raises(InputError, match=message) as error:
        open_path(safe)
    assert str(safe / "MTD_MSIL2A.xml") in str(error.value)
    assert error.value.hint


@pytest.mark.parametrize("content", ['{"a": ', '{"a": NaN}', '{"productName": "S2A", "timestamp": "last summer"}'])
def test_damaged_json(small, content):
    (small / "metadata.json").write_text(content)
    with pytest.raises(InputError, match=r"metadata\.json: not valid metadata") as error:
        open_path(small)
    assert "--name, --time and --platform" in error.value.hint


def test_bands_of_several_granules(small):
    for granule in ("L1C_T43RCP", "L1C_T43RCQ"):
        shutil.copytree(small, small / "GRANULE" / granule / "IMG_DATA", ignore=shutil.ignore_patterns("GRANULE"))
    with pytest.raises(InputError, match=r"several folders: .*L1C_T43RCP/IMG_DATA, .*L1C_T43RCQ/IMG_DATA"):
        open_path(small)


def test_unreadable_band_of_a_product_without_outline(small):
    (small / "metadata.json").unlink()
    (small / "B2.tif").write_text("<html>404 Not Found</html>")
    with pytest.raises(InputError, match=r"B2\.tif: cannot be read as a raster"):
        open_path(small, name="a", platform="sentinel-2a")


@pytest.mark.parametrize("share", [0.3, 0.999])
def test_damaged_zip(safe, tmp_path, share):
    archive = Path(shutil.make_archive(str(tmp_path / "a"), "zip", safe))
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    with pytest.raises(InputError, match=r"a\.zip: a damaged archive"):
        open_path(archive)


def test_damaged_member_of_a_zip(safe, tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(safe / "MTD_MSIL2A.xml", f"{safe.name}/MTD_MSIL2A.xml")
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"<PRODUCT_URI>S2A", b"<PRODUCT_URI>S2C"))
    with pytest.raises(InputError, match=rf"a\.zip/{safe.name}/MTD_MSIL2A\.xml: cannot be read: Bad CRC-32"):
        open_path(archive)


def test_metadata_too_large(safe, monkeypatch):
    monkeypatch.setenv("PGEARTH_MAX_DOCUMENT_BYTES", "50000")
    with pytest.raises(InputError, match=r"MTD_MSIL2A\.xml: 54,685 bytes are too many for metadata"):
        open_path(safe)


def test_no_product(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "MTD_MSIL2A.xml.txt").touch()
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match="no product of a known format") as error:
            open_path(path)
        assert str(path) in str(error.value) and "MTD_MSIL2A.xml" in error.value.hint
    monkeypatch.setattr(product_files, "MOST_FILES", 1)
    with pytest.raises(InputError, match="more than 1 files"):
        open_path(tmp_path)

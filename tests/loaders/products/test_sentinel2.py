"""Sentinel-2 products: metadata of all layouts against STAC items, XML and GDAL; their bands; what can be wrong."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import warnings
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.io import MemoryFile
from rasterio.windows import Window
from shapely.geometry import box, shape

from pgearth.loaders.archive.footprint import footprint, split_at_antimeridian
from pgearth.loaders.products import folder as product_folder
from pgearth.loaders.products.files import Given, ProductFiles
from pgearth.loaders.products.folder import open_folder
from pgearth.loaders.products.formats.known import open_product
from pgearth.loaders.products.formats.sentinel2.baselines import baseline_of
from pgearth.loaders.products.formats.sentinel2.files import find_files
from pgearth.loaders.products.formats.sentinel2.names import from_name
from pgearth.loaders.products.load import Options, choose_bands, load_product
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import from_wkb
from tests.loaders.products.safe_product import BEFORE_OFFSET, L1C, SINCE_OFFSET, assemble_safe, pixels_of

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
JUNE = datetime(2020, 6, 4, 5, 46, 39, tzinfo=UTC)
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


PSD_14_2 = {
    "Product_Info>": "L2A_Product_Info>",
    "Product_Organisation": "L2A_Product_Organisation",
    "IMAGE_FILE": "IMAGE_FILE_2A",
    "PRODUCT_URI": "PRODUCT_URI_2A",
    "Product_Image_Characteristics": "L2A_Product_Image_Characteristics",
    "QUANTIFICATION_VALUES_LIST": "L1C_L2A_Quantification_Values_List",
    "BOA_QUANTIFICATION_VALUE": "L2A_BOA_QUANTIFICATION_VALUE",
    "AOT_QUANTIFICATION_VALUE": "L2A_AOT_QUANTIFICATION_VALUE",
    "Scene_Classification_List": "L2A_Scene_Classification_List",
    "Level-2A<": "Level-2Ap<",
    "S2MSI2A<": "S2MSI2Ap<",
    "psd-14": "psd-142",
}


def as_psd_14_2(folder: Path) -> None:
    """Rewrite the product's metadata with the names of elements that products of 2017 and 2018 have."""
    file = folder / "MTD_MSIL2A.xml"
    content = file.read_text()
    for new, old in PSD_14_2.items():
        content = content.replace(new, old)
    uri = "<PRODUCT_URI_2A>"
    assert uri in content
    source = folder.name.replace("L2A", "L1C")
    content = content.replace(uri, f"<PRODUCT_URI_1C>{source}</PRODUCT_URI_1C>{uri}")
    # a Granule_List for each resolution
    start, end = content.index("<Granule_List>"), content.index("</Granule_List>") + len("</Granule_List>")
    file.write_text(content[:start] + content[start:end] * 3 + content[end:])


def with_namespace(folder: Path) -> None:
    file = folder / "MTD_MSIL2A.xml"
    content = file.read_text()
    file.write_text(content.replace("<n1:Level-2A_User_Product", '<n1:Level-2A_User_Product xmlns="urn:all"', 1))


@pytest.mark.parametrize("change", [as_psd_14_2, with_namespace])
@pytest.mark.parametrize("name", [BEFORE_OFFSET, SINCE_OFFSET])
def test_other_layouts_of_the_metadata(sample, tmp_path, name, change):
    folder = Path(shutil.copytree(sample / "safe-metadata" / name, tmp_path / name.removeprefix("esa_")))
    expected = vars(open_path(folder).product)
    size = expected["bytes"]
    before = (folder / "MTD_MSIL2A.xml").read_text()
    change(folder)
    assert (folder / "MTD_MSIL2A.xml").read_text() != before
    found = vars(open_path(folder).product)
    assert found["bytes"] > size
    ignored = {"metadata": None, "bytes": None}
    assert found | ignored == expected | ignored


def test_the_offsets_of_a_safe_without_a_list_of_them_are_those_of_its_baseline(safe):
    (safe / "expected_output.json").unlink()  # the sample's addition
    content = (safe / "MTD_MSIL2A.xml").read_text()
    start, end = (content.index(f"<{slash}BOA_ADD_OFFSET_VALUES_LIST>") for slash in ("", "/"))
    content = content[:start] + content[end + len("</BOA_ADD_OFFSET_VALUES_LIST>") :]
    (safe / "MTD_MSIL2A.xml").write_text(content)
    assert set(open_path(safe).product.offsets.values()) == {-0.1}
    name = safe.name.replace("N0509", "N9999")
    content = content.replace(safe.name, name).replace(">05.09<", ">99.99<")
    folder = safe.rename(safe.with_name(name))
    (folder / "MTD_MSIL2A.xml").write_text(content)
    assert set(open_path(folder).product.offsets.values()) == {0}  # Sen2Cor lists them where there are any


def test_metadata_in_an_unknown_layout_say_how_to_load_the_bands(safe):
    edit(safe / "MTD_MSIL2A.xml", "PRODUCT_START_TIME", "START")
    with pytest.raises(PgearthError, match="no PRODUCT_START_TIME") as error:
        open_path(safe)
    assert "--offset" in error.value.hint


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


# ---- odd but honest packages ----


def pack(folder: Path, archive: Path, form: str) -> Path:
    """Pack a product's folder as different machines do."""
    files = {file.relative_to(folder.parent).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    if form == "tar .":
        archive = archive.with_suffix(".tar")
        with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
            for name, file in files.items():
                tar.add(file, f"./{name}")
        return archive
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, file in files.items():
            match form:
                case "windows":
                    zipped.write(file, name.replace("/", "\\"))
                case "macos":
                    zipped.write(file, name)
                    zipped.writestr(f"__MACOSX/{name.rpartition('/')[0]}/._{file.name}", b"\0\5\x16\7")
                case "one folder too many":
                    zipped.write(file, f"{folder.name}/{name}")
                case "with a checksum beside":
                    zipped.write(file, f"download/{name}")
        if form == "macos":
            zipped.writestr(f"{folder.name}/.DS_Store", b"\0\0\0\1Bud1")
            zipped.writestr("__MACOSX/._" + folder.name, b"\0\5\x16\7")
        if form == "with a checksum beside":
            zipped.writestr("download/product.md5", "0123")
            zipped.writestr("download/quicklook.jpg", b"")
        if form == "windows":
            zipped.writestr(f"{folder.name}\\GRANULE\\", b"")
            zipped.writestr(f"{folder.name}\\Thumbs.db", b"")
    return archive


@pytest.mark.parametrize("form", ["windows", "macos", "one folder too many", "with a checksum beside", "tar ."])
def test_packages_of_other_machines(complete, tmp_path, form):
    folder = open_path(complete[SINCE_OFFSET])
    packed = open_path(pack(complete[SINCE_OFFSET], tmp_path / "product.zip", form))
    known = {"source_path": None}
    assert {**vars(packed.product), **known} == {**vars(folder.product), **known}
    assert [band.name for band in packed.bands] == [band.name for band in folder.bands]
    assert {band.offset for band in packed.bands if band.name != "SCL"} == {-1000}
    with packed.bands[1].open() as inside, folder.bands[1].open() as outside:
        np.testing.assert_array_equal(inside.read(1), outside.read(1))


def test_tar_that_gdal_cannot_read(safe, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(safe, safe.name)
    with pytest.raises(PgearthError, match="long names in the POSIX format, which GDAL does not read") as error:
        open_path(tmp_path / "a.tar")
    assert "--format=gnu" in error.value.hint


@pytest.mark.parametrize("depth", [1, 2])
def test_folders_too_many(complete, tmp_path, depth):
    name = SINCE_OFFSET
    inner = tmp_path.joinpath(*[name] * (depth + 1))
    shutil.copytree(complete[name], inner)
    (tmp_path / name / ".DS_Store").touch()
    (inner / "GRANULE" / "._odd.xml").write_bytes(b"\0\5")
    (tmp_path / name / "readme.txt").touch()
    files, plain = open_path(tmp_path / name), open_path(complete[name])
    assert vars(files.product) == vars(plain.product) | {"source_path": str(tmp_path / name)}
    assert {Path(band.path).is_relative_to(inner) for band in files.bands} == {True}
    assert {file.relative_to(inner) for file in files.sources} == {
        file.relative_to(complete[name]) for file in plain.sources
    }


def test_a_folder_inside_a_folder_of_another_name_tells_the_product(sample, tmp_path):
    shutil.copytree(sample / MAJORTOM, tmp_path / "download" / MAJORTOM.name)
    assert open_path(tmp_path / "download").product.name == MAJORTOM.name


@pytest.mark.parametrize("grid", ["none", "fixed:120"])
def test_a_name_alone_is_no_product(archive, tmp_path, grid):
    (tmp_path / SINCE_OFFSET / "HTML").mkdir(parents=True)
    with pytest.raises(PgearthError, match="no product of a known format"):
        load_product(archive, tmp_path / SINCE_OFFSET, Options(grid=grid))
    assert archive.execute("select count(*) from eo.product").fetchone() == (0,)


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_several_products(sample, tmp_path, packed):
    for name in (SINCE_OFFSET, L1C):
        shutil.copytree(sample / "safe-metadata" / name, tmp_path / "all" / name)
    path = Path(shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "all")) if packed else tmp_path / "all"
    with pytest.raises(PgearthError, match=f"no product itself, but 2 in folders inside it, such as {L1C}") as error:
        open_path(path)
    assert "Name each of them" in error.value.hint


def test_products_of_several_granules(small):
    old = small.with_name("S2A_OPER_PRD_MSIL1C_PDMC_20160930T171311_R022_V20160930T102022_20160930T102344.SAFE")
    for tile in ("T32TLR", "T32TLS"):
        place = old / "GRANULE" / f"S2A_OPER_MSI_L1C_TL_SGS__20160930T155112_A006660_{tile}_N02.04" / "IMG_DATA"
        place.mkdir(parents=True)
        for file in small.glob("B*.tif"):
            shutil.copyfile(file, place / f"S2A_OPER_MSI_L1C_TL_SGS__20160930T155112_A006660_{tile}_{file.name}")
    (old / "S2A_OPER_MTD_SAFL1C_PDMC_20160930T171311_R022_V20160930T102022_20160930T102344.xml").write_text("<a/>")
    with pytest.raises(
        PgearthError, match=r"in the format of before December 2016, of 2 granules: not supported"
    ) as error:
        open_path(old)
    assert "IMG_DATA" in error.value.hint
    when = datetime(2016, 9, 30, 10, 20, 22, tzinfo=UTC)
    files = open_path(place, name="S2A_T32TLS", sensing_time=when, platform="sentinel-2a", offset=0.0)
    assert {band.name for band in files.bands} == set(TWELVE)


# ---- rows that lack something ----

ROW = """
    select platform, level, sensing_time, mgrs_tile, cloud_cover, metadata is not null, end_time, processed_at,
           processing_baseline, relative_orbit, scales, offsets, bytes, source_path, md5(ST_AsEWKB(footprint))
    from eo.product
"""


def test_a_row_without_metadata_is_completed(archive, complete, sample, tmp_path):
    """First the bands alone, in a folder of the product's name; then the product."""
    bare = tmp_path / SINCE_OFFSET
    shutil.copytree(complete[SINCE_OFFSET] / "GRANULE", bare / "GRANULE", ignore=shutil.ignore_patterns("*.xml"))
    assert load_product(archive, bare, Options(grid="none")) == {"products": 1}
    before = archive.execute(ROW).fetchone()
    assert before[4:8] == (None, False, None, None)
    assert load_product(archive, complete[SINCE_OFFSET], Options(grid="none")) == {"products": 1}
    after = archive.execute(ROW).fetchone()
    files = open_path(complete[SINCE_OFFSET])
    assert after[4] == pytest.approx(files.product.cloud_cover)
    assert after[5:8] == (True, files.product.end_time, files.product.processed_at)
    for old, new in zip(before, after, strict=True):
        assert old in (None, False, new)
    assert load_product(archive, complete[SINCE_OFFSET], Options(grid="none")) == {"loaded_before": 1}
    assert archive.execute(ROW).fetchone() == after
    # its patches have its platform and time, and their pixels are reflectance
    assert load_product(archive, complete[SINCE_OFFSET], Options(grid="fixed:60"))["patches"] > 20
    assert archive.execute("select distinct platform, sensing_time from eo.patch").fetchall() == [(after[0], before[2])]
    column, row, wkb = archive.execute(
        "select tile_column, tile_row, ST_AsWKB(rast) from eo.patch_raster join eo.patch using (patch_id, cell)"
        " where 'B02' = any (bands) order by valid_fraction[1] desc, name limit 1"
    ).fetchone()
    expected = pixels_of(sample, "B02", 366)[row * 60 : row * 60 + 60, column * 60 : column * 60 + 60]
    np.testing.assert_array_equal(from_wkb(wkb).bands[0], np.where(expected == 0, 0, np.maximum(expected, 1)))


def test_a_null_row_is_completed_by_a_load_with_patches(archive, complete):
    """As earlier versions stored a .SAFE folder in a folder of its own name."""
    name = SINCE_OFFSET.removesuffix(".SAFE")
    archive.execute(
        "insert into eo.product (name, platform, level, sensing_time, mgrs_tile)"
        " values (%s, 'sentinel-2a', 'L2A', '2023-08-21 22:19:41Z', '01KAX')",
        (name,),
    )
    archive.execute(
        "insert into eo.load (loader, source, checksum, state) values ('product', %s, 'x', 'done')", (f"{name}|none",)
    )
    load_product(archive, complete[SINCE_OFFSET], Options(grid="fixed:60"))
    row = archive.execute(ROW).fetchone()
    assert row[3] == "01KAX"  # what is there stays
    assert None not in row and row[5]


def test_another_product_under_a_stored_name(archive, complete, sample):
    load_product(archive, complete[SINCE_OFFSET], Options(Given("mine"), grid="none"))
    for other in (L1C, BEFORE_OFFSET):
        with pytest.raises(PgearthError, match="mine is stored as a product of sentinel-2a, L2A, 2023-08-21") as error:
            load_product(archive, complete[other], Options(Given("mine"), grid="fixed:60"))
        assert "--name" in error.value.hint
    assert archive.execute("select count(*) from eo.patch").fetchone() == (0,)


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


# ---- what pixels mean ----

NEW = "S2A_MSIL2A_20230219T112111_N0509_R037_T29RKH_20230219T162947"
OLD = "S2A_MSIL2A_20200219T112111_N0214_R037_T29RKH_20200219T123947"


@pytest.fixture
def cog(sample, tmp_path) -> Path:
    """A writable copy of the COG folder under a name that tells nothing, with its STAC item."""
    return Path(shutil.copytree(sample / COG, tmp_path / "scene", copy_function=shutil.copyfile))


def offsets(files: ProductFiles) -> set[float]:
    """Of the reflectance bands; scene classes have none."""
    assert {(band.offset, band.factor) for band in files.bands if band.name == "SCL"} <= {(0, 1)}
    assert {band.unknown_units for band in files.bands} == {None}
    return {band.offset for band in files.bands if band.name != "SCL"}


def item_of(
    folder: Path,
    properties: dict,
    version: str = "1.0",
    offset: float | None = None,
    address: str = "",
    form: str = "tif",
) -> None:
    """Replace the folder's STAC item by one of another service: where it says scale and offset depends on the version."""
    file = next(folder.glob("*.json"))
    item = json.loads(file.read_text())
    kept = {name: item["properties"][name] for name in ("datetime", "platform", "eo:cloud_cover")}
    item["properties"] = kept | {"datetime": "2023-02-19T11:34:25Z"} | properties
    item["assets"] = {}
    for band in (*TWELVE, "SCL"):
        asset: dict = {"href": f"{address or 'https://example.org/'}{band}.{form}"}
        said = {} if offset is None or band == "SCL" else {"scale": 0.0001, "offset": offset}
        prefixed = {f"raster:{name}": value for name, value in said.items()}
        match version:
            case "1.0":
                asset["raster:bands"] = [{"nodata": 0, "data_type": "uint16", **said}]
            case "1.1 bands":
                asset["bands"] = [{"name": band, "data_type": "uint16", **prefixed}]
            case "1.1 asset":
                asset |= {"bands": [{"name": band}], "data_type": "uint16", **prefixed}
            case "1.1 item":
                item["properties"] |= {f"raster:{name}": value for name, value in said.items()}
        item["assets"][f"{band}_10m"] = asset
    item["id"] = properties.get("s2:product_uri", "scene")
    file.write_text(json.dumps(item))


V0 = {"sentinel:processing_baseline": "04.00", "sentinel:product_id": NEW.replace("N0509", "N0400")}
V1 = {"s2:processing_baseline": "05.09", "s2:product_uri": f"{NEW}.SAFE"}
PLANETARY = {"s2:processing_baseline": "05.09", "s2:product_uri": f"{NEW}.SAFE"}
CDSE = {"processing:version": "05.09", "product:type": "S2MSI2A", "grid:code": "MGRS-29RKH"}
IN_SAFE = f"https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/29/R/KH/{NEW}.SAFE/GRANULE/A/IMG_DATA/R10m/A_"


@pytest.mark.parametrize(
    ("properties", "version", "offset", "address", "expected"),
    [
        (V0 | {"sentinel:boa_offset_applied": True}, "1.0", None, "", 0),
        (V0 | {"sentinel:boa_offset_applied": False}, "1.0", None, "", -1000),
        (V0, "1.0", None, "", -1000),  # the flag came later than the number of the baseline
        (
            V0 | {"sentinel:processing_baseline": "02.14", "sentinel:product_id": NEW.replace("N0509", "N0214")},
            "1.0",
            None,
            "",
            0,
        ),
        (V1 | {"earthsearch:boa_offset_applied": True}, "1.0", -0.1, "", 0),
        (V1 | {"earthsearch:boa_offset_applied": False}, "1.0", -0.1, "", -1000),
        (V1 | {"earthsearch:boa_offset_applied": False}, "1.0", None, "", -1000),
        (V1, "1.0", -0.1, "", -1000),  # sentinel-2-c1-l2a
        (V1, "1.0", 0, "", 0),
        (V1, "1.1 bands", -0.1, "", -1000),
        (V1, "1.1 bands", 0, "", 0),
        (V1, "1.1 asset", -0.1, "", -1000),
        (V1, "1.1 asset", 0, "", 0),
        (V1, "1.1 item", -0.1, "", -1000),
        (CDSE, "1.1 asset", -0.1, f"s3://eodata/{NEW}.SAFE/GRANULE/A/IMG_DATA/R10m/A_", -1000),
        (PLANETARY, "none", None, IN_SAFE, -1000),
        (
            PLANETARY | {"s2:processing_baseline": 2.14, "s2:product_uri": NEW.replace("N0509", "N0214")},
            "none",
            None,
            IN_SAFE,
            0,
        ),
        ({"s2:processing_baseline": "03.01"}, "none", None, "", 0),
    ],
)
def test_offset_of_stac_items_of_all_services(cog, properties, version, offset, address, expected):
    item_of(cog, properties, version, offset, address)
    files = open_path(cog)
    assert offsets(files) == {expected}
    assert set(files.product.offsets.values()) == {expected / 10_000}
    assert set(files.product.scales.values()) == {0.0001}


def test_signed_addresses_and_names_without_baseline(cog):
    """As the Planetary Computer's: the item's id lacks the baseline, addresses end in a signature."""
    short = NEW.replace("_N0509", "")
    item_of(cog, {"s2:processing_baseline": "05.09", "s2:product_uri": short}, "none", None, IN_SAFE)
    file = next(cog.glob("*.json"))
    file.write_text(file.read_text().replace('.tif"', '.tif?se=2026&sig=a%2Fb"'))
    files = open_path(cog)
    assert offsets(files) == {-1000}
    product = files.product
    assert (product.name, product.processing_baseline, product.mgrs_tile) == (short, "05.09", "29RKH")
    assert product.relative_orbit == 37


def test_jpeg_2000_beside_converted_files_keep_their_offset(sample, tmp_path):
    """Earth Search lists both; its flag is of the COGs, and JPEG 2000 files are as ESA delivers them."""
    folder = tmp_path / "scene"
    folder.mkdir()
    for file in (sample / JP2_L2A / "R10m").glob("B0*.jp2"):
        shutil.copyfile(file, folder / file.name)
    shutil.copyfile(next((sample / COG).glob("*.json")), folder / "item.json")
    item_of(folder, V1 | {"earthsearch:boa_offset_applied": True}, "1.0", -0.1)
    assert offsets(open_path(folder)) == {-1000}


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        (V1, r"B01\.tif: pixels of baseline 05.09, but S2A_29RKH.*json does not say whether its offset of -0.1"),
        ({}, r"B01\.tif: pixels of unknown baseline, which does not tell whether they have an offset of -0.1"),
        ({"s2:processing_baseline": "99.99"}, r"B01\.tif: pixels of baseline 99.99, which does not tell"),
    ],
)
def test_where_nothing_tells_the_offset_the_load_asks(archive, cog, properties, message):
    item_of(cog, properties, "none")
    files = open_path(cog)
    assert files.product.scales is files.product.offsets is None
    with pytest.raises(PgearthError, match=message) as error:
        load_product(archive, cog, Options(grid="fixed:120"))
    assert "--offset" in error.value.hint
    assert archive.execute("select count(*) from eo.product").fetchone() == (0,)
    for offset, expected in ((-0.1, -1000), (0.0, 0)):
        files = open_path(cog, offset=offset)
        assert offsets(files) == {expected}
        assert set(files.product.offsets.values()) == {offset}


@pytest.mark.parametrize("given", [True, False])
def test_a_name_given_is_read_as_a_name_found(archive, sample, cog, given):
    next(cog.glob("*.json")).unlink()
    folder, name = (cog, NEW) if given else (cog.rename(cog.with_name(f"{NEW}.SAFE")), None)
    files = open_path(folder, name=name)
    assert offsets(files) == {-1000}
    product = files.product
    assert (product.name, product.platform, product.level) == (NEW, "sentinel-2a", "L2A")
    assert (product.processing_baseline, product.relative_orbit, product.mgrs_tile) == ("05.09", 37, "29RKH")
    assert product.sensing_time == datetime(2023, 2, 19, 11, 21, 11, tzinfo=UTC)
    load_product(archive, folder, Options(Given(name), "fixed:120", ("B02",)))
    (wkb,) = archive.execute(
        "select ST_AsWKB(rast) from eo.patch_raster join eo.patch using (patch_id, cell)"
        " where (tile_column, tile_row) = (0, 0)"
    ).fetchone()
    with rasterio.open(sample / COG / "B02.tif") as file:
        pixels = file.read(1, window=Window(0, 0, 120, 120)).astype(int)
    np.testing.assert_array_equal(from_wkb(wkb).bands[0], np.where(pixels == 0, 0, np.maximum(pixels - 1000, 1)))


@pytest.mark.parametrize("name", [f"{NEW}.SAFE", NEW.replace("_N0509", "")])
def test_names_given_with_suffix_or_without_baseline(cog, name):
    next(cog.glob("*.json")).unlink()
    files = open_path(cog, name=name)
    assert files.product.mgrs_tile == "29RKH"
    assert files.bands[0].offset == (-1000 if "N0509" in name else 0)
    assert (files.bands[0].unknown_units is None) is ("N0509" in name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            SINCE_OFFSET.replace("N0509", "N0214"),
            "processing baseline 05.09, the name given, S2A.*_N0214_.* says 02.14",
        ),
        (SINCE_OFFSET.replace("S2A", "S2B"), "platform sentinel-2a, the name given, S2B.* says sentinel-2b"),
        (SINCE_OFFSET.replace("L2A", "L1C"), "level L2A, the name given, S2A_MSIL1C.* says L1C"),
        (SINCE_OFFSET.replace("01KAB", "01KAC"), "tile 01KAB, the name given, S2A.* says 01KAC"),
        (SINCE_OFFSET.replace("R029", "R030"), "relative orbit 29, the name given, S2A.* says 30"),
        (
            SINCE_OFFSET.replace("0821T22", "0820T22"),
            "sensing time 2023-08-21.*, the name given, S2A.* says 2023-08-20",
        ),
    ],
)
def test_sources_that_contradict_each_other(safe, name, message):
    name = name.removesuffix(".SAFE")
    with pytest.raises(PgearthError, match=f"MTD_MSIL2A.xml says {message}"):
        open_path(safe, name=name)
    with pytest.raises(
        PgearthError, match=f"MTD_MSIL2A.xml says {message.replace('the name given', 'the folder.s name')}"
    ):
        open_path(safe.rename(safe.with_name(f"{name}.SAFE")))


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"datetime": "1820-02-19T11:21:11Z"}, "sensing time 1820-.* says 2023-02-19"),
        ({"datetime": "2920-02-19T11:21:11Z"}, "sensing time 2920-.* says 2023-02-19"),
        ({"platform": "sentinel-2b"}, "platform sentinel-2b, .* says sentinel-2a"),
        ({"grid:code": "MGRS-30RKH"}, "tile 30RKH, .* says 29RKH"),
        ({"s2:product_type": "S2MSI1C"}, "level L1C, .* says L2A"),
        ({"s2:processing_baseline": "02.14"}, "processing baseline 02.14, .* says 05.09"),
        ({"sat:relative_orbit": 38}, "relative orbit 38, .* says 37"),
    ],
)
def test_items_that_contradict_the_name_in_them(cog, properties, message):
    item_of(cog, {"s2:product_uri": NEW, "s2:processing_baseline": "05.09"} | properties)
    with pytest.raises(PgearthError, match=rf"\.json says {message}"):
        open_path(cog)


@pytest.mark.parametrize(
    "name", [OLD.replace("0219T11", "0230T11"), OLD.replace("T112", "T252"), "20230230T112111_20230230T112111_T29RKH"]
)
def test_names_with_a_time_that_is_none(cog, name):
    next(cog.glob("*.json")).unlink()
    with pytest.raises(PgearthError, match=rf"{name}: .* is no time\nHint: .*--name"):
        open_path(cog, name=name)


def test_metadata_files_that_contradict_each_other(sample, cog, safe):
    """A COG whose offset is applied beside the XML of ESA's product, which has it."""
    name = SINCE_OFFSET.removesuffix(".SAFE")
    item_of(
        cog,
        {
            "s2:processing_baseline": "05.09",
            "s2:product_uri": name,
            "datetime": "2023-08-21T22:19:41Z",
            "earthsearch:boa_offset_applied": True,
        },
        "1.0",
        -0.1,
    )
    shutil.copyfile(safe / "MTD_MSIL2A.xml", cog / "MTD_MSIL2A.xml")
    with pytest.raises(PgearthError, match=r"MTD_MSIL2A.xml say offset -0.1, S2A_29RKH.*json says 0") as error:
        open_path(cog)
    assert "--offset -0.1 or --offset 0" in error.value.hint
    assert offsets(open_path(cog, offset=0.0)) == {0}


def with_tags(folder: Path, scale: float, offset: float, dtype: str = "uint16") -> None:
    """Give the bands tags of scale and offset; as floating-point numbers, they hold reflectance."""
    for file in folder.glob("B*.tif"):
        with rasterio.open(file) as dataset:
            pixels, profile = dataset.read(), dataset.profile
        if dtype == "float32":
            pixels = (pixels / 10_000).astype(dtype)
        with rasterio.open(file, "w", **profile | {"driver": "GTiff", "dtype": dtype, "nodata": 0}) as dataset:
            dataset.write(pixels)
            dataset.scales, dataset.offsets = [scale], [offset]


@pytest.mark.parametrize(
    ("name", "scale", "offset", "expected"),
    [(NEW, 0.0001, -0.1, -1000), (NEW, 0.0001, 0, None), (OLD, 0.0001, 0, 0), ("scene", 0.0001, -0.1, -1000)],
)
def test_tags_of_the_files(cog, name, scale, offset, expected):
    next(cog.glob("*.json")).unlink()
    with_tags(cog, scale, offset)
    files = open_path(cog, name=name, sensing_time=datetime(2023, 2, 19, tzinfo=UTC), platform="sentinel-2a")
    if expected is None:
        assert all("the tags of" in band.unknown_units for band in files.bands if band.name != "SCL")
    else:
        assert offsets(files) == {expected}


def test_tags_that_contradict_metadata(cog):
    with_tags(cog, 0.0001, -0.1)
    with pytest.raises(PgearthError, match=r"the tags of .*B01\.tif say offset -0.1, .*\.json says 0"):
        open_path(cog)
    next(cog.glob("*.json")).unlink()
    with pytest.raises(
        PgearthError, match=r"the tags of .*B01\.tif says offset -0.1, but pixels of baseline 02.14 have"
    ):
        open_path(cog, name=OLD)
    with_tags(cog, 0.00005, 0)
    assert {band.factor for band in open_path(cog, name=OLD).bands} == {0.5, 1}
    assert {band.factor for band in open_path(cog, name=OLD, scale=0.0001).bands} == {1}


@pytest.mark.parametrize("scale", [0.0, -0.0001, np.nan])
def test_scales_that_can_be_none(cog, scale):
    with_tags(cog, scale, 0)
    with pytest.raises(PgearthError, match=r"the tags of .*\.tif says? scale .*, which it cannot be\nHint: .*--scale"):
        open_path(cog)
    next(cog.glob("*.json")).unlink()
    with_tags(cog, 0.0001, np.inf)
    with pytest.raises(PgearthError, match=r"the tags of .*\.tif says? offset inf, which it cannot be"):
        open_path(cog, name=OLD)


@pytest.mark.parametrize(("scale", "given"), [(1.0, 1.0), (2.0, None)])
def test_floating_point_pixels_are_stored_as_reflectance_times_10000(archive, sample, cog, scale, given):
    """The item speaks of whole numbers, so it does not tell what these mean."""
    with_tags(cog, scale, 0, "float32")
    if given:
        with pytest.raises(PgearthError, match=r"B02\.tif: floating-point pixels, whose units no tag") as error:
            load_product(archive, cog, Options(grid="fixed:120", bands=("B02",)))
        assert "--scale 1" in error.value.hint
    load_product(archive, cog, Options(Given(scale=given), grid="fixed:120", bands=("B02",)))
    (wkb,) = archive.execute(
        "select ST_AsWKB(rast) from eo.patch_raster join eo.patch using (patch_id, cell)"
        " where (tile_column, tile_row) = (3, 3)"
    ).fetchone()
    with rasterio.open(sample / COG / "B02.tif") as file:
        pixels = file.read(1, window=Window(360, 360, 120, 120)).astype(float)
    np.testing.assert_allclose(from_wkb(wkb).bands[0], pixels * scale, rtol=1e-6)
    assert set(archive.execute("select scales ->> 'B02' from eo.product").fetchone()) == {f"{scale:g}.0"}


def test_whole_numbers_of_another_scale_become_floating_point(archive, cog):
    next(cog.glob("*.json")).unlink()
    options = Options(Given(OLD, scale=0.0002, offset=-0.05), "fixed:120", ("B03",))
    load_product(archive, cog, options)
    (wkb,) = archive.execute(
        "select ST_AsWKB(rast) from eo.patch_raster join eo.patch using (patch_id, cell)"
        " where (tile_column, tile_row) = (3, 3)"
    ).fetchone()
    with rasterio.open(cog / "B03.tif") as file:
        pixels = file.read(1, window=Window(360, 360, 120, 120)).astype(float)
    stored = from_wkb(wkb).bands[0]
    assert stored.dtype == "float32"
    np.testing.assert_allclose(stored, np.where(pixels == 0, 0, np.maximum(pixels * 2 - 500, 1)))


def test_scale_and_offset_on_the_command_line(archive, sample, cog, run_pgearth):
    item_of(cog, V1, "none")
    arguments = ("load", "product", cog, "--grid", "fixed:120", "--bands", "B02")
    result = run_pgearth(archive, *arguments)
    assert result.exit_code == 1
    assert "--offset" in str(result.exception)
    assert run_pgearth(archive, *arguments, "--offset", "-1000").exit_code == 2
    assert run_pgearth(archive, *arguments, "--offset", "-0.1").exit_code == 0
    assert archive.execute("select offsets ->> 'B02' from eo.product").fetchone() == ("-0.1",)
    assert "1 loaded before" in run_pgearth(archive, *arguments, "--offset", "-0.1").output
    result = run_pgearth(archive, *arguments, "--offset", "0")
    assert "it was loaded before, with other contents" in str(result.exception)
    modis = sample / "modis/mcd43a4_h21v11_2017006"
    result = run_pgearth(archive, "load", "product", modis, "--scale", "1")
    assert "--scale and --offset are for Sentinel-2" in str(result.exception)


@pytest.mark.parametrize("scale", ["0", "-0.0001", "nan"])
def test_no_scale_on_the_command_line(archive, cog, run_pgearth, scale):
    result = run_pgearth(archive, "load", "product", cog, "--scale", scale)
    assert result.exit_code == 2
    assert "Invalid value for '--scale'" in result.output


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (ESRI, ("sentinel-2a", "L2A", "43MDV", datetime(2018, 7, 21, 5, 37, 21, tzinfo=UTC), "02.12", 62)),
        ("S2B_MSIL1C_20200604T054639_R048_T43RCP_20200604T083537", ("sentinel-2b", "L1C", "43RCP", JUNE, None, 48)),
        ("20200604T054639_20200604T054831_T43RCP", (None, None, "43RCP", JUNE, None, None)),
    ],
)
def test_what_a_name_says(name, expected):
    said = from_name(name, "the name")
    facts = (said.platform, said.level, said.tile, said.sensing_time, said.baseline, said.relative_orbit)
    assert facts == expected
    assert said.source.startswith("the name, ")


@pytest.mark.parametrize("name", ["", "scene", "S2A_MSIL1B_20200604T054639_R048_T43RCP_20200604T083537", f"{ESRI}.zip"])
def test_names_that_say_nothing(name):
    assert from_name(name, "the name") is None


@pytest.mark.parametrize(("value", "baseline"), [("04.00", "04.00"), (4, "04.00"), ("0509", "05.09"), ("5.1", "05.10")])
def test_ways_to_write_a_baseline(value, baseline):
    assert baseline_of(value) == baseline


def test_no_baseline():
    with pytest.raises(ValueError, match="'four' is no processing baseline"):
        baseline_of("four")


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
        (None, None, "03.01", 0),
    ],
)
def test_offset_of_stac_items(sample, tmp_path, applied, raster_offset, baseline, expected):
    folder = Path(shutil.copytree(sample / COG, tmp_path / COG.name, copy_function=shutil.copyfile))
    name = OLD.replace("N0214", f"N{baseline.replace('.', '')}")
    properties = {
        "s2:processing_baseline": baseline,
        "earthsearch:boa_offset_applied": applied,
        "s2:product_uri": name,
        "sentinel:product_id": name,
    }
    stac_item(folder, properties, raster_offset)
    files = open_path(folder)
    assert offsets(files) == {expected}
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
    time = datetime.strptime(name[11:26], "%Y%m%dT%H%M%S").isoformat() + "Z"
    (folder / "tileInfo.json").write_text(json.dumps(information | {"productName": name, "timestamp": time}))
    assert {band.offset for band in open_path(folder).bands} == {offset}


@pytest.mark.parametrize(("collection", "offset"), [("S2_SR", -1000), ("S2_SR_HARMONIZED", 0)])
def test_offset_of_earth_engine(small, collection, offset):
    document = json.loads((small / "metadata.json").read_text())
    name = re.sub(r"_N\d{4}_", "_N0400_", document["PRODUCT_ID"])
    document |= {
        "PROCESSING_BASELINE": "04.00",
        "PRODUCT_ID": name,
        "system:id": f"COPERNICUS/{collection}/{small.name}",
    }
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
    assert find_files(open_folder(tmp_path)).bands == ({band: [file]} if band else {})


def test_earth_engine_folder_without_metadata(sample, tmp_path):
    """Level from the data set's folders, name and time from the product's; the satellite must be told."""
    for folder, level in ((SSL4EO_JUNE, "L2A"), (SSL4EO_JUNE_L1C, "L1C")):
        copy = Path(shutil.copytree(sample / folder, tmp_path / folder, copy_function=shutil.copyfile))
        (copy / "metadata.json").unlink()
        with pytest.raises(PgearthError) as error:
            open_path(copy)
        assert error.value.hint == "Say so with --platform."
        product = open_path(copy, platform="sentinel-2b").product
        assert (product.name, product.level, product.mgrs_tile) == (f"{folder.name}_{level}", level, "43RCP")
        assert product.sensing_time == datetime(2020, 6, 4, 5, 46, 39, tzinfo=UTC)
        assert product.scales is product.offsets is product.processing_baseline is None


def test_unknown_product(small):
    (small / "metadata.json").unlink()
    folder = small.rename(small.with_name("my product"))
    with pytest.raises(PgearthError, match="my product") as error:
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


def test_most_telling_metadata(sample, tmp_path, safe):
    """Of documents of one product, the most telling counts; what it does not say, the others do."""
    folder = tmp_path / "scene"
    folder.mkdir()
    name = SINCE_OFFSET.removesuffix(".SAFE")
    properties = json.loads((sample / SSL4EO_JUNE / "metadata.json").read_text()) | {
        "PRODUCT_ID": name,
        "PROCESSING_BASELINE": "05.09",
        "SENSING_ORBIT_NUMBER": 29,
        "DATATAKE_IDENTIFIER": "GS2A_20230821T221941_042640_N05.09",
        "system:time_start": datetime(2023, 8, 21, 22, 19, 44, tzinfo=UTC).timestamp() * 1000,
    }
    (folder / "metadata.json").write_text(json.dumps(properties))
    (folder / "B2.tif").touch()
    assert open_path(folder, offset=0.0).product.cloud_cover == 4.184628
    information = {"productName": name, "timestamp": "2023-08-21T22:19:48Z", "cloudyPixelPercentage": 7.5}
    (folder / "A.json").write_text(json.dumps(information))
    assert open_path(folder, offset=0.0).product.cloud_cover == 7.5
    item = json.loads((sample / "safe-metadata" / SINCE_OFFSET / "expected_output.json").read_text())
    item["properties"]["eo:cloud_cover"] = 8.5
    (folder / "Z.json").write_text(json.dumps(item))
    assert open_path(folder, offset=0.0).product.cloud_cover == 8.5
    shutil.copyfile(safe / "MTD_MSIL2A.xml", folder / "MTD_MSIL2A.xml")
    assert open_path(folder).product.cloud_cover == pytest.approx(59.050727)
    assert open_path(folder).product.name == name


def test_metadata_of_another_product(sample, small):
    shutil.copyfile(sample / JP2_L2A / "tileInfo.json", small / "A.json")
    with pytest.raises(PgearthError, match=r"A\.json says platform sentinel-2a, metadata\.json says sentinel-2b"):
        open_path(small)


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
    with pytest.raises(PgearthError, match=message) as error:
        open_path(safe)
    assert str(safe / "MTD_MSIL2A.xml") in str(error.value)
    assert error.value.hint


@pytest.mark.parametrize("content", ['{"a": ', '{"a": NaN}', '{"productName": "S2A", "timestamp": "last summer"}'])
def test_damaged_json(small, content):
    (small / "metadata.json").write_text(content)
    with pytest.raises(PgearthError, match=r"metadata\.json: not valid metadata") as error:
        open_path(small)
    assert "--name, --time and --platform" in error.value.hint


def test_bands_of_several_granules(small):
    for granule in ("L1C_T43RCP", "L1C_T43RCQ"):
        shutil.copytree(small, small / "GRANULE" / granule / "IMG_DATA", ignore=shutil.ignore_patterns("GRANULE"))
    with pytest.raises(PgearthError, match=r"several folders: .*L1C_T43RCP/IMG_DATA, .*L1C_T43RCQ/IMG_DATA"):
        open_path(small)


def test_unreadable_band_of_a_product_without_outline(small):
    (small / "metadata.json").unlink()
    (small / "B2.tif").write_text("<html>404 Not Found</html>")
    with pytest.raises(PgearthError, match=r"B2\.tif: cannot be read as a raster"):
        open_path(small, name="a", platform="sentinel-2a")


@pytest.mark.parametrize("share", [0.3, 0.999])
def test_damaged_zip(safe, tmp_path, share):
    archive = Path(shutil.make_archive(str(tmp_path / "a"), "zip", safe))
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    with pytest.raises(PgearthError, match=r"a\.zip: a damaged archive"):
        open_path(archive)


def test_damaged_member_of_a_zip(safe, tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(safe / "MTD_MSIL2A.xml", f"{safe.name}/MTD_MSIL2A.xml")
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"<PRODUCT_URI>S2A", b"<PRODUCT_URI>S2C"))
    with pytest.raises(PgearthError, match=rf"a\.zip/{safe.name}/MTD_MSIL2A\.xml: cannot be read: Bad CRC-32"):
        open_path(archive)


def test_metadata_too_large(safe, monkeypatch):
    monkeypatch.setenv("PGEARTH_MAX_DOCUMENT_BYTES", "50000")
    with pytest.raises(PgearthError, match=r"MTD_MSIL2A\.xml: 54,685 bytes are too many for metadata"):
        open_path(safe)


def test_no_product(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "MTD_MSIL2A.xml.txt").touch()
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(PgearthError, match="no product of a known format") as error:
            open_path(path)
        assert str(path) in str(error.value) and "MTD_MSIL2A.xml" in error.value.hint
    monkeypatch.setattr(product_folder, "MOST_FILES", 1)
    with pytest.raises(PgearthError, match="more than 1 files"):
        open_path(tmp_path)


def zip_of(files: dict[str, bytes], archive: Path) -> Path:
    """A zip archive whose members are stored as they are."""
    with zipfile.ZipFile(archive, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return archive


def geotiff_bytes(value: int, upside_down: bool = False) -> bytes:
    """A plain GeoTIFF of 10 m pixels, without compression."""
    with MemoryFile() as memory:
        step = 10 if upside_down else -10
        profile = {"driver": "GTiff", "width": 60, "height": 60, "count": 1, "dtype": "uint16", "crs": "EPSG:32632"}
        with memory.open(**profile, transform=Affine(10, 0, 500_000, 0, step, 5_600_000)) as dataset:
            dataset.write(np.full((1, 60, 60), value, np.uint16))
        return bytes(memory.read())


NAMED = {
    "name": "a",
    "platform": "sentinel-2a",
    "sensing_time": datetime(2020, 1, 1, tzinfo=UTC),
    "scale": 0.0001,
    "offset": 0,
}


def test_damaged_pixels_in_a_zip_are_not_loaded(tmp_path):
    """A GeoTIFF without compression has no checksum of its own."""
    bands = {f"P/B{number:02}.tif": geotiff_bytes(number) for number in (2, 3, 4)}
    archive = zip_of(bands, tmp_path / "a.zip")
    choose_bands(archive, open_path(archive, **NAMED), ["B02", "B03", "B04"])
    content = bytearray(archive.read_bytes())
    start = content.index(bands["P/B03.tif"]) + len(bands["P/B03.tif"]) - 100
    content[start] ^= 1
    archive.write_bytes(content)
    files = open_path(archive, **NAMED)
    choose_bands(archive, files, ["B02", "B04"])
    with pytest.raises(PgearthError, match=r"a\.zip: P/B03\.tif is damaged: Bad CRC-32"):
        choose_bands(archive, files, ["B02", "B03"])


def test_two_files_of_one_name_in_a_zip(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as zipped, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for value in (1, 2):
            zipped.writestr("P/B02.tif", geotiff_bytes(value))
    with pytest.raises(PgearthError, match=r"a\.zip: it has two files P/B02\.tif"):
        open_path(archive, **NAMED)


def test_bands_whose_first_row_is_the_southernmost(tmp_path):
    for band in ("B02", "B03", "B04", "B08"):
        (tmp_path / f"{band}.tif").write_bytes(geotiff_bytes(1, upside_down=True))
    assert [band.name for band in open_path(tmp_path, **NAMED).bands] == ["B02", "B03", "B04", "B08"]

"""Files that are instructions to read elsewhere are refused, and neither other files nor the network are read."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psycopg
import pyogrio
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from rasterio.errors import RasterioError

from pgearth.loaders.archive.filters import parse_area
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.export.documents import read_geotiff
from pgearth.loaders.files.gdal_files import VECTOR_DRIVERS, check_reference_system, open_raster
from pgearth.loaders.products.folder import open_folder
from pgearth.loaders.reference.corine import load_corine
from pgearth.loaders.reference.nuts import load_nuts
from pgearth.loaders.reference.polygons import find_polygon_layer
from pgearth.pyfuncs.errors import PgearthError


@dataclass
class Bait:
    """What a hostile file tells to read: a raster and a table on this machine, a server that counts its visitors."""

    raster: Path
    vector: Path
    url: str
    visits: list[bytes]


@pytest.fixture
def bait(tmp_path: Path) -> Iterator[Bait]:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    write_raster(folder / "secret.tif", np.full((1, 120, 120), 4242, np.uint16))
    square = shapely.box(0, 0, 1, 1)
    pyogrio.raw.write(
        folder / "secret.gpkg",
        geometry=np.array([square.wkb], dtype=object),
        field_data=[np.array(["111"], dtype=object)],
        fields=["Code_18"],
        geometry_type="Polygon",
        crs="EPSG:4326",
    )
    visits: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    visitor, _ = server.accept()
                except OSError:
                    return
                with visitor:
                    visits.append(visitor.recv(1000))

        threading.Thread(target=serve, daemon=True).start()
        yield Bait(
            folder / "secret.tif", folder / "secret.gpkg", f"http://127.0.0.1:{server.getsockname()[1]}/x", visits
        )


def write_raster(path: Path, pixels: np.ndarray, **profile: object) -> Path:
    options = {"driver": "GTiff", "dtype": pixels.dtype, "crs": "EPSG:32633", **profile}
    with rasterio.open(
        path, "w", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2],
        transform=Affine(10, 0, 5e5, 0, -10, 5e6), **options,
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
    return path


def vrt(source: object) -> str:
    return (
        '<VRTDataset rasterXSize="120" rasterYSize="120"><SRS>EPSG:32633</SRS>'
        "<GeoTransform>5e5, 10, 0, 5e6, 0, -10</GeoTransform>"
        f'<VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename relativeToVRT="0">{source}'
        "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )


def wms(url: str) -> str:
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service><DataWindow>'
        "<UpperLeftX>0</UpperLeftX><UpperLeftY>1</UpperLeftY><LowerRightX>1</LowerRightX><LowerRightY>0</LowerRightY>"
        "<TileLevel>0</TileLevel><TileCountX>1</TileCountX><TileCountY>1</TileCountY></DataWindow>"
        "<BlockSizeX>120</BlockSizeX><BlockSizeY>120</BlockSizeY><BandsCount>1</BandsCount></GDAL_WMS>"
    )


RASTERS: dict[str, Callable[[Bait], str]] = {
    "VRT": lambda bait: vrt(bait.raster),
    "VRT of the network": lambda bait: vrt(f"/vsicurl/{bait.url}"),
    "VRT with expressions": lambda bait: vrt(bait.raster).replace("VRTRasterBand ", 'VRTRasterBand subClass="VRTDerivedRasterBand" '),
    "WMS": lambda bait: wms(bait.url),
    "WCS": lambda bait: f"<WCS_GDAL><ServiceURL>{bait.url}?</ServiceURL><CoverageName>x</CoverageName></WCS_GDAL>",
    "WMTS": lambda bait: f"<GDAL_WMTS><GetCapabilitiesUrl>{bait.url}</GetCapabilitiesUrl></GDAL_WMTS>",
    "STACTA": lambda bait: json.dumps({"stac_extensions": ["tiled-assets"], "links": [{"href": bait.url}], "asset_templates": {}}),
    "STACIT": lambda bait: json.dumps({"type": "FeatureCollection", "stac_version": "1.0.0", "features": [], "links": [{"rel": "next", "href": bait.url}]}),
    "MRF": lambda bait: f"<MRF_META><CachedSource><Source>{bait.raster}</Source></CachedSource><Raster><Size x='120' y='120' c='1'/></Raster></MRF_META>",
    "ENVI header": lambda _: "ENVI\nsamples = 120\nlines = 120\nbands = 1\n",
    "an address": lambda bait: bait.url,
    "GTI": lambda bait: f"<GDALTileIndexDataset><IndexDataset>{bait.vector}</IndexDataset></GDALTileIndexDataset>",
}  # fmt: skip


@pytest.mark.parametrize("kind", RASTERS)
def test_rasters_that_read_elsewhere(kind: str, bait: Bait, tmp_path: Path) -> None:
    text = RASTERS[kind](bait)
    file = tmp_path / "B02.tif"
    file.write_text(text)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(file, "a/B02.tif")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(file, "a/B02.tif")
    folders = [open_folder(tmp_path / name) for name in ("a.zip", "a.tar")]
    for path in (file, *(folder.gdal_path("B02.tif") for folder in folders if folder)):
        with pytest.raises(RasterioError):
            open_raster(path)
    with pytest.raises(PgearthError, match=r"B02\.tif: it cannot be read") as refused:
        read_geotiff("B02.tif", text.encode(), 1 << 20)
    assert "GeoTIFF" in refused.value.hint
    assert not bait.visits


@pytest.mark.parametrize(
    "path",
    [
        "/vsicurl/{url}",
        "/vsizip//vsicurl/{url}",
        "/vsizip/{{/vsicurl/{url}}}/a.tif",
        "/vsitar//vsicurl/{url}/a.tif",
        "/vsigzip/{raster}",
        "/vsisubfile/0_100,{raster}",
        "/vsis3/bucket/a.tif",
        "/vsicurl?url={url}",
        "{url}",
        "GTIFF_DIR:1:{raster}",
        "NETCDF:{raster}:x",
        'HDF5:"{raster}"://x',
        "vrt://{raster}",
        "WMS:{url}",
        "PG:host=127.0.0.1",
        "<VRTDataset/>",
        "zip+{url}!a.tif",
    ],
)
def test_names_that_are_no_files(path: str, bait: Bait) -> None:
    with pytest.raises(RasterioError):
        open_raster(path.format(url=bait.url, raster=bait.raster))
    assert not bait.visits


def test_what_lies_beside_a_raster_is_not_read(bait: Bait, tmp_path: Path) -> None:
    pixels = np.arange(120 * 120, dtype=np.uint16).reshape(1, 120, 120)
    file = write_raster(tmp_path / "B02.tif", pixels)
    for suffix in (".ovr", ".msk"):
        Path(f"{file}{suffix}").write_text(vrt(f"/vsicurl/{bait.url}"))
    Path(f"{file}.aux.xml").write_text(
        '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/vsicurl/'
        f'{bait.url}</MDI></Metadata><PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    (tmp_path / "B02.tfw").write_text("1\n0\n0\n-1\n0\n0\n")
    with open_raster(file) as dataset:
        np.testing.assert_array_equal(dataset.read(), pixels)
        assert (dataset.nodata, dataset.overviews(1)) == (None, [])
        assert dataset.transform == Affine(10, 0, 5e5, 0, -10, 5e6)
        assert dataset.read_masks(1).all()
    assert not bait.visits


@pytest.mark.parametrize("driver", ["GTiff", "COG", "JP2OpenJPEG", "PNG"])
def test_formats_that_are_read(driver: str, tmp_path: Path) -> None:
    pixels = np.arange(128 * 128, dtype=np.uint16).reshape(1, 128, 128)
    options = {"REVERSIBLE": "YES", "QUALITY": "100"} if driver == "JP2OpenJPEG" else {}
    source = write_raster(tmp_path / "source.tif", pixels)
    rasterio.shutil.copy(source, tmp_path / "B02", driver=driver, **options)
    with open_raster(tmp_path / "B02") as dataset:
        np.testing.assert_array_equal(dataset.read(), pixels)


def test_an_export_with_a_virtual_raster(bait: Bait, tmp_path: Path) -> None:
    for text in (vrt(bait.raster), vrt(f"/vsicurl/{bait.url}"), wms(bait.url)):
        with pytest.raises(PgearthError, match=r"a\.tif: it cannot be read"):
            read_geotiff("a.tif", text.encode(), 1 << 20)
    assert not bait.visits


def test_bigearthnet_with_a_virtual_raster(
    archive: psycopg.Connection, sample: Path, bait: Bait, tmp_path: Path
) -> None:
    source = next((sample / "bigearthnet-v1" / "S2").iterdir())
    for number, target in enumerate((bait.raster, f"/vsicurl/{bait.url}")):
        root = tmp_path / str(number)
        patch = Path(shutil.copytree(source, root / source.name))
        for file in (root, patch, *patch.iterdir()):
            file.chmod(0o755)
        (patch / f"{source.name}_B02.tif").write_text(vrt(target))
        with pytest.raises(PgearthError, match=r"_B02\.tif: it cannot be read") as refused:
            load_bigearthnet(archive, root)
        assert "JPEG 2000" in refused.value.hint
    assert archive.execute("select count(*) from eo.patch").fetchone() == (0,)
    assert not bait.visits


def test_links_that_leave_a_product(bait: Bait, tmp_path: Path) -> None:
    folder = tmp_path / "S2A_product"
    folder.mkdir()
    write_raster(folder / "B03.tif", np.ones((1, 4, 4), np.uint16))
    (folder / "B04.tif").symlink_to("B03.tif")
    assert open_folder(folder) is not None
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    assert open_folder(linked) is not None  # the folder itself may be one
    (folder / "B02.tif").symlink_to(bait.raster)
    with pytest.raises(PgearthError, match=r"B02\.tif: it is a link that leaves the folder"):
        open_folder(folder)


FEATURES = (
    '"features": [{"type": "Feature", "properties": {"Code_18": "111"}, "geometry":'
    ' {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}}]'
)


def geojson(crs: str) -> str:
    return f'{{"type": "FeatureCollection", {crs}, {FEATURES}}}'


VECTORS: dict[str, Callable[[Bait], str]] = {
    "VRT": lambda bait: f'<OGRVRTDataSource><OGRVRTLayer name="secret"><SrcDataSource>{bait.vector}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>',
    "VRT of the network": lambda bait: f'<OGRVRTDataSource><OGRVRTLayer name="x"><SrcDataSource>/vsicurl/{bait.url}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>',
    "WFS": lambda bait: f"<OGRWFSDataSource><URL>{bait.url}</URL></OGRWFSDataSource>",
    "GDALG": lambda bait: json.dumps({"type": "gdal_streamed_alg", "command_line": f"gdal vector pipeline ! read {bait.vector} ! write --of stream x"}),
    "ESRI service": lambda bait: json.dumps({"geometryType": "esriGeometryPolygon", "features": [], "url": bait.url}),
    "GML": lambda bait: f'<gml:FeatureCollection xmlns:gml="http://www.opengis.net/gml" xmlns:xlink="x"><gml:featureMember xlink:href="{bait.url}"/></gml:FeatureCollection>',
    "KML": lambda bait: f"<kml><NetworkLink><Link><href>{bait.url}</href></Link></NetworkLink></kml>",
    "CSV": lambda _: 'Code_18,WKT\n111,"POLYGON((0 0, 1 0, 1 1, 0 0))"\n',
    "an address": lambda bait: bait.url,
    "linked reference system": lambda bait: geojson(f'"crs": {{"type": "link", "properties": {{"href": "{bait.url}"}}}}'),
    "reference system by URL": lambda bait: geojson(f'"crs": {{"type": "URL", "properties": {{"url": "{bait.url}"}}}}'),
    "hidden reference system": lambda bait: geojson(f'"\\u0063r\\u0073" : {{"t\\u0079pe": "l\\u0069nk", "properties": {{"href": "{bait.url}"}}}}'),
    "late reference system": lambda bait: f'{{"type": "FeatureCollection", {FEATURES}, "crs":\n{{"properties": {{"href": "{bait.url}"}}, "type": "link"}}}}',
    "very long reference system": lambda bait: geojson(f'"crs": {{"x": "{"y" * 30_000}", "type": "link", "properties": {{"href": "{bait.url}"}}}}'),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".shp", ".json", ""])
@pytest.mark.parametrize("kind", VECTORS)
def test_vectors_that_read_elsewhere(kind: str, suffix: str, bait: Bait, tmp_path: Path) -> None:
    file = tmp_path / f"classes{suffix}"
    file.write_text(VECTORS[kind](bait))
    with pytest.raises(
        PgearthError, match=r"classes.*: (cannot be read as a vector file|its reference system)"
    ) as error:
        find_polygon_layer(file, [])
    assert "GeoPackage" in error.value.hint or "ogr2ogr" in error.value.hint
    assert not bait.visits


def test_loaders_of_polygons(archive: psycopg.Connection, bait: Bait, tmp_path: Path) -> None:
    file = tmp_path / "classes.vrt"
    file.write_text(VECTORS["VRT"](bait))
    for load in (load_corine, load_nuts):
        with pytest.raises(PgearthError, match=r"classes\.vrt: cannot be read as a vector file"):
            load(archive, file)
    assert archive.execute("select (select count(*) from eo.corine), (select count(*) from eo.nuts)").fetchone() == (0, 0)  # fmt: skip


def test_zipped_vectors_that_read_elsewhere(bait: Bait, tmp_path: Path) -> None:
    for kind in VECTORS:
        path = tmp_path / "classes.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("classes.geojson", VECTORS[kind](bait))
        with pytest.raises(PgearthError, match=r"classes\.zip: cannot be read"):
            find_polygon_layer(path, [])
    assert not bait.visits


@pytest.mark.parametrize(
    "statement",
    [
        "create virtual table far using VirtualOGR('{vector}')",
        "create view far as select fid, geom, gdal_get_pixel_value('{raster}', 1, 'pixel', 1, 1) as \"Code_18\" from classes",
        "create view far as select * from ogr_layer('{vector}')",
    ],
)
def test_a_geopackage_that_reads_elsewhere(statement: str, bait: Bait, tmp_path: Path) -> None:
    file = tmp_path / "classes.gpkg"
    shutil.copy(bait.vector, file)
    with sqlite3.connect(file) as database:
        database.execute('alter table secret rename to "classes"')
        database.execute("update gpkg_contents set table_name = 'classes', identifier = 'classes'")
        database.execute("update gpkg_geometry_columns set table_name = 'classes'")
        with_module = statement.format(vector=bait.vector, raster=bait.raster)
        if "virtual" in statement:  # without the module at hand, its row is written as it would be
            database.execute("pragma writable_schema = on")
            database.execute("insert into sqlite_master values ('table', 'far', 'far', 0, ?)", (with_module,))
        else:
            database.execute(with_module)
        database.execute(
            "insert into gpkg_contents (table_name, data_type, identifier, srs_id) values ('far', 'features', 'far', 4326)"
        )
        database.execute("insert into gpkg_geometry_columns values ('far', 'geom', 'POLYGON', 4326, 0, 0)")
    seen = []
    try:
        layer = find_polygon_layer(file, [], "far")
        seen = list(layer.read(4326))
    except PgearthError:
        pass
    assert "4242" not in str(seen)
    assert not seen or "create view" in statement
    assert not bait.visits


@pytest.mark.parametrize("driver", VECTOR_DRIVERS)
def test_vector_formats_that_are_read(driver: str, tmp_path: Path) -> None:
    suffix = {"GPKG": ".gpkg", "ESRI Shapefile": ".shp", "FlatGeobuf": ".fgb", "OpenFileGDB": ".gdb", "GeoJSON": ".geojson"}[driver]  # fmt: skip
    path = tmp_path / f"classes{suffix}"
    pyogrio.raw.write(
        path, geometry=np.array([shapely.box(0, 0, 1, 1).wkb], dtype=object), field_data=[np.array([1])], fields=["a"],
        geometry_type="MultiPolygon" if driver == "OpenFileGDB" else "Polygon", crs="EPSG:4326", driver=driver,
        promote_to_multi=driver == "OpenFileGDB",
    )  # fmt: skip
    assert find_polygon_layer(path, []).crs.to_epsg() == 4326
    assert len(pyogrio.list_drivers()) > len(VECTOR_DRIVERS)  # all are there again afterwards


def test_reference_systems_that_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.geojson"
    for crs in (
        '"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3035"}}',
        '"crs": {"type": "EPSG", "properties": {"code": 3035}}',
        '"crs": null',
        '"note": {"crs": "link"}',
    ):
        file.write_text(geojson(crs))
        check_reference_system(file)
        find_polygon_layer(file, [])


def test_areas_are_documents_only(bait: Bait, tmp_path: Path) -> None:
    file = tmp_path / "area.json"
    for kind in ("VRT", "GDALG", "an address"):
        file.write_text(VECTORS[kind](bait))
        with pytest.raises(PgearthError):
            parse_area(str(file))
    for text in (f"/vsicurl/{bait.url}.json", f"{bait.url}.geojson"):
        with pytest.raises(PgearthError):
            parse_area(text)
    assert not bait.visits

"""Options of the command: what is no number, no list and no area is an error of its option, whatever the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import shapely

from pgearth.cli import pgearth
from pgearth.loaders.archive.filters import parse_area
from pgearth.pyfuncs.errors import PgearthError


def options_of(command: click.Command, path: str = "pgearth") -> Iterator[tuple[str, click.Parameter]]:
    """All parameters of all commands."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from options_of(below, f"{path} {name}")
    else:
        yield from ((f"{path} {param.opts[0]}", param) for param in command.params)


OPTIONS = dict(options_of(pgearth))
FLOATS = [name for name, param in OPTIONS.items() if isinstance(param.type, click.types.FloatParamType)]
# Several values in one text, comma-separated.
LISTS = {
    "pgearth load product --bands": "B02",
    "pgearth encoder add --bands": "B02",
    "pgearth encoder add --units": "decibels",
    "pgearth encoder add --mean": "1",
    "pgearth encoder add --std": "1",
    "pgearth train encoder --bands": "B02",
}
KEYS = [name for name in OPTIONS if name.endswith(("--patch-id", "--level", "--after-patch-id", "--max-results"))]


def convert(name: str, text: str) -> object:
    param = OPTIONS[name]
    return param.type.convert(text, param, None)


def test_the_options_are_found() -> None:
    assert len(FLOATS) >= 10 and len(KEYS) >= 10
    assert LISTS.keys() <= OPTIONS.keys()
    said = [
        name for name, param in OPTIONS.items() if "comma-separated" in (getattr(param, "help", None) or "").lower()
    ]
    assert set(said) <= LISTS.keys(), "a list is of the type Names or Numbers, and belongs above"


@pytest.mark.parametrize("text", ["nan", "NaN", "-nan", "inf", "-inf", "infinity", "1e400", "", "0,1", "1_0_", "x"])
@pytest.mark.parametrize("name", FLOATS)
def test_what_is_no_number(name: str, text: str) -> None:
    with pytest.raises(click.BadParameter):
        convert(name, text)


@pytest.mark.parametrize("text", ["", ",", "{},", ",{}", "{},,{}", " , "])
@pytest.mark.parametrize(("name", "value"), LISTS.items())
def test_lists_with_nothing_between_the_commas(name: str, value: str, text: str) -> None:
    with pytest.raises(click.BadParameter):
        convert(name, text.replace("{}", value))


@pytest.mark.parametrize("text", ["nan", "1,nan", "inf,1", "1;2", "1 2", "1,2,x"])
@pytest.mark.parametrize("name", ["pgearth encoder add --mean", "pgearth encoder add --std"])
def test_lists_that_are_not_of_numbers(name: str, text: str) -> None:
    with pytest.raises(click.BadParameter):
        convert(name, text)


def test_lists_that_name_something_twice() -> None:
    for name in ("pgearth load product --bands", "pgearth encoder add --bands", "pgearth train encoder --bands"):
        with pytest.raises(click.BadParameter, match="has B02 twice"):
            convert(name, "B02,B03, B02")
        assert convert(name, "B02, B03") == ["B02", "B03"]
    assert convert("pgearth encoder add --units", "decibels,decibels") == ["decibels", "decibels"]
    assert convert("pgearth encoder add --mean", "-1,0,1e3") == [-1.0, 0.0, 1000.0]


@pytest.mark.parametrize("text", ["1" * 30, "-1", "1.5", "nan", ""])
@pytest.mark.parametrize("name", KEYS)
def test_numbers_that_no_row_can_have(name: str, text: str) -> None:
    with pytest.raises(click.BadParameter):
        convert(name, text)


@pytest.mark.parametrize(
    "text",
    [
        "nan,2,3,4",
        "1,2,3,nan",
        "inf,2,3,4",
        "1,-inf,3,4",
        "1,2,1e400,4",
        "1,4,3,2",  # south and north reversed
        "1,2,3,2",
        "1,2,1,4",
        "181,2,3,4",
        "1,2,-180.001,4",
        "1,-91,3,4",
        "1,2,3,90.5",
        "1,2,3",
        "1,2,3,4,5",
        "1,2,,4",
        "a,b,c,d",
        "POLYGON EMPTY",
        "SRID=4326;POINT EMPTY",
        "POINT (nan 2)",
        "POLYGON ((0 0, 1 0, 1 inf, 0 0))",
        "SRID=x;POINT (1 2)",
        "junk;POINT (1 2)",
        "EPSG:4326;POINT (1 2)",
        "SRID=99999999999;POINT (1 2)",
        "",
    ],
)
def test_what_is_no_area(text: str) -> None:
    with pytest.raises(PgearthError) as refused:
        parse_area(text)
    assert refused.value.message.startswith(f"--area {text!r} is no area: "), refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize("coordinates", ["[NaN, 1]", "[1e400, 1]", "[-Infinity, 1]"])
def test_an_area_in_a_file_that_is_nowhere(tmp_path: Path, coordinates: str) -> None:
    file = tmp_path / "area.geojson"
    file.write_text(f'{{"type": "Point", "coordinates": {coordinates}}}')
    with pytest.raises(PgearthError, match="is no area: its coordinates are not all finite"):
        parse_area(str(file))


def test_what_is_an_area(tmp_path: Path) -> None:
    def outline(text: str) -> shapely.Geometry:
        prefix, _, wkt = parse_area(text).partition(";")
        assert prefix == "SRID=4326"
        return shapely.from_wkt(wkt)

    assert shapely.equals(outline("1,2,3.5,4"), shapely.box(1, 2, 3.5, 4))
    # Across the antimeridian, and the whole globe.
    fiji = shapely.MultiPolygon([shapely.box(177, -19, 180, -16), shapely.box(-180, -19, -178, -16)])
    assert shapely.equals(outline("177,-19,-178,-16"), fiji)
    assert shapely.equals(outline("-180,-90,180,90"), shapely.box(-180, -90, 180, 90))
    assert shapely.equals(outline("POINT (1 2)"), shapely.Point(1, 2))
    (tmp_path / "area.json").write_text(json.dumps({"type": "Point", "coordinates": [1, 2]}))
    assert shapely.equals(outline(str(tmp_path / "area.json")), shapely.Point(1, 2))
    assert parse_area("SRID=3035;POINT (4000000 3000000)") == "SRID=3035;POINT (4000000 3000000)"

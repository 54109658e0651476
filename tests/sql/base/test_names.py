"""What people type for countries, platforms, splits, sources, labels and places, and what the archive stores."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from psycopg import errors, sql

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.loaders.reference.nomenclature import data_file, label_ids_by_name
from pgearth.loaders.reference.nuts import load_nuts
from pgearth.pyfuncs.errors import PgearthError

TIME = datetime(2020, 6, 1, tzinfo=UTC)
SENTINEL_2 = ["sentinel-2", "sentinel-2a", "sentinel-2b", "sentinel-2c", "sentinel-2d"]
CONDITIONS = ["countries", "platforms", "splits", "sources", "seasons"]
"""Those of eo.filter whose names are understood."""


@pytest.fixture(scope="module")
def places(module_archive: psycopg.Connection, sample: Path) -> psycopg.Connection:
    """An archive with the real NUTS units of 2021."""
    load_nuts(module_archive, sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson")
    return module_archive


def names(archive: psycopg.Connection, condition: str, given: list[str | None] | None) -> list[str]:
    row = archive.execute(
        sql.SQL("select (eo.filter({0} => %s::text[])).{0}::text[]").format(sql.Identifier(condition)), (given,)
    ).fetchone()
    assert row is not None
    return row[0]


def hint(archive: psycopg.Connection, condition: str, given: list[str | None], message: str) -> str:
    """The hint of the error that this message begins."""
    with pytest.raises(errors.InvalidParameterValue, match=message) as caught:
        names(archive, condition, given)
    return caught.value.diag.message_hint or ""


@pytest.mark.parametrize(
    ("code", "given"),
    [
        ("DE", ["DE", "de", "DEU", "deu", "Germany", "germany", "GERMANY", "Deutschland", "Federal Republic of Germany", " Germany "]),
        ("AT", ["Austria", "Österreich", "österreich", "ÖSTERREICH", "Osterreich", "Oesterreich"]),
        ("CZ", ["Czechia", "Czech Republic", "Česko", "cesko", "CZE"]),
        ("GB", ["GB", "UK", "uk", "United Kingdom", "Great Britain", "GBR"]),
        ("GR", ["GR", "EL", "el", "Greece", "Ellada", "Ελλάδα", "ΕΛΛΑΔΑ"]),
        ("TR", ["Turkey", "Türkiye", "turkiye", "TURKIYE", "TÜRKİYE"]),
        ("NL", ["Netherlands", "The Netherlands", "Holland", "Nederland"]),
        ("XK", ["Kosovo", "XK", "Kosova"]),
        ("CI", ["Côte d'Ivoire", "Côte d\u2019Ivoire", "cote d ivoire", "Ivory Coast"]),
        ("US", ["US", "USA", "United States", "united states of america", "U.S."]),
        ("KR", ["South Korea", "Korea, Republic of", "KOR"]),
        ("PL", ["Poland", "Polska"]),
        ("IE", ["Ireland", "Éire", "eire", "Republic of Ireland"]),
        ("MK", ["North Macedonia", "Severna Makedonija", "North-Macedonia"]),
    ],
)  # fmt: skip
def test_countries(module_archive: psycopg.Connection, code: str, given: list[str]) -> None:
    for name in given:
        assert names(module_archive, "countries", [name]) == [code], name
    assert names(module_archive, "countries", [*given]) == [code]


def test_every_country_by_its_codes_and_names(module_archive: psycopg.Connection) -> None:
    countries = module_archive.execute("select code, alpha3, name from eo.country").fetchall()
    assert len(countries) == 250
    others = module_archive.execute("select code, name from eo.country_name").fetchall()
    own = [(country[0], name) for country in countries for name in country]
    for code, given in own + others:
        for written in (given, given.lower(), f" {given}"):
            assert names(module_archive, "countries", [written]) == [code], written


def test_countries_of_nuts_by_their_own_names(places: psycopg.Connection) -> None:
    units = places.execute("select country_code, name from eo.nuts where level = 0").fetchall()
    assert len(units) == 37
    for code, name in units:
        for part in name.split("/"):
            assert names(places, "countries", [part]) == [code], name


@pytest.mark.parametrize(
    ("condition", "given", "expected"),
    [
        ("platforms", ["sentinel-2a"], ["sentinel-2a"]),
        ("platforms", ["S2A"], ["sentinel-2a"]),
        ("platforms", ["Sentinel2A", "SENTINEL_2B", "sentinel 2c"], ["sentinel-2a", "sentinel-2b", "sentinel-2c"]),
        ("platforms", ["S2"], SENTINEL_2),
        ("platforms", ["Sentinel-2"], SENTINEL_2),
        ("platforms", ["s1"], [name.replace("2", "1") for name in SENTINEL_2]),
        ("platforms", ["L8", "LC09"], ["landsat-8", "landsat-9"]),
        ("platforms", ["LC08", "Landsat 8", "LANDSAT_8"], ["landsat-8"]),
        ("platforms", ["MODIS"], ["aqua", "terra", "terra+aqua"]),
        ("platforms", ["Terra"], ["terra"]),
        ("platforms", ["terra+aqua"], ["terra+aqua"]),
        ("splits", ["train", "Training"], ["train"]),
        ("splits", ["val"], ["validation"]),
        ("splits", ["valid", "dev", "VALIDATION"], ["validation"]),
        ("splits", ["testing", "val"], ["test", "validation"]),
        ("sources", ["bigearthnet"], ["bigearthnet-v1", "bigearthnet-v2"]),
        ("sources", ["BigEarthNet v2", "reBEN"], ["bigearthnet-v2"]),
        ("sources", ["BigEarthNet-v1", "product"], ["bigearthnet-v1", "product"]),
        ("seasons", ["Winter", "AUTUMN"], ["autumn", "winter"]),
        ("seasons", ["Fall"], ["autumn"]),
    ],
)
def test_what_loaders_store(
    module_archive: psycopg.Connection, condition: str, given: list[str | None], expected: list[str]
) -> None:
    assert names(module_archive, condition, given) == expected
    assert names(module_archive, condition, [*given[::-1], *given]) == expected


@pytest.mark.parametrize("condition", CONDITIONS)
def test_an_empty_list_stays_empty_and_null_null(module_archive: psycopg.Connection, condition: str) -> None:
    assert names(module_archive, condition, []) == []
    assert names(module_archive, condition, None) is None


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("given", [[""], ["  "], ["-"], ["%"], ["'"], ["x" * 5000]], ids=repr)
def test_what_is_no_name(module_archive: psycopg.Connection, condition: str, given: list[str | None]) -> None:
    assert hint(module_archive, condition, given, "^there is no (country|platform|split|source|season) ").startswith(
        "Pass "
    )


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_null_in_a_list(module_archive: psycopg.Connection, condition: str) -> None:
    with pytest.raises(errors.NullValueNotAllowed, match="a list has a null") as caught:
        names(module_archive, condition, [None])
    assert "found nothing" in (caught.value.diag.message_hint or "")


@pytest.mark.parametrize(
    ("condition", "given", "message", "expected"),
    [
        ("countries", ["DE", "Germny"], 'no country "Germny"', '"Germany"'),
        ("countries", ["Korea"], 'no country "Korea"', '"North Korea", "South Korea"'),
        ("countries", ["Scotland"], 'no country "Scotland"', '"Poland"'),
        ("countries", ["ZZ"], 'no country "ZZ"', "ISO 3166-1"),
        ("platforms", ["Sentinell-2A"], 'no platform "Sentinell-2A"', '"sentinel-2a"'),
        ("platforms", ["sentinel-2e"], 'no platform "sentinel-2e"', '"sentinel-2a"'),
        ("platforms", ["S3A"], 'no platform "S3A"', "landsat-8"),
        ("splits", ["trian"], 'no split "trian"', "Did you mean: train?"),
        ("splits", ["holdout"], 'no split "holdout"', "test, train, validation"),
        ("sources", ["bigearth"], 'no source "bigearth"', '"bigearthnet-v1", "bigearthnet-v2"'),
        ("seasons", ["sumer"], 'no season "sumer"', "Did you mean: summer?"),
        ("seasons", ["monsoon"], 'no season "monsoon"', "autumn, spring, summer, winter"),
    ],
)  # fmt: skip
def test_unknown_names(
    module_archive: psycopg.Connection, condition: str, given: list[str | None], message: str, expected: str
) -> None:
    assert expected in hint(module_archive, condition, given, message)


# Levels and tiles of products


@pytest.mark.parametrize(
    ("condition", "given", "expected"),
    [
        ("levels", ["L2A", "l2a", "Level-2A"], ["L2A"]),
        ("levels", ["l1c", "GRD", "L3"], ["GRD", "L1C", "L3"]),
        ("levels", ["L2SP", "l1tp"], ["L1TP", "L2SP"]),
        ("levels", [], []),
        ("levels", None, None),
        ("tiles", ["33UUP", "T33UUP", "33uup", " t33uup "], ["33UUP"] * 4),
        ("tiles", ["01KAB", "1KAB", "60XZV"], ["01KAB", "01KAB", "60XZV"]),
        ("tiles", [], []),
        ("tiles", None, None),
    ],
)
def test_levels_and_tiles(
    module_archive: psycopg.Connection, condition: str, given: list[str] | None, expected: list[str] | None
) -> None:
    row = module_archive.execute(
        f"select (eo.product_filter({condition} => %s)).{condition}".encode(), (given,)
    ).fetchone()
    assert row == (expected,)


@pytest.mark.parametrize(
    ("condition", "given", "message", "expected"),
    [
        ("levels", ["L2A", "L2B"], 'no level "L2B"', "L2A"),
        ("levels", ["level2"], 'no level "level2"', "Pass one of: GRD, L1C,"),
        ("levels", ["2A"], 'no level "2A"', "Pass one of: GRD, L1C,"),
        ("levels", [""], 'no level ""', "Pass one of: GRD, L1C,"),
        ("tiles", ["33UUP", "33UU"], '"33UU" is no tile', "such as 33UUP"),
        ("tiles", ["61UUP"], '"61UUP" is no tile', "01 to 60"),
        ("tiles", ["00UUP"], '"00UUP" is no tile', "01 to 60"),
        ("tiles", ["33IUP"], '"33IUP" is no tile', "such as 33UUP"),
        ("tiles", ["33UUPX"], '"33UUPX" is no tile', "such as 33UUP"),
        ("tiles", ["TT33UUP"], '"TT33UUP" is no tile', "such as 33UUP"),
        ("tiles", ["33TT"], '"33TT" is no tile', "such as 33UUP"),
        ("tiles", ["h18v04"], '"h18v04" is no tile', "such as 33UUP"),
        ("tiles", ["33UUP\n"], '"33UUP\n" is no tile', "such as 33UUP"),
        ("tiles", [""], '"" is no tile', "such as 33UUP"),
    ],
)
def test_what_is_no_level_or_tile(
    module_archive: psycopg.Connection, condition: str, given: list[str], message: str, expected: str
) -> None:
    """They found nothing, and did not say why."""
    with pytest.raises(errors.InvalidParameterValue, match=message) as caught:
        module_archive.execute(
            f"select * from eo.select_products(eo.product_filter({condition} => %s))".encode(), (given,)
        )
    assert expected in (caught.value.diag.message_hint or "")


def test_a_users_own_level(archive: psycopg.Connection) -> None:
    call = "select products from eo.product_statistics(eo.product_filter(levels => '{L1}')) limit 1"
    with pytest.raises(errors.InvalidParameterValue, match='no level "L1"'):
        archive.execute(call)
    store(archive, "drone", "my fields")
    assert archive.execute(call).fetchone() == (1,)


def store(archive: psycopg.Connection, platform: str, source: str) -> None:
    write_products(archive, [Product("own", "cubesat-7", "L1", TIME)])
    with archive.transaction():
        write_patches(
            archive, source, [Patch("own", "own", platform, TIME, 32632, 400_000, 5_700_000, 401_200, 5_701_200)]
        )


@pytest.mark.parametrize("analyze", [True, False], ids=["frequent", "not analyzed"])
def test_a_users_own_platform_and_source(archive: psycopg.Connection, analyze: bool) -> None:
    for platform in ("cubesat-7", "drone"):
        hint(archive, "platforms", [platform], f'no platform "{platform}"')
    hint(archive, "sources", ["my fields"], 'no source "my fields"')
    store(archive, "drone", "my fields")
    if analyze:
        # Only a value that is there twice is a frequent one.
        archive.execute(
            "insert into eo.patch (cell, name, source, product_id, platform, sensing_time, footprint, srid, west, south, east, north)"
            " select cell, 'another', source, product_id, platform, sensing_time, footprint, srid, west, south, east, north from eo.patch"
        )
        archive.execute("analyze eo.patch")
    frequent = archive.execute("select eo_internal.frequent_values('source')").fetchone()
    assert frequent == (["my fields"] if analyze else [],)
    assert names(archive, "platforms", ["cubesat-7", "drone", "S2A"]) == ["cubesat-7", "drone", "sentinel-2a"]
    assert names(archive, "sources", ["my fields", "product"]) == ["my fields", "product"]
    expected = "my fields" if analyze else "bigearthnet-v1"
    assert expected in hint(archive, "sources", ["my field" if analyze else "bigearthnet-v3"], "no source")


def test_helpers_are_folded_to_constants(module_archive: psycopg.Connection) -> None:
    """So that the planner sees values, as it does those of labels."""
    plan = module_archive.execute(
        "explain select from eo.patches(eo.filter(countries => '{Germany}', platforms => '{S2A}', splits => '{val}',"
        " sources => '{bigearthnet}', seasons => '{Autumn}'))"
    ).fetchall()
    assert "eo_internal" not in str(plan)
    for value in ("{DE}", "{sentinel-2a}", "{validation}", "{bigearthnet-v1,bigearthnet-v2}", "autumn"):
        assert value in str(plan), value


def members(archive: psycopg.Connection, label: str, scheme: str | None = None) -> set[str]:
    """What a label means, as scheme:code."""
    return {
        member
        for (member,) in archive.execute(
            "select scheme || ':' || code from eo.label where label_id = any (eo_internal.label_ids(eo_internal.label_groups(array[%s], %s)))",
            (label, scheme),
        )
    }


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("lake", "clc:512 ben43:39 ben19:17 nlcd:11"),
        ("LAKES", "clc:512 ben43:39 ben19:17 nlcd:11"),
        ("river", "clc:511 ben43:38 ben19:17 nlcd:11"),
        ("forest", "clc:31 clc:311 clc:312 clc:313 ben43:22 ben43:23 ben43:24 ben19:8 ben19:9 ben19:10 nlcd:4 nlcd:41 nlcd:42 nlcd:43"),
        ("Forests", "clc:31 clc:311 clc:312 clc:313 ben43:22 ben43:23 ben43:24 ben19:8 ben19:9 ben19:10 nlcd:4 nlcd:41 nlcd:42 nlcd:43"),
        ("water", "clc:5 clc:51 clc:52 clc:511 clc:512 clc:521 clc:522 clc:523 ben43:38 ben43:39 ben43:40 ben43:41 ben43:42"
                  " ben19:17 ben19:18 nlcd:1 nlcd:11 nlcd:12"),
        ("sea", "clc:523 ben43:42 ben19:18 nlcd:11"),
        ("town", "clc:11 clc:111 clc:112 ben43:0 ben43:1 ben19:0 nlcd:2 nlcd:21 nlcd:22 nlcd:23 nlcd:24"),
        ("harbour", "clc:123 ben43:4"),
        ("vineyard", "clc:221 ben43:14"),
        ("glacier", "clc:335 nlcd:12"),
        ("crops", "clc:21 clc:211 clc:212 clc:213 ben43:11 ben43:12 ben43:13 ben19:2 nlcd:82"),
        ("meadow", "clc:23 clc:231 ben43:17 ben19:4 nlcd:81"),
        # By name, a class of BigEarthNet's means all that lie in it.
        ("Inland waters", "clc:51 clc:511 clc:512 ben43:38 ben43:39 ben19:17"),
        ("ben19:17", "clc:51 clc:511 clc:512 ben43:38 ben43:39 ben19:17"),
        ("512", "clc:512 ben43:39"),
    ],
)  # fmt: skip
def test_synonyms_of_labels(module_archive: psycopg.Connection, label: str, expected: str) -> None:
    assert members(module_archive, label) == set(expected.split())


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("clouds", "scl:8 scl:9 scl:10"),
        ("cirrus", "scl:10"),
        ("snow", "scl:11"),
        ("water", "scl:6"),
        ("6", "scl:6"),
        ("scl:6", "scl:6"),
    ],
)
def test_synonyms_of_scene_classes(module_archive: psycopg.Connection, label: str, expected: str) -> None:
    assert members(module_archive, label, "scl") == set(expected.split())


@pytest.mark.parametrize("scheme", [None, "scl"])
def test_labels_and_scene_classes_are_kept_apart(module_archive: psycopg.Connection, scheme: str | None) -> None:
    for name in ["cloud", "Vegetation", "scl:6"] if scheme is None else ["forest", "lake", "clc:3", "Inland waters"]:
        with pytest.raises(errors.InvalidParameterValue, match=f'"{name}"') as caught:
            members(module_archive, name, scheme)
        assert ("one of scene_classes" if scheme is None else "one of labels") in (caught.value.diag.message_hint or "")
    assert all(member.startswith("scl:") == (scheme == "scl") for member in members(module_archive, "snow", scheme))


def test_the_first_unknown_label_is_named(module_archive: psycopg.Connection) -> None:
    for given, unknown, suggestion in [
        (["forest", "forrest", "laek"], "forrest", '"Forest"'),
        (["agriculturel"], "agriculturel", "agriculture"),
    ]:
        with pytest.raises(errors.InvalidParameterValue, match=f'no label "{unknown}"') as caught:
            module_archive.execute("select eo.label_members(%s::text[])", (given,))
        assert suggestion in (caught.value.diag.message_hint or "")


def test_label_meaning(module_archive: psycopg.Connection) -> None:
    rows = module_archive.execute(
        "select given, scheme || ':' || code, name, understood from eo.label_meaning(%s)",
        (["water", "LAKE", "Transitional woodland/shrub", "clc:31", "311"],),
    ).fetchall()
    assert rows == [
        ("water", "clc:5", "Water bodies", "synonym"),
        ("water", "nlcd:1", "Water", "name"),
        ("LAKE", "clc:512", "Water bodies", "synonym"),
        ("LAKE", "ben19:17", "Inland waters", "synonym"),
        ("LAKE", "nlcd:11", "Open Water", "synonym"),
        ("Transitional woodland/shrub", "clc:324", "Transitional woodland-shrub", "spelling"),
        ("Transitional woodland/shrub", "ben19:13", "Transitional woodland, shrub", "spelling"),
        ("Transitional woodland/shrub", "ben43:28", "Transitional woodland/shrub", "name"),
        ("clc:31", "clc:31", "Forests", "code"),
        ("311", "clc:311", "Broad-leaved forest", "code"),
    ]
    assert module_archive.execute("select count(*) from eo.label_meaning('{}')").fetchone() == (0,)
    with pytest.raises(errors.InvalidParameterValue, match='no label "forrest"'):
        module_archive.execute("select * from eo.label_meaning('{forest,forrest}')")


def test_each_label_that_is_meant_brings_what_label_members_has(module_archive: psycopg.Connection) -> None:
    synonyms = [
        word
        for (word,) in module_archive.execute("select distinct synonym from eo.label_synonym where scheme <> 'scl'")
    ]
    assert len(synonyms) > 150
    for word in synonyms:
        row = module_archive.execute(
            "select array_agg(l.label_id) <@ eo.label_members(array[%(word)s]), count(*)"
            " from eo.label_meaning(array[%(word)s]) m join eo.label l using (scheme, code)",
            {"word": word},
        ).fetchone()
        assert row is not None and row[0] and row[1] > 0, word


def test_synonyms_are_ascii_and_whole(module_archive: psycopg.Connection) -> None:
    """Their case is folded in ASCII only; and none was lost because a class that it names is not there."""
    assert module_archive.execute("select synonym from eo.label_synonym where synonym !~ '^[ -~]+$'").fetchall() == []
    expected = sum(len((row["labels"] or "").split()) for row in data_file("label_synonyms.csv"))
    assert module_archive.execute("select count(*) from eo.label_synonym").fetchone() == (expected,)


def test_synonyms_are_no_names_of_data_sets(module_archive: psycopg.Connection) -> None:
    for scheme in ("clc", "ben43", "ben19", "nlcd"):
        with pytest.raises(PgearthError, match="'lake' is no label"):
            label_ids_by_name(module_archive, scheme)["lake"]


def place_id(archive: psycopg.Connection, name: str) -> str:
    """The highest unit that has just the geometry of the place."""
    row = archive.execute(
        "with place as materialized (select eo.place(%s) as geom)"
        " select nuts_id from eo.nuts n, place where st_asbinary(n.geom) = st_asbinary(place.geom) order by level limit 1",
        (name,),
    ).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize(
    ("nuts_id", "given"),
    [
        ("DE2", ["DE2", "de2", "Bayern", "BAYERN", "Bavaria", "bavaria"]),
        ("FR1", ["Île-de-France", "Ile-de-France", "ile-de-france", "ILE DE FRANCE"]),
        ("ITI1", ["Toscana", "Tuscany"]),
        ("DE9", ["Niedersachsen", "Lower Saxony", "lower saxony"]),
        ("DEG", ["Thüringen", "thuringen", "Thueringen", "Thuringia"]),
        ("DE72", ["Gießen", "Giessen", "DE72"]),
        ("DE3", ["Berlin", "DE3", "DE30"]),
        ("LU", ["Luxembourg", "Luxemburg", "LU"]),
        ("DE", ["Germany", "Deutschland", "DEU", "DE"]),
        ("EL", ["Greece", "GR", "EL", "Ελλάδα"]),
        ("UK", ["UK", "GB", "United Kingdom", "Great Britain"]),
        ("FI", ["Finland", "Suomi", "Suomi/Finland"]),
        ("BE1", ["Brussels", "Région de Bruxelles-Capitale", "Brussels Hoofdstedelijk Gewest"]),
        ("FI1B", ["Uusimaa", "Helsinki-Uusimaa"]),
        ("TR1", ["İstanbul", "istanbul", "ISTANBUL"]),
        ("ITC2", ["Valle d'Aosta", "Vallée d\u2019Aoste", "Aosta Valley"]),
        ("PL21", ["Małopolskie", "malopolskie", "Lesser Poland"]),
        ("FRY1", ["Guadeloupe", "GP"]),
        ("BE33", ["Prov. Liège", "Liège", "liege"]),
        ("DEE02", ["Halle (Saale), Kreisfreie Stadt"]),
    ],
)  # fmt: skip
def test_places(places: psycopg.Connection, nuts_id: str, given: list[str]) -> None:
    for name in given:
        assert place_id(places, name) == nuts_id, name


def test_every_id_and_every_name_of_the_table(places: psycopg.Connection) -> None:
    wrong = places.execute(
        "select nuts_id from eo.nuts where level < 2 and st_asbinary(geom) <> st_asbinary(eo.place(nuts_id))"
    ).fetchall()
    assert wrong == []
    english = places.execute("select english_name, name from eo.place_name order by 1").fetchall()
    assert len(english) > 150
    ambiguous = []
    for name, local in english:
        try:
            assert place_id(places, name) == place_id(places, local)
        except errors.InvalidParameterValue as error:
            assert "several places" in str(error), name
            ambiguous.append(name)
    assert ambiguous == ["Sofia"]


def test_the_type_of_a_place(places: psycopg.Connection) -> None:
    assert places.execute(
        "select geometrytype(place), st_srid(place), st_isvalid(place) from eo.place('Bavaria') place"
    ).fetchone() == ("MULTIPOLYGON", 4326, True)
    assert places.execute("select eo.place(null) is null").fetchone() == (True,)


@pytest.mark.parametrize(
    ("name", "ids"),
    [("Jura", "CH025, FRC22"), ("Limburg", "BE22, NL42"), ("Freiburg", "DE13, CH022"), ("Centro", "ES4, ITI, PT16")],
)
def test_several_places_of_one_name(places: psycopg.Connection, name: str, ids: str) -> None:
    with pytest.raises(errors.InvalidParameterValue, match=f'several places "{name}": {ids}') as caught:
        places.execute("select eo.place(%s)", (name,))
    assert ids.split(",")[0] in (caught.value.diag.message_hint or "")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Bavarya", '"Bavaria"'),
        ("München", "München, Kreisfreie Stadt"),
        ("Germny", '"Germany"'),
        ("Tuscani", '"Tuscany"'),
        ("Brazil", "no such country"),
        ("xyzzy", "unit of NUTS"),
        ("", "unit of NUTS"),
    ],
)
def test_unknown_places(places: psycopg.Connection, name: str, expected: str) -> None:
    with pytest.raises(errors.InvalidParameterValue, match=f'no place "{name}"') as caught:
        places.execute("select eo.place(%s)", (name,))
    assert expected in (caught.value.diag.message_hint or "")


def test_no_places_are_loaded(archive: psycopg.Connection) -> None:
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="no units of NUTS") as caught:
        archive.execute("select eo.place('Bavaria')")
    assert "pgearth load nuts" in (caught.value.diag.message_hint or "")


def test_a_place_is_an_area_to_search(archive: psycopg.Connection, sample: Path) -> None:
    load_nuts(archive, sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson")
    write_products(archive, [Product("p", "sentinel-2a", "L2A", TIME)])
    with archive.transaction():
        write_patches(
            archive,
            "test",
            [
                Patch(name, "p", "sentinel-2a", TIME, 32632, west, south, west + 1200, south + 1200)
                for name, west, south in [("Munich", 691_000, 5_334_000), ("Hanover", 550_000, 5_803_000)]
            ],
        )
    for place, found in [
        ("Bavaria", ["Munich"]),
        ("Lower Saxony", ["Hanover"]),
        ("Tuscany", []),
        ("Germany", ["Hanover", "Munich"]),
    ]:
        rows = archive.execute(
            "select name from eo.search(eo.filter(area => eo.place(%s))) order by 1", (place,)
        ).fetchall()
        assert [name for (name,) in rows] == found, place


def test_the_nearest_names(module_archive: psycopg.Connection) -> None:
    for value, candidates, expected in [
        ("vinyard", ["Vineyards", "vineyard", "Vienna"], 'Did you mean: vineyard, "Vineyards"?'),
        ("a", ["a b", "abc"], 'Did you mean: "a b"?'),
        ("zz", ["zebra", "zoo"], None),
        ("x", [], None),
        ("ÎLE", ["île", "Insel"], 'Did you mean: "île"?'),
    ]:
        assert module_archive.execute(
            "select eo_internal.did_you_mean(%s, %s::text[])", (value, candidates)
        ).fetchone() == (expected,)

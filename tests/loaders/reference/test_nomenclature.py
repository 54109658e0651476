"""Labels against the official tables, the closure against a brute-force oracle, spellings against real data."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pgearth.loaders.reference.nomenclature import label_ids_by_name, load_nomenclature
from pgearth.pyfuncs.errors import PgearthError

COUNTS = {
    ("clc", 1): 5,
    ("clc", 2): 15,
    ("clc", 3): 44,
    ("ben43", 1): 43,
    ("ben19", 1): 19,
    ("scl", 1): 12,
    ("nlcd", 1): 8,
    ("nlcd", 2): 17,
}


def table(sample: Path, name: str) -> list[dict[str, str]]:
    with (sample / "nomenclature" / name).open() as file:
        return list(csv.DictReader(file))


def snapshot(connection) -> list[list[tuple]]:
    return [
        connection.execute(f"select * from eo.{name} order by 1, 2").fetchall()
        for name in ("label", "label_closure", "label_spelling")
    ]


def test_counts(module_archive):
    rows = module_archive.execute("select scheme, level, count(*) from eo.label group by 1, 2").fetchall()
    assert {(scheme, level): count for scheme, level, count in rows} == COUNTS


def test_corine_classes_are_official(module_archive, sample):
    rows = module_archive.execute(
        "select code, level, name, color, label_id from eo.label where scheme = 'clc'"
    ).fetchall()
    stored = {code: (level, name) for code, level, name, _, _ in rows}
    official = {}
    for row in table(sample, "clc2018_classes.csv"):
        for level, (code, name) in enumerate(
            [(row["code_l1"], row["label1"]), (row["code_l2"], row["label2"]), (row["clc_code"], row["label3"])], 1
        ):
            official[code] = (level, name)
    assert stored == official
    assert all(int(code) == label_id for code, _, _, _, label_id in rows)
    colors = {code: color for code, level, _, color, _ in rows if level == 3}
    assert colors == {row["clc_code"]: row["hex"] for row in table(sample, "clc2018_classes.csv")}


def test_colors_of_upper_levels_are_means(module_archive, sample):
    classes = [
        ("clc", row["clc_code"], row["clc_code"][:level], row)
        for row in table(sample, "clc2018_classes.csv")
        for level in (1, 2)
    ] + [("nlcd", row["code"], row["code"][:1], row) for row in table(sample, "nlcd_classes.csv") if row["code"] != "0"]
    for scheme, group in {(scheme, group) for scheme, _, group, _ in classes}:
        members = [row for s, _, g, row in classes if (s, g) == (scheme, group)]
        (color,) = module_archive.execute(
            "select color from eo.label where scheme = %s and code = %s", (scheme, group)
        ).fetchone()
        channels = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        for channel, key in zip(channels, "rgb", strict=True):
            assert abs(channel - sum(int(row[key]) for row in members) / len(members)) <= 0.5


def test_bigearthnet_classes(module_archive, sample):
    colors = {row["clc_code"]: row["hex"] for row in table(sample, "clc2018_classes.csv")}
    expected = {
        (1100 + int(row["ben43_index"]), row["ben43_label"], (row["clc_code"],), colors[row["clc_code"]])
        for row in table(sample, "ben43_to_ben19.csv")
    } | {
        (
            1000 + int(row["ben19_index"]),
            row["ben19_label"],
            tuple(row["clc_codes"].split()),
            colors[row["clc_codes"].split()[0]],
        )
        for row in table(sample, "ben19_classes.csv")
    }
    rows = module_archive.execute(
        "select label_id, name, clc_codes, color from eo.label where scheme in ('ben19', 'ben43')"
    ).fetchall()
    assert {(label_id, name, tuple(codes), color) for label_id, name, codes, color in rows} == expected


def test_nlcd_classes(module_archive, sample):
    rows = module_archive.execute(
        "select code, name, color, label_id from eo.label where scheme = 'nlcd' and level = 2"
    ).fetchall()
    assert set(rows) == {
        (row["code"], row["label"], row["hex"], 3000 + int(row["code"])) for row in table(sample, "nlcd_classes.csv")
    }


def test_scene_classes_cover_the_official_list(module_archive, sample):
    """The scene classes that real product metadata list, by their official names and numbers."""
    ids = label_ids_by_name(module_archive, "scl")
    listed = set()
    for metadata in (sample / "safe-metadata").rglob("MTD_MSIL2A.xml"):
        text = metadata.read_text()
        for part in text.split("<SCENE_CLASSIFICATION_TEXT>")[1:]:
            name = part.split("<")[0]
            number = int(part.split("<SCENE_CLASSIFICATION_INDEX>")[1].split("<")[0])
            listed.add(number)
            assert ids[name] == 2000 + number
    assert listed == set(range(12))


def test_closure_equals_brute_force(module_archive):
    labels = module_archive.execute("select label_id, scheme, code, level, clc_codes from eo.label").fetchall()
    expected = set()
    for ancestor, a_scheme, a_code, a_level, a_codes in labels:
        for descendant, d_scheme, d_code, d_level, d_codes in labels:
            grouped = (a_scheme, d_scheme, a_level, d_level) == ("nlcd", "nlcd", 1, 2) and d_code[0] == a_code
            covered = a_codes is not None and d_codes is not None and set(d_codes) <= set(a_codes)
            if ancestor == descendant or grouped or covered:
                expected.add((ancestor, descendant))
    assert set(module_archive.execute("select ancestor_id, descendant_id from eo.label_closure").fetchall()) == expected


@pytest.mark.parametrize(
    ("ancestor", "descendant", "related"),
    [
        ("clc:3", "clc:311", True),
        ("clc:311", "clc:3", False),
        ("ben19:2", "clc:21", True),  # Arable land means the same in both
        ("clc:21", "ben19:2", True),
        ("ben19:3", "clc:22", True),  # BigEarthNet's permanent crops include 241, CORINE's do not
        ("clc:22", "ben19:3", False),
        ("ben43:22", "clc:311", True),
        ("clc:311", "ben43:22", True),
        ("clc:42", "ben19:16", True),  # intertidal flats are no coastal wetland of ben19
        ("ben19:16", "clc:42", False),
        ("nlcd:4", "nlcd:42", True),
        ("nlcd:42", "nlcd:4", False),
        ("scl:6", "scl:6", True),
        ("scl:6", "clc:5", False),
    ],
)
def test_closure_by_hand(module_archive, ancestor, descendant, related):
    (found,) = module_archive.execute(
        """
        select exists (
            select from eo.label_closure
            join eo.label a on a.label_id = ancestor_id
            join eo.label d on d.label_id = descendant_id
            where a.scheme || ':' || a.code = %s and d.scheme || ':' || d.code = %s)
        """,
        (ancestor, descendant),
    ).fetchone()
    assert found == related


def test_reload_changes_nothing(archive):
    before = snapshot(archive)
    assert load_nomenclature(archive) == sum(COUNTS.values())
    assert snapshot(archive) == before


def test_reload_restores_what_was_changed(archive):
    before = snapshot(archive)
    archive.execute("update eo.label set name = 'x', color = null where label_id = 311")
    archive.execute("delete from eo.label where label_id = 312")
    archive.execute("delete from eo.label_spelling where scheme = 'scl'")
    archive.execute("insert into eo.label_closure values (312 - 1, 2000)")
    load_nomenclature(archive)
    assert snapshot(archive) == before


def test_command_reports_the_count(archive, run_pgearth):
    result = run_pgearth(archive, "load", "nomenclature")
    assert result.exit_code == 0
    assert result.output == "163 labels are in the archive.\n"


def test_every_label_of_the_real_data_resolves(module_archive, sample):
    ben43 = label_ids_by_name(module_archive, "ben43")
    files = list((sample / "bigearthnet-v1").rglob("*_labels_metadata.json"))
    assert files
    for file in files:
        assert all(1100 <= ben43[name] < 1143 for name in json.loads(file.read_text())["labels"])
    assert {ben43[row["ben43_label"]] for row in table(sample, "ben_v1_label_counts.csv")} == set(range(1100, 1143))
    ben19 = label_ids_by_name(module_archive, "ben19")
    column = pq.read_table(sample / "bigearthnet-v2" / "metadata.parquet", columns=["labels"])["labels"]
    names = pc.unique(pc.list_flatten(column)).to_pylist()
    assert {ben19[name] for name in names} == set(range(1000, 1019))


@pytest.mark.parametrize(
    ("code", "spellings"),
    [
        ("324", ["Transitional woodland-shrub", "Transitional woodland/shrub", "Transitional woodland, shrub"]),
        ("321", ["Natural grasslands", "Natural grassland"]),
        ("332", ["Bare rocks", "Bare rock"]),
        ("412", ["Peat bogs", "Peatbogs"]),
    ],
)
def test_spellings(module_archive, code, spellings):
    for scheme in ("clc", "ben43"):
        ids = {label_ids_by_name(module_archive, scheme)[spelling] for spelling in spellings}
        codes = module_archive.execute(
            "select clc_codes from eo.label where label_id = any (%s)", (list(ids),)
        ).fetchall()
        assert codes == [([code],)]


def test_spellings_differ_in_more_than_case(module_archive):
    """SQL may compare them without case."""
    rows = module_archive.execute("select scheme, lower(spelling) from eo.label_spelling").fetchall()
    assert [key for key, count in Counter(rows).items() if count > 1] == []


def test_a_shared_name_means_the_more_special_class(module_archive):
    clc = label_ids_by_name(module_archive, "clc")
    assert (clc["Pastures"], clc["Water bodies"]) == (231, 512)


def test_unknown_label_suggests_near_ones(module_archive):
    with pytest.raises(PgearthError, match=r"'Mixed forrest' is no label .*\n.*Mixed forest"):
        label_ids_by_name(module_archive, "ben43")["Mixed forrest"]
    with pytest.raises(PgearthError, match=r"'Qwzx' is no label of the nomenclature ben19"):
        label_ids_by_name(module_archive, "ben19")["Qwzx"]


def test_nomenclature_not_loaded(archive):
    archive.execute("delete from eo.label")
    with pytest.raises(PgearthError, match="pgearth load nomenclature"):
        label_ids_by_name(archive, "ben19")

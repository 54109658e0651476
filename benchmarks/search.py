"""Search by filters, paging, counts and label statistics in SQL, each against a named peer in the same run.

Peers: for `eo.search` the statement that one would write by hand for just those filters; for paging LIMIT OFFSET; for
`eo.label_statistics` pyarrow over the catalogue's parquet files, read each time and held in memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.archive import CATALOGUE
from benchmarks.harness import (
    ROOT,
    Archive,
    Run,
    arguments,
    connect,
    fetch,
    measure,
    milliseconds,
    progress,
    ratio,
    recall,
    report,
    table,
)
from pgearth.loaders.datasets.bigearthnet.catalogue import COUNTRY_CODES

SEED = 5
PAGE = 50
DEPTHS = (0, 1_000, 10_000, 100_000)
REPEATS = 20
LARGE_COUNTRY = 100_000
KEYSET = "select patch_id, name from eo.search(eo.filter(countries => %s), max_results => %s, after_patch_id => %s)"
OFFSET = "select patch_id, name from eo.patch where country_codes && %s order by patch_id offset %s limit %s"


@dataclass(frozen=True)
class Question:
    """A search by labels, area (degrees) and time, and the ids of its labels for the statement written by hand."""

    labels: tuple[str, ...]
    label_match: str
    label_ids: tuple[int, ...]
    area: tuple[float, float, float, float]
    from_time: datetime
    to_time: datetime


def main() -> None:
    """Measure on every archive asked for."""
    run = arguments(__doc__ or "", "549k", queries=500)
    for archive in run.archives:
        with connect(archive) as connection:
            parts = [searches(connection, run), paging(connection), counts(connection)]
            if archive.copies == 1:
                parts.append(statistics(connection))
            parts.append(index_builds(connection, archive))
        report(f"Search by filters, {archive.patches:,} patches", parts, run)


def questions(connection: psycopg.Connection, count: int) -> list[Question]:
    """Random searches around random patches, for labels that those bear."""
    rng = np.random.default_rng(SEED)
    last = fetch(connection, "select max(patch_id) from eo.patch")[0][0]
    rows = fetch(
        connection,
        """
        select ST_X(ST_Centroid(footprint)), ST_Y(ST_Centroid(footprint)), sensing_time, label_ids,
            (select array_agg('ben19:' || l.code order by l.label_id)
             from eo.label l where l.label_id = any (label_ids))
        from unnest(%s::bigint[]) with ordinality as drawn (patch_id, number)
        join eo.patch using (patch_id)
        order by number
        """,
        rng.integers(1, last + 1, count).tolist(),
    )
    chosen = []
    for x, y, time, label_ids, labels in rows:
        picked = rng.permutation(len(labels))[: rng.integers(1, 3)]
        half = rng.uniform(0.1, 1.5)  # degrees: boxes of about 20 to 300 km
        before, after = rng.uniform(1, 120, 2)  # days
        chosen.append(
            Question(
                labels=tuple(labels[number] for number in picked),
                label_match=str(rng.choice(["some", "at_least"])),
                label_ids=tuple(label_ids[number] for number in picked),
                area=(x - half, y - half, x + half, y + half),
                from_time=time - timedelta(days=before),
                to_time=time + timedelta(days=after),
            )
        )
    return chosen


def searches(connection: psycopg.Connection, run: Run) -> str:
    """Search by labels, area and time, a page of 50."""
    progress("searches")
    found = measure(
        {"eo.search": lambda q: search(connection, q), "by hand": lambda q: search_by_hand(connection, q)},
        questions(connection, run.queries),
    )
    ours, theirs = found["eo.search"], found["by hand"]
    same = sum(one == other for one, other in zip(ours.answers, theirs.answers, strict=True))
    rows = [
        [
            name,
            len(one.answers),
            one.rows,
            milliseconds(one.p50),
            milliseconds(one.p95),
            milliseconds(one.percentile(100)),
        ]
        for name, one in found.items()
    ]
    return (
        f"Labels (one or two, some or all of them), area (box of 20 to 300 km) and time (up to eight months) at once, "
        f"around random patches, a page of {PAGE}. Same rows in {same} of {len(ours.answers)}; p50 ratio "
        f"{ratio(ours.p50, theirs.p50)}. Wanted: p50 under 20 ms.\n\n"
        + table(["search", "queries", "rows", "p50 (ms)", "p95", "slowest"], rows)
    )


def search(connection: psycopg.Connection, q: Question) -> list[tuple[Any, ...]]:
    """The search measured."""
    return fetch(
        connection,
        f"""
        select patch_id, name, sensing_time
        from eo.search(
            eo.filter(area => ST_MakeEnvelope(%s, %s, %s, %s, 4326), from_time => %s, to_time => %s, labels => %s,
                      label_match => %s::eo.label_match),
            max_results => {PAGE})
        """,  # noqa: S608
        *q.area,
        q.from_time,
        q.to_time,
        list(q.labels),
        q.label_match,
    )


def search_by_hand(connection: psycopg.Connection, q: Question) -> list[tuple[Any, ...]]:
    """The peer: planned anew for its parameters, as the function's query is."""
    operator = "&&" if q.label_match == "some" else "@>"
    return connection.execute(
        f"""
        select patch_id, name, sensing_time
        from eo.patch
        where ST_Intersects(footprint, ST_MakeEnvelope(%s, %s, %s, %s, 4326))
          and sensing_time >= %s and sensing_time < %s and label_ids {operator} %s::smallint[]
        order by patch_id
        limit {PAGE}
        """,  # noqa: S608
        (*q.area, q.from_time, q.to_time, list(q.label_ids)),
        prepare=False,
    ).fetchall()


def paging(connection: psycopg.Connection) -> str:
    """Read pages ever deeper in a result, by the last page's patch_id and by LIMIT OFFSET."""
    progress("paging")
    country, patches = countries(connection)[0]
    rows = []
    for depth in DEPTHS:
        if depth >= patches:
            break
        after = fetch(
            connection,
            "select patch_id from eo.patch where country_codes && %s order by patch_id offset %s limit 1",
            [country],
            max(depth - 1, 0),
        )[0][0]
        found = measure(
            {
                "keyset": lambda _, last=after if depth else 0: fetch(connection, KEYSET, [country], PAGE, last),
                "offset": lambda _, skipped=depth: fetch(connection, OFFSET, [country], skipped, PAGE),
            },
            range(REPEATS),
        )
        same = "yes" if found["keyset"].answers == found["offset"].answers else "no"
        rows.append([f"{depth:,}", milliseconds(found["keyset"].p50), milliseconds(found["offset"].p50), same])
    return f"Paging through the {patches:,} patches of {country}, pages of {PAGE}, medians of {REPEATS}:\n\n" + table(
        ["rows before", "`eo.search` with after_patch_id (ms)", "LIMIT OFFSET (ms)", "same rows"], rows
    )


def countries(connection: psycopg.Connection) -> list[tuple[str, int]]:
    """Countries by number of patches."""
    return fetch(connection, "select value, patches from eo.patch_statistics('country') order by patches desc")


def counts(connection: psycopg.Connection) -> str:
    """Count exactly and by estimate."""
    progress("counts")
    rows = []
    largest = countries(connection)[0][0]
    filters = {
        f"country {largest}": (f"countries => array['{largest}']"),
        "label 311 of CORINE": "labels => array['311']",
        "a box of 2 x 2 degrees": "area => ST_MakeEnvelope(24, 60, 26, 62, 4326)",
        "both last": "labels => array['311'], area => ST_MakeEnvelope(24, 60, 26, 62, 4326)",
    }
    for name, condition in filters.items():
        found = measure(
            {
                kind: lambda _, exact=kind == "exact", c=condition: fetch(
                    connection,
                    f"select eo.count_patches(eo.filter({c}), exact => {exact})",
                )[0]
                for kind in ("exact", "estimated")
            },
            range(REPEATS),
        )
        exact, estimated = (found[kind].answers[0][0] for kind in ("exact", "estimated"))
        rows.append(
            [
                name,
                f"{exact:,}",
                milliseconds(found["exact"].p50),
                f"{estimated:,}",
                milliseconds(found["estimated"].p50),
            ]
        )
    return f"`eo.count_patches`, medians of {REPEATS}:\n\n" + table(["filter", "exact", "ms", "estimated", "ms"], rows)


def statistics(connection: psycopg.Connection) -> str:
    """Count labels of whole countries, against pyarrow over the catalogue."""
    progress("statistics")
    sample = Path(os.environ.get("PGEARTH_SAMPLE", ROOT.parent / "shared" / "sample"))
    files = [sample / "bigearthnet-v2" / name for name in CATALOGUE]
    held = pa.concat_tables([pq.read_table(file, columns=["labels", "country"]) for file in files])
    names = {code: name for name, code in COUNTRY_CODES.items()}
    rows = []
    for code, patches in countries(connection):
        if patches < LARGE_COUNTRY:
            continue
        found = measure(
            {
                "SQL": lambda _, c=code: fetch(
                    connection, "select name, patches from eo.label_statistics(eo.filter(countries => %s))", [c]
                ),
                "held": lambda _, n=names[code]: label_counts(held, n),
                "read": lambda _, n=names[code]: label_counts(
                    pa.concat_tables([pq.read_table(file, columns=["labels", "country"]) for file in files]), n
                ),
            },
            range(REPEATS),
        )
        same = dict(found["SQL"].answers[0]) == dict(found["held"].answers[0])
        rows.append(
            [
                names[code],
                f"{patches:,}",
                milliseconds(found["SQL"].p50),
                milliseconds(found["SQL"].p95),
                milliseconds(found["held"].p50),
                milliseconds(found["read"].p50),
                "yes" if same else "no",
            ]
        )
    header = ["country", "patches", "`eo.label_statistics` p50 (ms)", "p95", "pyarrow, in memory, p50"]
    return (
        f"Patches by label of the countries with over {LARGE_COUNTRY:,} patches, {REPEATS} times."
        " Wanted: under 150 ms.\n\n" + table([*header, "pyarrow, from parquet, p50", "same counts"], rows)
    )


def label_counts(catalogue: pa.Table, country: str) -> list[tuple[str, int]]:
    """How often each label occurs in a country, by pyarrow."""
    labels = catalogue.filter(pc.equal(catalogue["country"], country))["labels"]
    return [(entry["values"], entry["counts"]) for entry in pc.value_counts(pc.list_flatten(labels)).to_pylist()]


def index_builds(connection: psycopg.Connection, archive: Archive) -> str:
    """What building all indexes took when the archive was built."""
    seconds: dict[str, float] = recall(connection, "index seconds")
    built = recall(connection, "build")
    packing = recall(connection, "pack clustered")
    keys = {name: number for name, number in seconds.items() if not name.startswith("foreign key")}
    slowest = sorted(keys.items(), key=lambda entry: -entry[1])[:5]
    return (
        f"Building all indexes and keys of eo.product, eo.patch, eo.embedding, eo.bucket and eo.patch_bucket over all "
        f"{archive.patches:,} patches, one after the other (wanted: under 120 s): "
        f"{sum(keys.values()):.1f} s for {len(keys)} (the longest: "
        + ", ".join(f"{name} {number:.1f} s" for name, number in slowest)
        + f"); checking the foreign keys {sum(seconds.values()) - sum(keys.values()):.1f} s, packing the codes of "
        f"`clustered` {packing:.1f} s. (Building the archive: "
        + ", ".join(f"{name} {number:.0f} s" for name, number in built.items())
        + ".)"
    )


if __name__ == "__main__":
    main()

"""How well every hash function retrieves: over two encoders, at 32, 64 and 128 bits, with the vectors as the ceiling.

    python -m benchmarks.retrieval                  all parts, half an hour on two cores
    python -m benchmarks.retrieval --part real      one part, those before it having been run

The archive is a synthetic one of 20,280 patches: 5,070 places of a made-up landscape, each in four seasons. Its splits
are those of BigEarthNet v2's rule, by place: the middle of the tile is for tests, the edge for training, and what lies
between them, several kilometres wide, for validation. Encoders are `spectral` and `cnn`, a small ResNet-18 that is
trained here. Everything is done by the commands and functions of pgearth, in a database of its own, which keeps what is
done: a run that was cut short goes on. To begin anew, drop the database.

Parts: archive (patches and labels), encoders (training, vectors), hashes (training, codes), evaluations, real (patches
of the sample, by what was trained on the synthetic archive), report.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import Connection
from psycopg.sql import SQL, Identifier
from psycopg.types.json import Jsonb

from benchmarks.archive import migrate
from benchmarks.harness import ROOT, Archive, Run, Stopwatch, connect, conninfo, progress, report, table, value
from pgearth.cli import pgearth
from pgearth.loaders.models.versions import find
from pgearth.loaders.products.load import Options, load_product
from pgearth.pyfuncs.convert import vectors_from_send
from pgearth.pyfuncs.hashing import milan
from pgearth.pyfuncs.hashing.projection import fast_product, standardisation, standardise
from pgearth.pyfuncs.measures.retrieval import LabelledFeatures, evaluate, relevance_rule
from pgearth.pyfuncs.models import spectral

ENCODERS = ("spectral", "cnn")
METHODS = ("lsh", "itq", "kslsh", "trivial", "sign", "milan")
BITS = (32, 64, 128)
K = 20
SCHEME = "ben19"
TEST = {"sources": ["synthetic"], "splits": ["test"]}
OTHER_PLACES = {"sources": ["synthetic"], "splits": ["train", "validation"]}
REAL = {"sources": ["bigearthnet-v1", "bigearthnet-v2"]}
REAL_K = 5
SETTINGS = {
    "any": (TEST, "any"),
    "half": (TEST, "jaccard:0.5"),
    "any, other places": (OTHER_PLACES, "any"),
}
"""Archive and relevance, by what the tables call it; queries are always TEST."""


@dataclass(frozen=True)
class Size:
    """How much is made and trained."""

    patches: int
    width: int
    epochs: int
    steps: int


FULL = Size(patches=20_280, width=16, epochs=8, steps=10_000)
QUICK = Size(patches=676, width=16, epochs=2, steps=300)

SPLIT_BY_COLUMNS = """
update eo.patch
set split = case when tile_column < 6 then 'train' when tile_column < 9 then 'validation' else 'test' end
where source = 'synthetic'
"""
SCENES = """
with scene as (
    select p.product_id from eo.patch p where p.source = 'product' group by 1 having count(*) > %(k)s
)
select count(*), avg((found.product_id = p.product_id)::integer), avg(chance.share)
from eo.patch p
join scene using (product_id)
cross join lateral (
    select (count(*) filter (where o.product_id = p.product_id) - 1)::float8 / (count(*) - 1) as share
    from eo.patch o where o.source = 'product'
) chance
cross join lateral {} as s
join eo.patch found on found.patch_id = s.patch_id
where p.source = 'product'
"""
BY_CODE = "eo.similar(p.name, eo.filter(sources => '{product}'), max_results => %(k)s, encoder => %(encoder)s)"
BY_VECTOR = """eo.similar_to_vector(
    (select e.embedding from eo.embedding e where e.patch_id = p.patch_id and e.encoder_id = %(encoder_id)s),
    eo.filter(sources => '{product}'), max_results => %(k)s, encoder => %(encoder)s, exclude => array[p.name])"""


def main() -> None:
    """Run the parts asked for."""
    parts: dict[str, Callable[[Connection, Size], None]] = {
        "archive": fill,
        "encoders": make_encoders,
        "hashes": make_hash_functions,
        "evaluations": evaluate_all,
        "real": add_real_patches,
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", action="append", choices=[*parts, "report"], help="default: all")
    parser.add_argument("--quick", action="store_true", help="smoke run: few patches, results to build/")
    given = parser.parse_args()
    size = QUICK if given.quick else FULL
    archive = Archive("retrieval", f"pgearth_bench_retrieval{'_quick' if given.quick else ''}", 0, size.patches, 0)
    with psycopg.connect(conninfo("postgres"), autocommit=True) as server:
        if not value(server, "select exists (select from pg_database where datname = %s)", archive.database):
            server.execute(SQL("create database {}").format(Identifier(archive.database)))
    migrate(archive)
    os.environ["PGEARTH_DSN"] = conninfo(archive.database)  # of the commands from here on
    with connect(archive) as connection:
        for name, part in parts.items():
            if not given.part or name in given.part:
                with Stopwatch() as watch:
                    part(connection, size)
                progress(f"{name}: {watch.seconds:.0f} s")
        if not given.part or "report" in given.part:
            report("Retrieval by hash codes, synthetic archive", held_out_section(connection), Run([], 0, given.quick))
            report("Retrieval by hash codes, real patches", real_section(connection), Run([], 0, given.quick))


def command(*arguments: object) -> None:
    """Run a command of pgearth."""
    progress("pgearth " + " ".join(map(str, arguments)))
    pgearth.main([str(argument) for argument in arguments], standalone_mode=False)


def fill(connection: Connection, size: Size) -> None:
    """Make the archive and its labels."""
    command("load", "nomenclature")
    command("synthetic", "--patches", size.patches)
    command("annotate")
    if size is QUICK:
        # So few patches lie at the edge of their tile, all of the split train.
        connection.execute(SPLIT_BY_COLUMNS)
    connection.execute("vacuum analyze")


def make_encoders(connection: Connection, size: Size) -> None:
    """Train the network, and encode the patches by both encoders."""
    if "cnn" not in versions(connection):
        options = ("--width", size.width, "--epochs", size.epochs, "--source", "synthetic")
        command("train", "encoder", "cnn", *options, "--checkpoint", checkpoint(connection, "cnn"))
    command("encode")
    command("encode", *(option for encoder in ENCODERS for option in ("--encoder", encoder)))
    connection.execute("vacuum analyze eo.embedding")


def make_hash_functions(connection: Connection, size: Size) -> None:
    """Train the hash functions, and hash the vectors by them."""
    for encoder, method, bits, name in hash_functions(connection):
        if name not in versions(connection):
            options: tuple[object, ...] = ("--method", method, "--encoder", encoder, "--bits", bits)
            if method == "milan":
                options += ("--steps", size.steps, "--checkpoint", checkpoint(connection, name))
            command("train", "hash", name, *options, "--source", "synthetic")
    encode_by_hash_functions(connection)


def checkpoint(connection: Connection, name: str) -> Path:
    """Folder of the state of a training."""
    return ROOT / "build" / "retrieval" / connection.info.dbname / name


def encode_by_hash_functions(connection: Connection) -> None:
    """Hash the vectors that lack a code."""
    names = [name for *_, name in hash_functions(connection)]
    command("encode", *(option for name in names for option in ("--encoder", name)))
    connection.execute("vacuum analyze eo.bucket, eo.patch_bucket")


def evaluate_all(connection: Connection, size: Size) -> None:
    """Evaluate what has not been: queries in places that no training saw, among others of them and among all others."""
    del size
    for name in all_names(connection):
        for archive, relevance in SETTINGS.values():
            if stored_metrics(connection, name, archive, relevance) is None:
                progress(f"{name}: {relevance} {json.dumps(archive)}")
                connection.execute(
                    "select from eo.evaluate(%s, eo.filter(%s::jsonb), eo.filter(%s::jsonb), %s, %s)",
                    (name, Jsonb(TEST), Jsonb(archive), K, relevance),
                )


def add_real_patches(connection: Connection, size: Size) -> None:
    """Load the patches and scenes of the sample, and encode them by what was trained without them."""
    del size
    from pgearth.loaders.demo.demo import products

    sample = Path(os.environ.get("PGEARTH_SAMPLE", ROOT.parent / "shared" / "sample"))
    v2 = sample / "bigearthnet-v2"
    command("load", "bigearthnet", sample / "bigearthnet-v1")
    command("load", "bigearthnet", v2, "--metadata", v2 / "metadata.parquet")
    for path in products(sample):
        bands = tuple(spectral.BANDS) if path.name.startswith("L2A_19UDP") else None
        load_product(connection, path, Options(grid="fixed:120", bands=bands))
    command("encode", *(option for encoder in ENCODERS for option in ("--encoder", encoder)))
    encode_by_hash_functions(connection)
    for name in all_names(connection):
        connection.execute(
            "select from eo.evaluate(%s, eo.filter(%s::jsonb), eo.filter(%s::jsonb), %s)",
            (name, Jsonb(REAL), Jsonb(REAL), REAL_K),
        )


def hash_functions(connection: Connection) -> Iterator[tuple[str, str, int, str]]:
    """Encoder, method, bits and name of each hash function; `sign` makes a bit of each feature, no choice."""
    for encoder in ENCODERS:
        dimension = find(connection, encoder, hashing=False).dimension
        for method in METHODS:
            for bits in BITS:
                if (method != "sign" or bits == dimension) and (method != "trivial" or (dimension or 0) % bits == 0):
                    yield encoder, method, bits, f"{encoder}-{method}-{bits}"


def all_names(connection: Connection) -> list[str]:
    """Names of all encoders and hash functions that are compared."""
    return [*ENCODERS, *(name for *_, name in hash_functions(connection))]


def versions(connection: Connection) -> set[str]:
    """Names of all encoders and hash functions that there are."""
    return {name for (name,) in connection.execute("select name from eo.encoder where retired_at is null")}


def stored_metrics(
    connection: Connection, name: str, archive: Mapping[str, Any], relevance: str, queries: Mapping[str, Any] = TEST
) -> dict[str, dict[str, float]] | None:
    """The latest stored evaluation: metrics by name, each with its value and, where there is one, its chance level."""
    row = connection.execute(
        """
        select v.metrics
        from eo.evaluation v
        join eo.encoder e using (encoder_id)
        where e.name = %s and e.retired_at is null and v.queries = %s and v.archive = %s and v.relevance = %s
        order by v.evaluated_at desc
        limit 1
        """,
        (name, Jsonb(queries), Jsonb(archive), relevance),
    ).fetchone()
    return row[0] if row else None


def metrics_of(*given: Any) -> dict[str, dict[str, float]]:
    """The stored evaluation, which there must be."""
    found = stored_metrics(*given)
    assert found is not None, f"{given[1]} has not been evaluated: run the part evaluations"
    return found


# The report


def held_out_section(connection: Connection) -> list[str]:
    """Tables of the synthetic archive."""
    patches: dict[str, int] = dict(
        connection.execute(
            "select split, count(*) from eo.patch where source = 'synthetic' and label_ids is not null group by 1"
        ).fetchall()
    )
    counts = metrics_of(connection, "spectral", TEST, "any")
    training = connection.execute("select training from eo.encoder where name = 'cnn'").fetchone()
    assert training is not None
    cnn = training[0]
    about = (
        f"{sum(patches.values()):,} synthetic patches in four seasons, split by place (train {patches['train']:,},"
        f" validation {patches['validation']:,}, test {patches['test']:,}): no encoder and no hash function has seen"
        f" anything of the test places. Queries: all {counts['queries']['value']:,.0f} patches of the test split, each"
        " searched among the others, three of which show its place in other seasons, and (other places) among those of"
        f" the other splits. Labels: {SCHEME}. Relevant is what shares a label (any), or half of all labels of both"
        " (half)."
        f" Measures at {K} results, ties by expectation; `map_hits_found` is AP as MiLaN's authors compute it; r <= 2:"
        " lookups of codes that differ in at most two bits. `cnn` is a ResNet-18 of width"
        f" {cnn['parameters']['width']}, {len(cnn['metrics']['epochs'])} epochs (validation mAP of its classes"
        f" {cnn['metrics']['map_micro']:.3f})."
    )
    return [
        about,
        summary(connection),
        milan_against_others(connection),
        measures(connection),
        statistics(connection),
    ]


def rows_of(connection: Connection) -> Iterator[tuple[str, str, str, str]]:
    """What the rows of tables are: encoder, method, bits and the name; the vectors first."""
    for encoder in ENCODERS:
        yield encoder, "vectors", "", encoder
        yield from (
            (of, method, str(bits), name) for of, method, bits, name in hash_functions(connection) if of == encoder
        )


def percent(number: float) -> str:
    """A share for a table, in per cent."""
    return f"{100 * number:.1f}"


def summary(connection: Connection) -> str:
    """Mean average precision of every method by bits, in all settings."""
    settings = list(SETTINGS.values())
    first = [metrics_of(connection, ENCODERS[0], *setting)["map"] for setting in settings]

    def once_per_setting(numbers: Iterable[float]) -> list[str]:
        return [cell for number in numbers for cell in (percent(number), *[""] * (len(BITS) - 1))]

    rows = [["chance", "", *once_per_setting(metric["chance"] for metric in first)]]
    for encoder in ENCODERS:
        ceiling = (metrics_of(connection, encoder, *setting)["map"]["value"] for setting in settings)
        rows.append([encoder, "vectors", *once_per_setting(ceiling)])
        scaled = (map_of_vectors(connection, encoder, standardised, *setting) for setting in settings)
        rows.append([encoder, "vectors, standardised", *once_per_setting(scaled)])
        names = {(method, bits): name for of, method, bits, name in hash_functions(connection) if of == encoder}
        for method in METHODS:
            cells = [
                percent(metrics_of(connection, names[method, bits], *setting)["map"]["value"])
                if (method, bits) in names
                else ""
                for setting in settings
                for bits in BITS
            ]
            rows.append([encoder, method, *cells])
    header = ["encoder", "method", *(f"{setting}, {bits} bits" for setting in SETTINGS for bits in BITS)]
    return f"Mean average precision at {K} results (%):\n\n" + table(header, rows)


def milan_against_others(connection: Connection) -> str:
    """How far MiLaN's codes are from its own real-valued outputs, the vectors that it reads, and other methods."""
    rows = []
    for encoder in ENCODERS:
        for setting in ("any", "half"):
            archive, relevance = SETTINGS[setting]
            vectors = metrics_of(connection, encoder, archive, relevance)["map"]["value"]
            for bits in BITS:
                weights = find(connection, f"{encoder}-milan-{bits}", hashing=True).weights
                real = map_of_vectors(connection, encoder, partial(outputs, weights), archive, relevance)
                codes, *others = (
                    metrics_of(connection, f"{encoder}-{method}-{bits}", archive, relevance)["map"]["value"]
                    for method in ("milan", "lsh", "itq", "kslsh")
                )
                gains = [f"{100 * (codes - other):+.1f}" for other in (real, vectors, *others)]
                rows.append([encoder, setting, bits, percent(codes), *gains])
    header = ["encoder", "relevant", "bits", "MiLaN's codes", "less its outputs before they become bits"]
    header += ["less the vectors", "less LSH", "less ITQ", "less KSLSH"]
    return f"MiLaN against its own outputs, what it reads, and other methods, mAP@{K} (%):\n\n" + table(header, rows)


Transform = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def map_of_vectors(
    connection: Connection, encoder: str, transform: Transform, archive: Mapping[str, Any], relevance: str
) -> float:
    """mAP of an encoder's vectors (n, d) after a transformation, by Euclidean distance, for the same queries."""
    parent = find(connection, encoder, hashing=False)
    passing = """
        select p.*
        from eo_internal.filtered_patches(eo.filter(%s::jsonb)) f, unnest(f.patch_ids, f.cells) as p (patch_id, cell)
        """
    queries, found = (dict(connection.execute(passing, (Jsonb(filters),)).fetchall()) for filters in (TEST, archive))
    cells = queries | found
    level = value(connection, "select max(level) from eo.label where scheme = %s", SCHEME)
    row = connection.execute(
        "select * from eo_internal.labelled_features(%s::smallint, %s, %s, %s, %s)",
        (parent.encoder_id, *map(list, zip(*sorted(cells.items()), strict=True)), SCHEME, level),
    ).fetchone()
    assert row is not None
    patch_ids, labels, labelled, encoded, features = row
    size = 4 + 4 * (parent.dimension or 0)
    vectors = vectors_from_send([features[start : start + size] for start in range(0, len(features), size)])
    patches = LabelledFeatures(
        np.frombuffer(patch_ids, ">i8").astype(np.int64),
        np.frombuffer(labels, ">u8").astype(np.uint64),
        np.frombuffer(labelled, bool),
        np.frombuffer(encoded, bool),
        transform(vectors.astype(np.float64)),
        None,
    )
    assert patches.encoded.all()
    measured = evaluate(patches, list(queries), list(found), K, relevance_rule(relevance))
    return next(number for name, number, _ in measured if name == "map")


def standardised(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors (n, d) with mean 0 and standard deviation 1 of each feature."""
    return standardise(standardisation(vectors), vectors)


def outputs(weights: Mapping[str, NDArray], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Outputs of MiLaN's network (n, bits), from 0 to 1, whose nearest integers are the bits."""
    values = standardise(weights, vectors)
    for layer in milan.LAYERS:
        values = fast_product(weights[f"{layer}.weight"].astype(np.float64), values) + weights[f"{layer}.bias"]
        if layer != milan.LAYERS[-1]:
            values = np.maximum(values, milan.NEGATIVE_SLOPE * values)
    assert ((values > 0) == milan.hash_codes(weights, vectors)).all()
    result: NDArray[np.float64] = 1 / (1 + np.exp(-values))
    return result


MEASURES = {
    "mAP": "map",
    "mAP, hits found": "map_hits_found",
    "precision": "precision",
    "recall": "recall",
    "F1": "f1",
    "nDCG": "ndcg",
    "ACG": "acg",
    "weighted mAP": "wap",
    "precision, r <= 2": "radius_precision",
    "empty, r <= 2": "radius_empty",
}


def measures(connection: Connection) -> str:
    """All measures of every method in the test places."""

    def cells(metrics: Mapping[str, Mapping[str, float]], kind: str) -> Iterator[str]:
        for name in MEASURES.values():
            number = metrics.get(name, {}).get(kind)
            yield "" if number is None else f"{number:.2f}" if name in ("acg", "wap") else percent(number)

    rows = [["chance", "", "", *cells(metrics_of(connection, f"{ENCODERS[0]}-lsh-{BITS[0]}", TEST, "any"), "chance")]]
    for encoder, method, bits, name in rows_of(connection):
        rows.append([encoder, method, bits, *cells(metrics_of(connection, name, TEST, "any"), "value")])
    header = ["encoder", "method", "bits", *MEASURES]
    return f"All measures at {K} results in the test places (%; ACG, weighted mAP: labels):\n\n" + table(header, rows)


def statistics(connection: Connection) -> str:
    """What the codes are like."""
    rows = []
    for encoder, method, bits, name in rows_of(connection):
        if bits:
            found: dict[str, float] = dict(
                connection.execute(
                    "select * from eo.code_statistics(%s, eo.filter(sources => '{synthetic}'))", (name,)
                ).fetchall()
            )
            rows.append(
                [
                    encoder,
                    method,
                    bits,
                    f"{found['distinct_codes']:,.0f} ({percent(found['distinct_codes'] / found['patches'])})",
                    f"{found['constant_bits']:.0f}",
                    f"{found['bit_balance_mean']:.2f}",
                    f"{found['bit_balance_worst']:.2f}",
                    f"{found['bit_correlation_mean'] or 0:.2f}",
                    *(f"{found[f'bucket_size_{kind}']:,.0f}" for kind in ("p50", "p95", "max")),
                ]
            )
    header = ["encoder", "method", "bits", "distinct codes (% of patches)", "constant bits", "balance, mean"]
    header += ["balance, worst", "correlation of two bits, mean", "bucket, median", "bucket, p95", "bucket, largest"]
    return "Codes of all synthetic patches (balance 1: a bit is set in half of them; 0: constant):\n\n" + table(
        header, rows
    )


def real_section(connection: Connection) -> list[str]:
    """Table of the real patches."""
    counts = metrics_of(connection, "spectral", REAL, "any", REAL)
    rows: list[list[str]] = []
    scenes = 0
    for encoder, method, bits, name in rows_of(connection):
        metrics = metrics_of(connection, name, REAL, "any", REAL)
        scenes, share, chance = same_scene(connection, name)
        if not rows:
            rows.append(
                [
                    "chance",
                    "",
                    "",
                    percent(metrics["map"]["chance"]),
                    percent(metrics["precision"]["chance"]),
                    percent(chance),
                ]
            )
        rows.append(
            [
                encoder,
                method,
                bits,
                percent(metrics["map"]["value"]),
                percent(metrics["precision"]["value"]),
                percent(share),
            ]
        )
    about = (
        f"Encoders and hash functions trained on the synthetic archive alone. Labelled: the"
        f" {counts['archive']['value']:.0f} Sentinel-2 patches of BigEarthNet v1 and v2 in the sample,"
        f" {counts['queries']['value']:.0f} of them with one that shares a label, each searched among the others: too"
        f" few to tell methods apart. Unlabelled: {scenes} windows of the sample's Sentinel-2 products, of which each"
        f" has more than {REAL_K}; what is right is a window of the same product."
    )
    header = [
        "encoder",
        "method",
        "bits",
        f"mAP@{REAL_K}, any label shared",
        f"precision@{REAL_K}",
        f"same product among the {REAL_K} nearest",
    ]
    return [about, table(header, rows)]


def same_scene(connection: Connection, name: str) -> tuple[int, float, float]:
    """Windows of scenes; the share of their REAL_K nearest windows that are of the same scene; its chance level."""
    encoder_id, bits = connection.execute(
        "select encoder_id, bits from eo.encoder where name = %s order by version desc limit 1", (name,)
    ).fetchone() or (None, None)
    query = SCENES.format(BY_VECTOR if bits is None else BY_CODE)
    row = connection.execute(query.encode(), {"k": REAL_K, "encoder": name, "encoder_id": encoder_id}).fetchone()
    assert row is not None
    pairs, share, chance = row
    return pairs // REAL_K, share, chance


if __name__ == "__main__":
    main()

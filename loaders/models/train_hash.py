"""`pgearth train hash`: fits a hash function to an encoder's vectors and stores it as the next version of its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pgvector.psycopg import register_vector
from psycopg import Connection

from pgearth.loaders.models.training_folder import training_folder
from pgearth.loaders.models.training_patches import choose_patches, require_writer, software
from pgearth.loaders.models.versions import check_definition, find, register, version_name
from pgearth.loaders.server.connection import connect
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.hashing import itq, kslsh, lsh, milan, sign, trivial
from pgearth.pyfuncs.measures.retrieval import code_statistics, hamming_distances, relevance_rule, retrieval_metrics
from pgearth.pyfuncs.models.encoder import Encoder
from pgearth.pyfuncs.models.weights import dump

if TYPE_CHECKING:
    from pgearth.pyfuncs.training.milan import Settings

METHODS = {"milan": milan, "kslsh": kslsh, "itq": itq, "lsh": lsh, "sign": sign, "trivial": trivial}
SUPERVISED = ("milan", "kslsh")
LIBRARIES = {"itq": "faiss-cpu", "kslsh": "scipy"}
DEFAULT_BITS = 128
MOST_VALIDATED = 2000
"""Validation patches at most that are looked at: each is compared with all others, time and again."""
RESULTS = 20
"""How many results of a query count in metrics, the k of eo.evaluate."""
VECTORS = """
copy (
    select case when %(scheme)s::text = 'scl' then p.scene_class_ids else p.label_ids end, e.embedding
    from unnest(%(patch_ids)s::bigint[]) with ordinality as wanted (patch_id, number)
    join eo.embedding e on e.patch_id = wanted.patch_id and e.encoder_id = %(encoder_id)s
    join eo.patch p on p.patch_id = e.patch_id and p.cell = e.cell
    order by wanted.number
) to stdout (format binary)
"""


@dataclass(frozen=True)
class Order:
    """What is to be trained, on what: `filters` are arguments of eo.filter; see choose_patches, ArchiveDataset.

    `bits` None: DEFAULT_BITS, and of the method `sign` as many as the vectors have features. `milan`: what MiLaN's
    Settings are to have other than by default.
    """

    method: str
    encoder: str | None = None
    bits: int | None = None
    seed: int = 0
    scheme: str = "ben19"
    level: int | None = None
    filters: Mapping[str, Any] | None = None
    validation_fraction: float | None = None
    milan: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Sample:
    """Vectors (n, d), float32, and labels, bool (n, classes); how many patches were left out for want of either."""

    vectors: np.ndarray
    labels: np.ndarray
    without_vectors: int
    without_labels: int


def train_hash(name: str, order: Order, folder: Path | None = None) -> tuple[Encoder, dict[str, Any]]:
    """Train a hash function and store it, when it is done, as the next version of `name`; return it and its record.

    With `folder` MiLaN goes on after it was killed. Raises PgearthError for data that cannot be trained on, and where
    the folder has the state of a training with other settings or data.
    """
    with training_folder(folder) as (_, state):
        with connect(autocommit=True) as connection:
            require_writer(connection)
            parent = find(connection, order.encoder, hashing=False)
            bits = bits_of(order, parent)
            check_definition(connection, name, order.method, bits=bits, parent_id=parent.encoder_id)
            training, validation = read_samples(connection, order, parent)
        weights, how = fit(order, bits, training, validation, state)
        record = {
            "method": order.method,
            "encoder": version_name(parent),
            "data": {
                "filters": {key: value for key, value in (order.filters or {}).items() if value is not None},
                "validation_fraction": order.validation_fraction,
                "scheme": order.scheme,
                "level": order.level,
                "training": len(training.vectors),
                "validation": len(validation.vectors),
                "without_vectors": training.without_vectors + validation.without_vectors,
                "without_labels": training.without_labels + validation.without_labels,
            },
            "seed": order.seed,
            **how,
            "metrics": measure(METHODS[order.method].hash_codes(weights, validation.vectors), validation.labels),
            "software": software()
            | {library: version(library) for library in [LIBRARIES.get(order.method)] if library},
        }
        with connect(autocommit=True) as connection:
            hashing = register(
                connection, name, order.method, dump(weights), bits=bits, parent_id=parent.encoder_id, training=record
            )
    return hashing, record


def bits_of(order: Order, parent: Encoder) -> int:
    """Number of bits of the hash function; raises PgearthError where `sign` is to make another than it can."""
    if order.method != "sign":
        return order.bits or DEFAULT_BITS
    dimension = parent.dimension or 0
    if order.bits not in (None, dimension):
        raise PgearthError(
            f"sign makes a bit of each feature: of {parent.name}'s vectors {dimension}, not {order.bits}.",
            "Leave out --bits.",
        )
    return dimension


def read_samples(connection: Connection, order: Order, parent: Encoder) -> tuple[Sample, Sample]:
    """What to train on and what to validate on; of the latter at most MOST_VALIDATED, in random order."""
    from pgearth.pyfuncs.training.dataset import find_classes

    chosen = choose_patches(connection, order.filters or {}, order.validation_fraction, order.seed)
    _, positions = find_classes(connection, order.scheme, order.level)
    shuffled = np.random.default_rng(order.seed).permutation(chosen.validation)[:MOST_VALIDATED]
    training, validation = (
        read_sample(connection, order, parent, positions, patch_ids)
        for patch_ids in (chosen.training, shuffled.tolist())
    )
    return training, validation


def read_sample(
    connection: Connection, order: Order, parent: Encoder, positions: Mapping[int, list[int]], patch_ids: list[int]
) -> Sample:
    """Vectors and labels of patches, in their order; for a supervised method, of those that bear a class of the scheme.

    Raises PgearthError where no patch is left.
    """
    register_vector(connection)
    classes = 1 + max(position for several in positions.values() for position in several)
    vectors, labels = [], []
    parameters = {"encoder_id": parent.encoder_id, "scheme": order.scheme, "patch_ids": patch_ids}
    with connection.cursor().copy(VECTORS, parameters) as copy:
        copy.set_types(["int2[]", "vector"])
        for label_ids, vector in copy.rows():
            label = np.zeros(classes, bool)
            for label_id in label_ids or ():
                label[positions.get(label_id, [])] = True
            vectors.append(vector.to_numpy())
            labels.append(label)
    encoder = version_name(parent)
    if not vectors:
        raise PgearthError(
            f"None of the {len(patch_ids):,} patches has a vector of {encoder}.",
            f"Run: pgearth encode --encoder {encoder}",
        )
    sample = Sample(np.stack(vectors), np.stack(labels), len(patch_ids) - len(vectors), 0)
    if order.method not in SUPERVISED:
        return sample
    labelled = sample.labels.any(axis=1)
    if not labelled.any():
        raise PgearthError(
            f"None of the {len(vectors):,} patches bears a label of {order.scheme}, which {order.method} learns from.",
            "Run pgearth annotate, or name their nomenclature: --scheme.",
        )
    return Sample(sample.vectors[labelled], sample.labels[labelled], sample.without_vectors, int((~labelled).sum()))


def fit(
    order: Order, bits: int, training: Sample, validation: Sample, state: Path | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Weights of the hash function, and what its record is to say of how they were found."""
    vectors, labels, seed = training.vectors, training.labels, order.seed
    if order.method == "milan":
        from pgearth.pyfuncs.training.milan import Settings

        return fit_milan(Settings(bits=bits, seed=seed, **(order.milan or {})), training, validation, state)
    if order.method == "kslsh":
        return kslsh.fit(vectors, labels, bits, seed), {
            "parameters": {"bits": bits, "anchors": kslsh.ANCHORS, "sample": kslsh.SAMPLE}
        }
    weights = {
        "itq": lambda: itq.fit(vectors, bits, seed),
        "lsh": lambda: lsh.fit(vectors, bits, seed),
        "sign": lambda: sign.fit(vectors),
        "trivial": lambda: trivial.fit(vectors, bits),
    }[order.method]()
    return weights, {"parameters": {"bits": bits}}


def fit_milan(
    settings: Settings, training: Sample, validation: Sample, state: Path | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Weights of MiLaN as they were when its codes did best on the validation, and what it was trained with.

    Best is what has the greatest nDCG, which grades results by the number of shared labels: whether results share any
    is soon answered, and does not tell later weights apart.
    """
    from pgearth.pyfuncs.training.milan import train

    def evaluate(weights: dict[str, np.ndarray]) -> float:
        return measure(milan.hash_codes(weights, validation.vectors), validation.labels)["ndcg"]

    with progress(range(0), "training", "steps", settings.steps) as bar:

        def on_step(step: int) -> None:
            bar.update(step - bar.n)

        trained = train(settings, training.vectors, training.labels, evaluate, state=state, on_step=on_step)
    return trained.weights, {"parameters": asdict(settings), "history": trained.history, "best": trained.best_epoch}


def measure(codes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics by name of codes, bool (n, bits), of patches with labels, bool (n, classes), each the query in turn.

    See eo.evaluate and eo.code_statistics; where no patch has a label there are only the latter.
    """
    bits = codes.shape[1]
    padded = np.pad(codes, ((0, 0), (0, -bits % 64)))
    words = np.ascontiguousarray(np.packbits(padded, axis=1).view(np.uint64).T)
    metrics = {name: value for name, value in code_statistics(words, bits).items() if value is not None}
    if labels.any():
        sets = np.bitwise_or.reduce(labels.astype(np.uint64) << np.arange(labels.shape[1], dtype=np.uint64), axis=1)
        found, _ = retrieval_metrics(
            hamming_distances(words, words), sets, sets, np.arange(len(sets)), RESULTS, relevance_rule("any")
        )
        metrics |= {name: metric.value for name, metric in found.items()}
    return metrics

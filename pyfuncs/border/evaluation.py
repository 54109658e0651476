"""Measures of retrieval and of codes, over patches and labels of the archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pgearth.pyfuncs.border.session import Session, answers
from pgearth.pyfuncs.queries import LABELLED_FEATURES_QUERY, SIZE_OF_FEATURES_QUERY

VECTORS_AT_ONCE = 10_000


@answers
def retrieval_metrics(
    session: Session,
    encoder_id: int,
    queries: Sequence[int],
    query_cells: Sequence[str],
    archive: Sequence[int],
    archive_cells: Sequence[str],
    scheme: str,
    level: int,
    k: int,
    relevance: str | None,
    max_queries: int | None,
    seed: int,
) -> list[tuple[str, float, float | None]]:
    """Measures of retrieval with their chance levels, and numbers of patches (see eo.retrieval_metrics)."""
    from pgearth.pyfuncs.measures.retrieval import evaluate, relevance_rule

    rule = relevance_rule(relevance or "")
    cells = dict(zip((*queries, *archive), (*query_cells, *archive_cells), strict=True))
    patches = read_labelled_features(session, encoder_id, cells, scheme, level)
    return session.interruptibly(lambda check: evaluate(patches, queries, archive, k, rule, max_queries, seed, check))


@answers
def code_statistics(
    session: Session, encoder_id: int, patch_ids: Sequence[int], cells: Sequence[str]
) -> list[tuple[str, float | None]]:
    """Statistics of the hash codes of patches (see eo.code_statistics)."""
    from pgearth.pyfuncs.measures.retrieval import code_statistics as describe

    patches = read_labelled_features(session, encoder_id, dict(zip(patch_ids, cells, strict=True)), None, None)
    assert patches.bits is not None
    codes = patches.features[patches.encoded].T
    return list(session.interruptibly(lambda _: describe(codes, patches.bits)).items())


def read_labelled_features(
    session: Session, encoder_id: int, cells: Mapping[int, str], scheme: str | None, level: int | None
) -> Any:
    """Read codes or vectors, and labels, of patches given by id with their cells, as LabelledFeatures."""
    import numpy as np

    from pgearth.pyfuncs.measures.retrieval import LabelledFeatures
    from pgearth.pyfuncs.search.code_file import pack

    row = session.row(SIZE_OF_FEATURES_QUERY, ["smallint"], [encoder_id])
    bits, dimension = row["bits"], row["dimension"]
    patch_ids = sorted(cells)
    count = len(patch_ids)
    width, dtype = (dimension, np.float32) if bits is None else (-(-bits // 64), np.uint64)
    features: Any = np.zeros((count, width), dtype)
    labels = np.zeros(count, np.uint64)
    labelled, encoded = np.zeros(count, bool), np.zeros(count, bool)
    types = ("smallint", "bigint[]", "text[]", "text", "integer")
    for start in range(0, count, VECTORS_AT_ONCE):
        rows = slice(start, start + VECTORS_AT_ONCE)
        part = patch_ids[rows]
        places = [cells[patch_id] for patch_id in part]
        row = session.row(LABELLED_FEATURES_QUERY, types, [encoder_id, part, places, scheme, level])
        labels[rows] = np.frombuffer(row["labels"], ">u8")
        labelled[rows] = np.frombuffer(row["labelled"], bool)
        encoded[rows] = np.frombuffer(row["encoded"], bool)
        if row["features"] is None:
            continue
        if bits is None:
            table = np.frombuffer(row["features"], np.uint8).reshape(-1, 4 + 4 * dimension)[:, 4:]
            features[rows][encoded[rows]] = np.ascontiguousarray(table).view(">f4")
        else:
            features[rows][encoded[rows]] = pack(row["features"], bits).T
    return LabelledFeatures(np.array(patch_ids, np.int64), labels, labelled, encoded, features, bits)

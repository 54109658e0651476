"""Measures of retrieval against literal definitions over all orders of ties, scikit-learn and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, ndcg_score

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.measures import retrieval as measures
from pgearth.pyfuncs.measures.retrieval import Distances, Metric, code_statistics, relevance_rule, retrieval_metrics
from pgearth.pyfuncs.search.code_file import pack
from tests.retrieval_oracle import Labels, is_relevant, literal, mean, orders


def bits(labels: Labels) -> NDArray[np.uint64]:
    return np.array([sum(1 << label for label in patch) for patch in labels], np.uint64)


def measured(
    distances: NDArray,
    queries: Labels,
    patches: Labels,
    k: int,
    relevance: str = "any",
    itself: list[int] | None = None,
) -> dict[str, Metric]:
    metrics, _ = retrieval_metrics(
        Distances(lambda rows: distances[rows].astype(float), 0),
        bits(queries),
        bits(patches),
        np.array(itself if itself is not None else [-1] * len(queries)),
        k,
        relevance_rule(relevance),
        radius=2,
    )
    return metrics


@pytest.mark.parametrize("relevance", ["any", "same", "jaccard:0.5"])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_ties_are_resolved_by_the_mean_over_all_their_orders(k: int, relevance: str) -> None:
    """And the chance level is the mean over all orders of all patches."""
    generator = np.random.default_rng(k)
    checked = 0
    for _ in range(10):
        count = 5
        patches = [set(np.flatnonzero(generator.random(3) < 0.5).tolist()) for _ in range(count)]
        query = {0, 1}
        if not any(is_relevant(relevance)(query, patch) for patch in patches):
            continue
        distances = generator.integers(0, 3, count)
        found = measured(distances[None], [query], patches, k, relevance)
        expected = mean([literal(order, query, patches, k, relevance) for order in orders(distances)])
        chance = mean([literal(order, query, patches, k, relevance) for order in orders(np.zeros(count))])
        for name in expected:
            assert found[name].value == pytest.approx(expected[name], abs=1e-9), name
            assert found[name].chance == pytest.approx(chance[name], abs=1e-9), name
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("k", [1, 4, 5, 6])
def test_the_query_itself_is_no_result(k: int) -> None:
    generator = np.random.default_rng(1)
    patches = [{0}, {0, 1}, {1}, {0}, set(), {2, 0}]
    distances = generator.integers(0, 2, (2, 6))
    found = measured(distances, [patches[3], patches[1]], patches, k, itself=[3, 1])
    expected, chance = [], []
    for row, own in zip(distances, (3, 1), strict=True):
        others = [patch for number, patch in enumerate(patches) if number != own]
        row = np.delete(row, own)
        expected.append(mean([literal(order, patches[own], others, k, "any") for order in orders(row)]))
        chance.append(mean([literal(order, patches[own], others, k, "any") for order in orders(np.zeros(5))]))
    for name, value in mean(expected).items():
        assert found[name].value == pytest.approx(value, abs=1e-9), name
        assert found[name].chance == pytest.approx(mean(chance)[name], abs=1e-9), name


def random_archive(seed: int, queries: int, patches: int) -> tuple[NDArray, Labels, Labels]:
    """Untied distances that are the shorter the more labels are shared, roughly."""
    generator = np.random.default_rng(seed)
    labels: Labels = [
        {int(label) for label in generator.choice(12, generator.integers(1, 5), replace=False)}
        for _ in range(queries + patches)
    ]
    shared = np.array([[len(query & patch) for patch in labels[queries:]] for query in labels[:queries]])
    return generator.standard_normal((queries, patches)) - 0.5 * shared, labels[:queries], labels[queries:]


def test_against_scikit_learn() -> None:
    distances, queries, patches = random_archive(2, 40, 300)
    shared = np.array([[len(query & patch) for patch in patches] for query in queries])
    for k in (5, 20, 300):
        found = measured(distances, queries, patches, k)
        expected = ndcg_score(2.0**shared - 1, -distances, k=k, ignore_ties=True)
        assert found["ndcg"].value == pytest.approx(expected, abs=1e-9)
    precisions = [average_precision_score(row > 0, -distance) for row, distance in zip(shared, distances, strict=True)]
    assert found["map"].value == pytest.approx(np.mean(precisions), abs=1e-9)
    assert found["map_hits_found"].value == pytest.approx(np.mean(precisions), abs=1e-9)
    nearest = np.argsort(distances, axis=1)[:, :20]
    cut = [
        average_precision_score((row > 0)[top], -distance[top])
        for row, distance, top in zip(shared, distances, nearest, strict=True)
    ]
    assert measured(distances, queries, patches, 20)["map_hits_found"].value == pytest.approx(np.mean(cut), abs=1e-9)


def test_tied_ndcg_against_scikit_learn() -> None:
    """scikit-learn, too, gives tied results their mean gain."""
    distances, queries, patches = random_archive(3, 30, 200)
    distances = np.round(distances)
    shared = np.array([[len(query & patch) for patch in patches] for query in queries])
    for k in (7, 20, 200):
        expected = ndcg_score(2.0**shared - 1, -distances, k=k)
        assert measured(distances, queries, patches, k)["ndcg"].value == pytest.approx(expected, abs=1e-9)


def test_chance_against_simulation() -> None:
    _, queries, patches = random_archive(4, 8, 60)
    generator = np.random.default_rng(4)
    levels = measured(np.zeros((8, 60)), queries, patches, 10)
    drawn = [measured(generator.random((8, 60)), queries, patches, 10) for _ in range(400)]
    for name, level in levels.items():
        if name.startswith("radius"):
            continue
        values = [metrics[name].value for metrics in drawn]
        assert level.chance == pytest.approx(level.value, abs=1e-12), "all tied is what chance means"
        assert level.chance == pytest.approx(np.mean(values), abs=5 * np.std(values) / np.sqrt(400)), name


def test_a_perfect_order_scores_one_and_a_random_one_its_chance_level() -> None:
    _, queries, patches = random_archive(5, 10, 100)
    shared = np.array([[len(query & patch) for patch in patches] for query in queries])
    found = measured(-shared, queries, patches, 10)
    for name in ("map", "map_hits_found", "precision", "ndcg"):
        assert found[name].value == pytest.approx(1, abs=1e-12)
        assert found[name].chance is not None and found[name].chance < 0.9


def test_both_denominators() -> None:
    """One hit at rank 1 of k = 2, three relevant patches: the hits found say all is well."""
    found = measured(np.array([[0, 1, 2, 3]]), [{0}], [{0}, {1}, {0}, {0}], 2)
    assert (found["map"].value, found["map_hits_found"].value) == (0.5, 1)


def test_lookups_within_two_bits() -> None:
    distances = np.array([[0, 2, 2, 3], [3, 9, 5, 4], [1, 7, 7, 7]])
    found = measured(distances, [{0}, {0}, {1}], [{0}, {0}, {1}, {1}], 2)
    assert found["radius_precision"].value == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert found["radius_precision"].chance == pytest.approx((1 / 2 + 0 + 1 / 2) / 3)
    assert found["radius_empty"] == Metric(pytest.approx(1 / 3), None)


def test_queries_without_a_relevant_patch_do_not_count() -> None:
    distances = np.array([[0, 1], [0, 1], [0, 1]])
    arguments = (np.full(3, -1), 1, relevance_rule("any"))
    metrics, answered = retrieval_metrics(
        Distances(lambda rows: distances[rows].astype(float), 0), bits([{0}, {5}, {1}]), bits([{0}, {1}]), *arguments
    )
    assert (answered, metrics["precision"].value) == (2, 0.5)
    with pytest.raises(PgearthError, match="no query has a relevant patch"):
        retrieval_metrics(
            Distances(lambda rows: distances[rows].astype(float), 0), bits([{5}] * 3), bits([{0}, {1}]), *arguments
        )


def test_blocks_do_not_change_anything_and_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    distances, queries, patches = random_archive(6, 25, 80)
    distances = np.round(distances)
    whole = measured(distances, queries, patches, 10)
    monkeypatch.setattr(measures, "BLOCK", 80 * 3)
    for name, metric in measured(distances, queries, patches, 10).items():
        assert metric.value == pytest.approx(whole[name].value, abs=1e-12)
    blocks: list[slice] = []

    def of(rows: slice) -> NDArray:
        blocks.append(rows)
        return distances[rows]

    def interrupt() -> None:
        if len(blocks) == 4:
            raise TimeoutError

    arguments = bits(queries), bits(patches), np.full(25, -1), 10, relevance_rule("any"), None, interrupt
    with pytest.raises(TimeoutError):
        retrieval_metrics(Distances(of, 0), *arguments)
    assert [rows.start for rows in blocks] == [0, 3, 6, 9]


def test_hamming_distances() -> None:
    generator = np.random.default_rng(7)
    for width in (12, 64, 100, 256, 300):
        codes = generator.random((9, width)) < 0.5
        words = packed(codes)
        distances = measures.hamming_distances(words[:, :4], words).of(slice(1, 4))
        np.testing.assert_array_equal(distances, (codes[1:4, None] != codes).sum(axis=2))


def packed(codes: NDArray[np.bool_]) -> NDArray[np.uint64]:
    header = codes.shape[1].to_bytes(4, "big")
    return pack(b"".join(header + np.packbits(code).tobytes() for code in codes), codes.shape[1])


def test_euclidean_distances_tie_equal_vectors_only() -> None:
    """Far from the origin, where products of vectors lose most."""
    generator = np.random.default_rng(8)
    vectors = (generator.standard_normal((300, 70)) + 50).astype(np.float32)
    vectors[100:200] = vectors[:100]
    distances = measures.euclidean_distances(vectors[::-1], vectors)
    found = distances.of(slice(0, 300))
    exact = ((vectors[::-1, None].astype(np.float64) - vectors) ** 2).sum(axis=2)
    np.testing.assert_allclose(found, exact, atol=distances.tolerance)
    for row, exact_row in zip(found[:5], exact[:5], strict=True):
        tied = np.abs(row[:, None] - row) <= distances.tolerance
        np.testing.assert_array_equal(tied, np.abs(exact_row[:, None] - exact_row) < 1e-12 * exact.max())
        assert tied.sum() > 300


def test_relevance_at_the_threshold() -> None:
    """3 of 5 labels are 0.6, and 11 of 20 are 0.55, although 0.55 * 20 > 11 in floating point."""
    cases = [("jaccard:0.6", {0, 1, 2, 3}, {1, 2, 3, 4}), ("jaccard:.55", set(range(16)), set(range(5, 20)))]
    for text, query, patch in cases:
        rule = relevance_rule(text)
        shared = np.array([len(query & patch)], np.uint8)
        assert rule(bits([query]), bits([patch]), shared).all(), text
        assert not rule(bits([query]), bits([patch | {60}]), shared).any(), text


@pytest.mark.parametrize("text", ["", "all", "jaccard", "jaccard:0", "jaccard:1.1", "jaccard:x", "jaccard:-1", "ANY"])
def test_unknown_relevance(text: str) -> None:
    with pytest.raises(PgearthError, match=f'no relevance "{text}"') as error:
        relevance_rule(text)
    assert "jaccard:T" in (error.value.hint or "")


def test_code_statistics() -> None:
    """Against numpy's own, on codes with repetitions, a constant bit and two equal ones."""
    generator = np.random.default_rng(9)
    codes = generator.random((40, 70)) < generator.random(70)
    codes[:, 5] = True
    codes[:, 7] = codes[:, 8]
    codes[20:] = codes[generator.integers(0, 5, 20)]
    found = code_statistics(packed(codes), 70)
    sizes = sorted(np.unique(codes, axis=0, return_counts=True)[1])
    varied = codes[:, codes.any(axis=0) & ~codes.all(axis=0)]
    correlation = np.abs(np.corrcoef(varied.T.astype(float)))
    assert (found["patches"], found["distinct_codes"], found["bucket_size_max"]) == (40, len(sizes), sizes[-1])
    assert found["constant_bits"] == 70 - varied.shape[1] >= 1
    assert found["bit_balance_worst"] == 0
    assert found["bit_balance_mean"] == pytest.approx(np.mean(1 - np.abs(2 * codes.mean(axis=0) - 1)))
    assert found["bit_correlation_mean"] == pytest.approx(correlation[~np.eye(len(correlation), dtype=bool)].mean())
    assert found["bucket_size_mean"] == pytest.approx(40 / len(sizes))
    assert found["bucket_size_p95"] == pytest.approx(np.quantile(sizes, 0.95))


def test_code_statistics_of_one_code_and_of_none() -> None:
    one = code_statistics(packed(np.ones((3, 16), bool)), 16)
    assert (one["distinct_codes"], one["constant_bits"], one["bit_correlation_mean"]) == (1, 16, None)
    with pytest.raises(PgearthError, match="no hash codes"):
        code_statistics(np.empty((1, 0), np.uint64), 16)

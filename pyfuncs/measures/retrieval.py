"""Measures of retrieval over whole archives, with ties resolved by expectation, and statistics of hash codes.

Hamming distances tie massively, and a measure that depends on how ties happened to be ordered measures that order. So
each measure here is its expected value over all orders of tied patches, in closed form (McSherry and Najork 2008,
"Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores", section 3; for hash
codes: He et al. 2018, "Hashing as Tie-Aware Learning to Rank"). The chance level of a measure is its expected value
over all orders of the whole archive: the same formulas with all patches tied.

The first k results of a query count; the query's own patch never does. With R relevant patches in the archive:

    precision       hits / k                        recall  hits / R        f1  their harmonic mean, 2 hits / (k + R)
    map             sum of the precisions at the hits / min(k, R), averaged over queries
    map_hits_found  the same / hits, 0 without a hit: the mAP@k of MiLaN's authors (their code, UCMD/eval.py)
    acg             mean number of labels shared with the query (average cumulative gain)
    ndcg            discounted cumulative gain / that of the ideal order; gains are 2 ** shared labels - 1, discounts
                    log2(1 + rank)
    wap_hits_found  mean of the ACG at each result that shares a label (weighted mean average precision)
    wap             the same with the denominator of map: min(k, patches that share a label)

ACG, nDCG and WAP are those of Zhao et al. 2015, "Deep Semantic Ranking Based Hashing for Multi-Label Image Retrieval",
section 4.2; they grade by shared labels, whatever is relevant. Lookups within a Hamming radius:

    radius_precision  relevant patches / patches within the radius, 0 where there are none (Norouzi et al. 2012)
    radius_empty      share of queries with none
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.search.code_file import Words, hamming

BLOCK = 2**21
"""Pairs of query and patch looked at at once."""
CLASSES = 64
"""Labels of a patch are the bits of one word."""
RADIUS = 2

Floats = NDArray[np.float64]
LabelSets = NDArray[np.uint64]
Relevance = Callable[[LabelSets, LabelSets, NDArray[np.uint8]], NDArray[np.bool_]]
"""Of sets of labels of queries (b, 1) and patches (n), and numbers of shared labels (b, n): what is relevant (b, n)."""


@dataclass(frozen=True)
class LabelledFeatures:
    """Patches by ascending id (n): labels as bits, whether any are known, and codes (n, W) or vectors (n, d).

    Where a patch is not encoded, its features are 0. bits: of a code; None for vectors.
    """

    patch_ids: NDArray[np.int64]
    labels: LabelSets
    labelled: NDArray[np.bool_]
    encoded: NDArray[np.bool_]
    features: NDArray
    bits: int | None


@dataclass(frozen=True)
class Metric:
    """A measure averaged over queries, and its chance level, if it has one."""

    value: float
    chance: float | None


@dataclass(frozen=True)
class Distances:
    """How far patches are from queries: `of(rows)` gives (b, n); what differs by at most `tolerance` is tied."""

    of: Callable[[slice], NDArray[np.floating]]
    tolerance: float


@dataclass(frozen=True)
class Weight:
    """Sum of a weight of patches (hits, shared labels, gains) over the tie group at each rank, and over all before."""

    tied: Floats
    before: Floats


@dataclass(frozen=True)
class Ranking:
    """The first ranks of b queries, all arrays (b, ranks): number of patches in the tie group there, and before it."""

    size: Floats
    before: Floats
    relevant: Weight
    sharing: Weight
    shared: Weight
    gain: Weight

    @property
    def ranks(self) -> NDArray[np.int64]:
        """Ranks from 1."""
        return np.arange(1, self.size.shape[1] + 1)

    def total(self, weight: Weight) -> Floats:
        """Return the expected sum of a weight over the ranks (b)."""
        total: Floats = (weight.tied / self.size).sum(axis=1)
        return total

    def cumulative(self, hits: Weight, weight: Weight) -> Floats:
        """Return, of each rank (b, ranks), the expectation of: mean of a weight up to this rank if it is a hit, else 0.

        A weight is 0 for what is no hit. The other places of the tie group before this one hold each other patch of
        the group equally often.
        """
        place = self.ranks - self.before
        others = weight.tied * (hits.tied - 1) / np.maximum(self.size - 1, 1)
        return (hits.tied * weight.before + weight.tied + (place - 1) * others) / self.size / self.ranks

    def mean_at_hits(self, hits: Weight, weight: Weight) -> Floats:
        """Return the expectation (b) of: sum of `cumulative` over the ranks / hits among them, 0 without a hit.

        Only the last tie group may reach beyond the last rank, so only there is the number of hits, x, random: it is
        distributed hypergeometrically. Given x, the hits lie anywhere in the group's places equally often.
        """
        ranks = self.size.shape[1]
        start = self.before[:, -1:]
        size, tied, found = self.size[:, -1:], hits.tied[:, -1:], hits.before[:, -1:]
        places = ranks - start
        whole = (self.cumulative(hits, weight) * (self.before < start)).sum(axis=1, keepdims=True)
        mean = weight.tied[:, -1:] / np.maximum(tied, 1)
        x = np.arange(min(ranks, int(tied.max(initial=0))) + 1)
        probability = np.exp(log_choose(tied, x) + log_choose(size - tied, places - x) - log_choose(size, places))
        harmonic = np.concatenate([[0], np.cumsum(1 / self.ranks)])
        inverse_ranks = harmonic[-1] - harmonic[start.astype(np.intp)]  # sum of 1 / rank over the places
        places_by_rank = places - (start + 1) * inverse_ranks  # sum of (place - 1) / rank
        first = (weight.before[:, -1:] + mean) * inverse_ranks
        others = mean * (x - 1) / np.maximum(places - 1, 1) * places_by_rank
        partial = x / places * (first + others)
        mean_at_hits: Floats = (probability * (whole + partial) / np.maximum(found + x, 1)).sum(axis=1)
        return mean_at_hits


def log_choose(n: Floats, k: Floats | NDArray[np.int64]) -> Floats:
    """Logarithm of the binomial coefficient; -inf where k is not in 0 ... n."""
    inside = (k >= 0) & (k <= n)
    k = np.where(inside, k, 0)
    return np.where(inside, gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1), -np.inf)


def relevance_rule(text: str) -> Relevance:
    """Return the rule named any (a shared label), same (the same labels) or jaccard:T (shared / all labels >= T).

    Raises PgearthError for any other text and for T outside of 0 < T <= 1.
    """
    if text == "any":
        return lambda _queries, _patches, shared: shared > 0
    if text == "same":
        return lambda queries, patches, _shared: queries == patches
    match = re.fullmatch(r"jaccard:([0-9]*\.?[0-9]+)", text)
    if not match or not 0 < float(match[1]) <= 1:
        raise PgearthError(
            f'there is no relevance "{text}"', hint="Pass any, same or jaccard:T with 0 < T <= 1, such as jaccard:0.5."
        )
    least = float(match[1])
    # Both sides are the nearest floating-point numbers, so 3 of 5 labels are just enough for 0.6.
    return lambda queries, patches, shared: shared / np.maximum(np.bitwise_count(queries | patches), 1) >= least


def hamming_distances(queries: Words, patches: Words) -> Distances:
    """Numbers of differing bits between codes (W, q) and (W, n)."""
    return Distances(lambda rows: hamming(patches[:, None, :], queries[:, rows, None]).astype(np.float32), 0)


def euclidean_distances(queries: NDArray[np.floating], patches: NDArray[np.floating]) -> Distances:
    """Squared Euclidean distances between vectors (q, d) and (n, d), by matrix products in double precision.

    Their errors are far below what single precision, in which vectors are stored, could tell apart; so what differs by
    less than the errors is tied.
    """
    centre = patches.mean(axis=0, dtype=np.float64)
    queries, patches = queries - centre, patches - centre
    query_squares = np.einsum("qd,qd->q", queries, queries)
    squares = np.einsum("nd,nd->n", patches, patches)
    doubled = -2 * queries

    def of(rows: slice) -> Floats:
        distances: Floats = doubled[rows] @ patches.T
        distances += query_squares[rows, None]
        distances += squares
        return distances

    return Distances(of, 1e-12 * (query_squares.max(initial=0) + squares.max(initial=0)))


def evaluate(
    patches: LabelledFeatures,
    queries: Sequence[int],
    archive: Sequence[int],
    k: int,
    relevance: Relevance,
    max_queries: int | None = None,
    seed: int = 0,
    between: Callable[[], object] = lambda: None,
) -> list[tuple[str, float, float | None]]:
    """Measure how well patches are retrieved; queries and archive are ids of `patches`.

    Returns names, values and chance levels: first the measures, then numbers of patches. Left out are patches that are
    not encoded or whose labels are not known, and queries that bear none. Of the others, `seed` draws max_queries.
    Raises PgearthError where nothing is left.
    """
    left_out = {}
    usable = {}
    for role, ids, has_labels in (("queries", queries, patches.labels > 0), ("archive", archive, patches.labelled)):
        rows = np.searchsorted(patches.patch_ids, np.array(ids, np.int64))
        encoded = rows[patches.encoded[rows]]
        usable[role] = encoded[has_labels[encoded]]
        left_out[f"{role}_not_encoded"] = len(rows) - len(encoded)
        left_out[f"{role}_without_labels"] = len(encoded) - len(usable[role])
        if not len(rows):
            raise PgearthError(f"no patch passes the filters of {role}", hint="Try them with eo.count_patches.")
        if not len(usable[role]):
            raise PgearthError(
                f"of the {len(rows):,} patches of {role}, {len(encoded):,} are encoded,"
                " of which none bears a label of the scheme",
                hint="Choose other filters or another scheme, or run pgearth encode.",
            )
    rows, others = usable["queries"], usable["archive"]
    if max_queries is not None and max_queries < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_queries, replace=False))
    itself = np.searchsorted(others, rows)
    itself[~np.isin(rows, others)] = -1
    if patches.bits is None:
        distances = euclidean_distances(patches.features[rows], patches.features[others])
    else:
        words = np.ascontiguousarray(patches.features.T)
        distances = hamming_distances(words[:, rows], words[:, others])
    metrics, answered = retrieval_metrics(
        distances,
        patches.labels[rows],
        patches.labels[others],
        itself,
        k,
        relevance,
        None if patches.bits is None else RADIUS,
        between,
    )
    counts = {"queries": answered, "archive": len(others), "queries_without_relevant": len(rows) - answered, **left_out}
    return [(name, metric.value, metric.chance) for name, metric in metrics.items()] + [
        (name, count, None) for name, count in counts.items()
    ]


def retrieval_metrics(
    distances: Distances,
    query_labels: LabelSets,
    labels: LabelSets,
    itself: NDArray[np.intp],
    k: int,
    relevant: Relevance,
    radius: int | None = None,
    between: Callable[[], object] = lambda: None,
) -> tuple[dict[str, Metric], int]:
    """Average the measures over the queries; return them, and how many queries have a relevant patch at all.

    The others are left out of the means. query_labels (q), labels (n): sets of labels as bits. itself (q): position of
    the query's own patch, or -1. radius: of lookups, for Hamming distances. `between` is called now and then, for
    interrupts. Raises PgearthError where no query has a relevant patch.
    """
    sums: dict[str, list[float]] = {}
    answered = 0
    step = max(1, BLOCK // len(labels))
    for start in range(0, len(query_labels), step):
        rows = slice(start, start + step)
        values, chances = _measure(
            distances.of(rows), distances.tolerance, query_labels[rows, None], labels, itself[rows], k, relevant, radius
        )
        for name, value in values.items():
            total = sums.setdefault(name, [0, 0])
            total[0] += value.sum()
            total[1] += chances[name].sum() if name in chances else np.nan
        answered += len(values["map"])
        between()
    if not answered:
        raise PgearthError(
            "no query has a relevant patch in the archive", hint="Choose other filters, or a weaker relevance."
        )
    metrics = {
        name: Metric(float(value) / answered, None if np.isnan(chance) else float(chance) / answered)
        for name, (value, chance) in sums.items()
    }
    return metrics, answered


def _measure(
    distances: NDArray[np.floating],
    tolerance: float,
    query_labels: LabelSets,
    labels: LabelSets,
    itself: NDArray[np.intp],
    k: int,
    relevance: Relevance,
    radius: int | None,
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Measures of each query of a block that has a relevant patch, and their chance levels."""
    shared = np.bitwise_count(query_labels & labels)
    relevant = relevance(query_labels, labels, shared)
    # The query's own patch comes last and counts for nothing.
    own = np.flatnonzero(itself >= 0), itself[itself >= 0]
    distances[own], shared[own], relevant[own] = np.inf, 0, False
    results = len(labels) - (itself >= 0).astype(np.int64)
    hits = relevant.sum(axis=1)
    kept = np.flatnonzero(hits)
    if len(kept) < len(hits):
        distances, shared, relevant = distances[kept], shared[kept], relevant[kept]
        results, hits = results[kept], hits[kept]
    sharing = np.bincount(
        (np.arange(len(kept))[:, None] * (CLASSES + 1) + shared).ravel(), minlength=len(kept) * (CLASSES + 1)
    ).reshape(len(kept), CLASSES + 1)
    ideal = _ideal_gain(sharing, k)
    count = min(k, len(labels))
    actual = _ranking(distances, tolerance, shared, relevant, count)
    chance = _random_ranking(results, hits, sharing, count)
    values = _measures(actual, k, hits, sharing, ideal)
    chances = _measures(chance, k, hits, sharing, ideal)
    if radius is not None:
        within = distances <= radius
        found = within.sum(axis=1)
        values["radius_precision"] = (within & relevant).sum(axis=1) / np.maximum(found, 1)
        values["radius_empty"] = (found == 0).astype(np.float64)
        chances["radius_precision"] = np.where(found, hits / results, 0)
    return values, chances


def _measures(
    ranking: Ranking, k: int, hits: NDArray[np.int64], sharing: NDArray[np.int64], ideal: Floats
) -> dict[str, Floats]:
    """Measures of each query (b). hits (b): relevant patches; sharing (b, labels + 1): patches by shared labels."""
    found = ranking.total(ranking.relevant)
    discounted = ranking.gain.tied / ranking.size / np.log2(1 + ranking.ranks)
    return {
        "map": ranking.cumulative(ranking.relevant, ranking.relevant).sum(axis=1) / np.minimum(k, hits),
        "map_hits_found": ranking.mean_at_hits(ranking.relevant, ranking.relevant),
        "precision": found / k,
        "recall": found / hits,
        "f1": 2 * found / (k + hits),
        "ndcg": discounted.sum(axis=1) / ideal,
        "acg": ranking.total(ranking.shared) / k,
        "wap": ranking.cumulative(ranking.sharing, ranking.shared).sum(axis=1)
        / np.minimum(k, sharing[:, 1:].sum(axis=1)),
        "wap_hits_found": ranking.mean_at_hits(ranking.sharing, ranking.shared),
    }


def _ranking(
    distances: NDArray[np.floating],
    tolerance: float,
    shared: NDArray[np.uint8],
    relevant: NDArray[np.bool_],
    count: int,
) -> Ranking:
    """Rank patches (b, n) by distance, the first `count` of them."""
    queries = np.arange(len(distances))
    order = np.argpartition(distances, count - 1, axis=1)[:, :count]
    nearest = np.take_along_axis(distances, order, 1)
    by_distance = np.argsort(nearest, axis=1)
    order, nearest = np.take_along_axis(order, by_distance, 1), np.take_along_axis(nearest, by_distance, 1)
    first = np.ones(nearest.shape, bool)
    first[:, 1:] = np.diff(nearest, axis=1) > tolerance
    group = np.cumsum(first, axis=1) - 1
    last = group[:, -1]
    before = np.maximum.accumulate(np.where(first, np.arange(count), 0), axis=1)
    # The last group may go on beyond the last rank.
    lowest = np.take_along_axis(nearest, before[:, -1:], 1)
    tied = np.nonzero((distances >= lowest) & (distances <= nearest[:, -1:] + tolerance))
    keys = (queries[:, None] * count + group).ravel()

    def summed(ranked: NDArray, of_last: NDArray) -> Weight:
        sums = np.bincount(keys, ranked.ravel(), len(queries) * count).astype(np.float64).reshape(len(queries), count)
        sums[queries, last] = np.bincount(tied[0], of_last, len(queries))
        return Weight(np.take_along_axis(sums, group, 1), np.take_along_axis(np.cumsum(sums, axis=1) - sums, group, 1))

    ranked, of_last = np.take_along_axis(shared, order, 1), shared[tied]
    gains = np.exp2(np.arange(CLASSES + 1)) - 1
    return Ranking(
        size=summed(np.ones(order.shape), np.ones(of_last.shape)).tied,
        before=before.astype(np.float64),
        relevant=summed(np.take_along_axis(relevant, order, 1), relevant[tied]),
        sharing=summed(ranked > 0, of_last > 0),
        shared=summed(ranked, of_last),
        gain=summed(gains[ranked], gains[of_last]),
    )


def _random_ranking(
    results: NDArray[np.int64], hits: NDArray[np.int64], sharing: NDArray[np.int64], count: int
) -> Ranking:
    """Rank all patches alike, `results` (b) of them; the query's own patch, where it is one of them, comes after."""
    inside = np.arange(1, count + 1) <= results[:, None]
    labels = np.arange(CLASSES + 1)

    def summed(weights: NDArray) -> Weight:
        return Weight(np.where(inside, weights[:, None], 0.0), np.where(inside, 0.0, weights[:, None]))

    return Ranking(
        size=np.where(inside, results[:, None], 1.0),
        before=np.where(inside, 0.0, results[:, None]),
        relevant=summed(hits),
        sharing=summed(sharing[:, 1:].sum(axis=1)),
        shared=summed(sharing @ labels),
        gain=summed(sharing @ (np.exp2(labels) - 1)),
    )


def _ideal_gain(sharing: NDArray[np.int64], k: int) -> Floats:
    """Discounted cumulative gain (b) of the k patches that share most labels. sharing (b, labels + 1): patches."""
    most_first = np.cumsum(sharing[:, ::-1], axis=1)
    discounts = np.concatenate([[0], np.cumsum(1 / np.log2(1 + np.arange(1, min(k, most_first.max(initial=0)) + 1)))])
    reached = discounts[np.minimum(most_first, len(discounts) - 1)]
    gains = np.exp2(np.arange(sharing.shape[1])[::-1]) - 1
    ideal: Floats = np.diff(reached, axis=1, prepend=0) @ gains
    return ideal


def code_statistics(words: Words, bits: int) -> dict[str, float | None]:
    """Describe the hash codes (W, n) of patches.

    patches; distinct_codes; constant_bits, the same in all patches; bit_balance_mean and _worst, where the balance of a
    bit is 2 min(p, 1 - p) for a share p of ones: 1 where it halves the patches, 0 where it is constant;
    bit_correlation_mean, the mean absolute correlation between two bits that are not constant (None without such);
    bucket_size_..., patches per distinct code. Raises PgearthError without a code.
    """
    if not words.shape[1]:
        raise PgearthError("there are no hash codes", hint="Run pgearth encode, or choose other filters.")
    codes, sizes = np.unique(words.T, axis=0, return_counts=True)
    ones = np.unpackbits(np.ascontiguousarray(codes).view(np.uint8), axis=1, count=bits).astype(np.float64)
    patches = int(sizes.sum())
    share = sizes @ ones / patches
    balance = 2 * np.minimum(share, 1 - share)
    varied = np.flatnonzero(balance)
    centred = ones[:, varied] - share[varied]
    spread = np.sqrt(share[varied] * (1 - share[varied]))
    correlation = (centred.T * sizes) @ centred / patches / np.outer(spread, spread)
    pairs = len(varied) * (len(varied) - 1)
    return {
        "patches": patches,
        "distinct_codes": len(codes),
        "constant_bits": bits - len(varied),
        "bit_balance_mean": float(balance.mean()),
        "bit_balance_worst": float(balance.min()),
        "bit_correlation_mean": float((np.abs(correlation).sum() - len(varied)) / pairs) if pairs else None,
        "bucket_size_mean": float(sizes.mean()),
        "bucket_size_p50": float(np.percentile(sizes, 50)),
        "bucket_size_p95": float(np.percentile(sizes, 95)),
        "bucket_size_max": int(sizes.max()),
    }

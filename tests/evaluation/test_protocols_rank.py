import itertools

import numpy as np
import pytest

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.methods.zero_shot import ProductScorer, Sides
from megapairs_hf.evaluation.rank import BLOCK_BYTES, NOT_FOUND, EmbeddingScorer, equal_rows, rank
from megapairs_hf.evaluation.results import query_values


def made(queries, ids):
    return Benchmark("toy", "val", queries, {name: Input(image=name) for name in ids}, image=lambda _: None)


class Given:
    """Scores as they are written down."""

    def __init__(self, scores):
        self.scores = np.asarray(scores, np.float32)

    def block(self, start, stop):
        return self.scores[start:stop].copy()


def plain_ranking(scores, ids, exclude=()):
    """The same by Python's own sort."""
    return [n for _, n in sorted((-s, n) for s, n in zip(scores, ids, strict=True) if n not in exclude)]


@pytest.mark.parametrize("levels", [3, 10_000])
def test_equals_a_plain_sort_with_deletions_ties_and_blocks(levels, monkeypatch):
    rng = np.random.default_rng(levels)
    ids = [f"g{i:03d}" for i in rng.permutation(60)]
    scores = rng.integers(0, levels, (37, 60)).astype(np.float32)
    queries = [
        Query(
            f"q{i}", Input("t", "g0"), targets=(t,), target=t, exclude=tuple(rng.choice(ids, 2)), subset=tuple(ids[:5])
        )
        for i, t in enumerate(rng.choice(ids, 37))
    ]
    queries = [q for q in queries if q.target not in q.exclude]
    scores = scores[: len(queries)]
    monkeypatch.setattr("megapairs_hf.evaluation.rank.BLOCK_BYTES", 60 * 4 * 5)
    ranked = rank(made(queries, ids), Given(scores), top=10)
    ties = 0
    for i, query in enumerate(queries):
        order = plain_ranking(scores[i], ids, query.exclude)
        assert ranked.tops[i] == order[:10]
        assert ranked.ranks[i] == order.index(query.target) + 1
        assert ranked.hits[i] == [name == query.target for name in order[:10]]
        assert ranked.scores[i] == [scores[i][ids.index(name)] for name in order[:10]]
        places = {name: scores[i][ids.index(name)] for name in order}
        ties += sum(s == places[query.target] for s in places.values()) > 1
        if query.target in query.subset:
            members = plain_ranking(scores[i][:5], ids[:5])
            kept = [m for m in members if m not in query.exclude]
            assert ranked.subset_ranks[i] == kept.index(query.target) + 1
        else:
            assert ranked.subset_ranks[i] == NOT_FOUND
    assert ranked.ties == ties
    assert BLOCK_BYTES > 60 * 4 * 5


def test_embeddings_are_ranked_as_their_products():
    rng = np.random.default_rng(0)
    q, g = rng.standard_normal((9, 8)), rng.standard_normal((30, 8))
    ids = [f"{i:02d}" for i in range(30)]
    queries = [Query(str(i), Input(image="00"), targets=("07",), target="07") for i in range(9)]
    ranked = rank(made(queries, ids), EmbeddingScorer(q, g), top=50)
    for i in range(9):
        assert ranked.tops[i] == plain_ranking(q[i] @ g.T, ids)


def test_a_target_among_candidates_loses_every_tie():
    query = Query("q", Input(image="a"), targets=("a",), target="a", candidates=("a", "b", "c", "d"))
    ranked = rank(made([query], "abcd"), Given([[0.5, 0.5, 0.1, 0.5]]))
    assert ranked.tops == [["b", "d", "a", "c"]]
    assert (ranked.ranks, ranked.ties) == ([3], 1)


def test_candidates_by_embeddings_and_by_blocks_agree():
    rng = np.random.default_rng(1)
    q, g = rng.standard_normal((20, 8)), rng.standard_normal((40, 8))
    ids = [f"{i:02d}" for i in range(40)]
    chosen = [tuple(rng.choice(ids, 6, replace=False)) for _ in range(20)]
    queries = [
        Query(str(i), Input(image="00"), targets=c[:1], target=c[0], candidates=c) for i, c in enumerate(chosen)
    ]
    scorer = EmbeddingScorer(q, g)
    fast, slow = (rank(made(queries, ids), s) for s in (scorer, Given(scorer.block(0, 20))))
    assert (fast.tops, fast.ranks) == (slow.tops, slow.ranks)
    assert fast.ranks == [plain_ranking(q[i] @ g[[int(n) for n in c]].T, c).index(c[0]) + 1 for i, c in
                          enumerate(chosen)]  # fmt: skip


def test_a_model_of_constant_output_is_refused_whichever_way_it_is_scored():
    constant = np.random.default_rng(0).standard_normal((1, 512))
    constant /= np.linalg.norm(constant)
    ids = [f"{i:02d}" for i in range(33)]
    for candidates in (None, tuple(ids[:15])):
        query = Query("q17", Input(image="00"), targets=("00",), target="00", candidates=candidates)
        scorer = EmbeddingScorer(constant, np.repeat(constant, 33, 0))
        for some in (scorer, Given(scorer.block(0, 1))):
            said = r"all .* scores of query 'q17' are equal" if candidates is None else "every query of toy are equal"
            with pytest.raises(EvaluationError, match=said):
                rank(made([query], ids), some)


@pytest.mark.parametrize(("bad", "own"), itertools.product([np.nan, np.inf, -np.inf], [False, True]))
def test_scores_that_are_not_finite_name_the_query(bad, own):
    queries = [
        Query(f"q{i}", Input(image="a"), targets=("a",), target="a", candidates=("a", "b", "c") if own else None)
        for i in range(2)
    ]
    with pytest.raises(EvaluationError, match="'q1' has scores that are NaN or infinite"):
        rank(made(queries, "abc"), Given([[1, 2, 3], [1, bad, 3]]))


def test_embeddings_of_two_dimensions_are_refused():
    with pytest.raises(EvaluationError, match="same model"):
        EmbeddingScorer(np.ones((2, 8)), np.ones((3, 16)))
    with pytest.raises(EvaluationError, match="encode the gallery again"):
        rank(made([Query("q", Input(image="a"))], "abc"), EmbeddingScorer(np.ones((1, 8)), np.ones((4, 8))))


def test_a_target_outside_the_gallery_is_behind_everything():
    queries = [Query("q", Input(image="a"), targets=("z",), target="z", subset=("a", "z"))]
    ranked = rank(made(queries, "abc"), Given([[1, 2, 3]]))
    assert (ranked.ranks, ranked.subset_ranks, ranked.hits) == ([NOT_FOUND], [NOT_FOUND], [[False] * 3])


def test_a_missing_target_is_found_at_no_cut_however_few_candidates_are_left():
    query = Query("q", Input(image="a"), targets=("z",), target="z", candidates=("z", "b", "c"))
    ranked = rank(made([query], "abc"), Given([[3, 2, 1]]))
    assert ranked.ranks == [NOT_FOUND]
    assert query_values("recall@3", made([query], "abc"), ranked).tolist() == [0]


def test_two_candidates_may_have_equal_scores_by_chance():
    queries = [Query(f"q{i}", Input(image="a"), targets=("a",), target="a", candidates=("a", "b")) for i in range(3)]
    ranked = rank(made(queries, "abc"), Given([[0.7, 0.2, 0], [0.7, 0.7, 0], [0.1, 0.9, 0]]))
    # the target loses the tie
    assert (ranked.ranks, ranked.ties) == ([1, 2, 2], 1)
    with pytest.raises(EvaluationError, match="every query"):
        rank(made(queries, "abc"), Given([[0.7, 0.7, 0], [0.2, 0.2, 0.1], [0.1, 0.1, 0.3]]))


def test_a_split_without_answers_has_tops_and_no_ranks():
    ranked = rank(made([Query("q", Input(image="a"))], "abc"), Given([[1, 2, 3]]), top=2)
    assert (ranked.tops, ranked.ranks, ranked.ties) == ([["c", "b"]], [0], 0)


@pytest.mark.parametrize("size", [(7, 33, 5), (64, 1001, 17), (1, 257, 512), (130, 97, 3)])
@pytest.mark.parametrize("kind", [EmbeddingScorer, lambda q, g: ProductScorer(Sides(q, q[::-1], g))])
def test_equal_images_have_equal_scores_wherever_they_stand(kind, size):
    count, gallery, dimension = size
    rng = np.random.default_rng(dimension)
    g, q = rng.standard_normal((gallery, dimension)), rng.standard_normal((count, dimension))
    originals = rng.integers(0, gallery // 2, gallery // 2)
    g[gallery - len(originals) :] = g[originals]
    scores = kind(q.astype(np.float32), g.astype(np.float32)).block(0, count)
    np.testing.assert_array_equal(scores[:, gallery - len(originals) :], scores[:, originals])


def test_copies_in_the_gallery_stand_by_their_ids_and_are_counted():
    rng = np.random.default_rng(0)
    g = rng.standard_normal((301, 19)).astype(np.float32)
    g[[5, 150, 300]] = g[77]
    ids = [f"{i:03d}" for i in rng.permutation(301)]
    copies = sorted(ids[i] for i in (5, 77, 150, 300))
    queries = [Query("q", Input(image="x"), targets=(copies[2],), target=copies[2])]
    ranked = rank(made(queries, ids), EmbeddingScorer(g[77:78], g), top=6)
    assert ranked.tops[0][:4] == copies
    assert (ranked.ranks, ranked.ties) == ([3], 1)
    assert len(set(ranked.scores[0][:4])) == 1
    copy, original = equal_rows(g)
    assert (copy.tolist(), original.tolist()) == ([77, 150, 300], [5, 5, 5])


def test_rows_that_differ_in_one_bit_are_no_copies():
    g = np.ones((4, 40), np.float32)
    g[1, 1], g[3, 39] = np.nextafter(np.float32(1), 2), 0
    assert [rows.tolist() for rows in equal_rows(g)] == [[2], [0]]

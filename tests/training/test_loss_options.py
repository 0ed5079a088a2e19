"""The options of the loss: against autograd through the formula written out, another library's loss, two processes."""

import dataclasses
import itertools
import json
import os
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import distributed
from torch.nn.functional import normalize

from megapairs_hf.annotation import DescribeConfig, InstructConfig, VerifyConfig, describe_pairs, instruct_pairs
from megapairs_hf.annotation.stage import verify_pairs
from megapairs_hf.core.errors import ConfigError, TrainingError
from megapairs_hf.core.inputs import Input
from megapairs_hf.dataset import BuildConfig, build_triplets
from megapairs_hf.training.cached_loss import indices_of
from megapairs_hf.training.data.batch import make_batch
from megapairs_hf.training.data.dataset import Example
from megapairs_hf.training.loss import BatchIndices, alignment_loss, info_nce, loss_and_gradient
from megapairs_hf.training.loss_config import LossConfig
from tests.small import megapairs, small_pairs, torchrun
from tests.small import run as run_command
from tests.training.test_gradients import apart, learnt, made_task

B, WIDTH, D, TAU = 6, 4, 8, 0.3
COMBINATIONS = [
    {},
    {"margin_mask": 0.1},
    {"query_query": True},
    {"document_document": True},
    {"soft_labels": 1.0},
    {"soft_labels": 0.3},
    {"query_query": True, "document_document": True, "margin_mask": 0.05},
    {"query_query": True, "document_document": True, "margin_mask": 0.0, "soft_labels": 0.7},
]


def sample(seed=0, dtype=torch.float32):
    """Outputs of distinct inputs, each row's own; some candidates masked, some scores unknown."""
    rng = torch.Generator().manual_seed(seed)
    outputs = torch.randn(B * (2 + WIDTH), D, generator=rng).to(dtype)
    queries = torch.arange(2 * B).view(B, 2)
    nothing = len(outputs)
    candidates = torch.stack([torch.arange(2 * B, nothing), torch.full((B * WIDTH,), nothing)], 1)
    mask = torch.rand(B, B * WIDTH, generator=rng) < 0.2
    mask[torch.arange(B), torch.arange(B) * WIDTH] = False
    scores = torch.rand(B, WIDTH, generator=rng).to(dtype)
    scores[0, 1], scores[1], scores[2, 1:] = torch.nan, torch.nan, torch.nan
    return outputs, queries, candidates, mask, scores


def written_out(embeddings, mask, scores, options):
    """The mean loss over the rows of the whole batch, candidate by candidate."""
    queries, candidates = embeddings
    total = 0.0
    for i in range(B):
        positive = i * WIDTH
        best = (queries[i] @ candidates[positive]).item()
        bar = float("inf") if options.margin_mask is None else best + options.margin_mask
        negatives = []
        for k in range(B * WIDTH):
            near = k // WIDTH == i
            score = queries[i] @ candidates[k]
            if k != positive and not mask[i, k] and (near or score.item() <= bar):
                negatives.append(score)
            if options.document_document and not near and not mask[i, k]:
                score = candidates[positive] @ candidates[k]
                negatives += [score] if score.item() <= bar else []
        for j in range(B) if options.query_query else ():
            if j != i and not mask[i, j * WIDTH]:
                score = queries[i] @ queries[j]
                negatives += [score] if score.item() <= bar else []
        own = queries[i] @ candidates[positive]
        loss = torch.logsumexp(torch.stack([own, *negatives]) / TAU, 0) - own / TAU
        known = [k for k in range(WIDTH) if not scores[i, k].isnan()]
        if options.soft_labels and len(known) > 1:
            ours = torch.softmax(torch.stack([queries[i] @ candidates[positive + k] for k in known]) / TAU, 0)
            theirs = torch.softmax(scores[i, known] / TAU, 0)
            both = (ours * (ours / theirs).log()).sum() + (theirs * (theirs / ours).log()).sum()
            loss = (1 - options.soft_labels) * loss + options.soft_labels * both / 2
        total = total + loss
    return total / B


def embedded(outputs, queries, candidates, size):
    padded = torch.cat([outputs, outputs.new_zeros(1, D)])
    return [normalize(padded[rows].sum(1)[:, :size], dim=-1) for rows in (queries, candidates)]


@pytest.mark.parametrize("sizes", [(), (D, 3)])
@pytest.mark.parametrize("settings", COMBINATIONS)
def test_the_loss_and_its_gradient_are_those_of_the_formula(settings, sizes):
    options = LossConfig(**settings)
    outputs, queries, candidates, mask, scores = sample()
    pieces = BatchIndices(queries, candidates, 0, WIDTH, mask, scores)
    loss, gradient = loss_and_gradient(outputs, pieces, TAU, sizes, options)
    leaf = outputs.double().requires_grad_()
    dimensions = sizes or (D,)
    parts = [written_out(embedded(leaf, queries, candidates, size), mask, scores, options) for size in dimensions]
    expected = sum(parts) / len(parts)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient.double(), leaf.grad, atol=1e-5)


def test_every_option_changes_the_loss():
    outputs, queries, candidates, mask, scores = sample()
    pieces = BatchIndices(queries, candidates, 0, WIDTH, mask, scores)
    losses = [loss_and_gradient(outputs, pieces, TAU, (), LossConfig(**each))[0].item() for each in COMBINATIONS]
    assert all(abs(one - other) > 1e-4 for one, other in itertools.combinations(losses, 2))


@pytest.mark.parametrize("directions", [("query_to_query",), ("doc_to_doc",), ("query_to_query", "doc_to_doc")])
def test_the_further_terms_are_those_of_sentence_transformers(directions):
    outputs, queries, candidates, mask, _ = sample(1)
    options = LossConfig(query_query="query_to_query" in directions, document_document="doc_to_doc" in directions)
    pieces = BatchIndices(queries, candidates, 0, WIDTH, torch.zeros_like(mask))
    loss, gradient = loss_and_gradient(outputs, pieces, TAU, (), options)
    leaf = outputs.clone().requires_grad_()
    asked, found = embedded(leaf, queries, candidates, D)
    other = MultipleNegativesRankingLoss(None, scale=1 / TAU, directions=("query_to_doc", *directions))
    expected = other.compute_loss_from_embeddings([asked, *found.view(B, WIDTH, D).unbind(1)], None)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient, leaf.grad, atol=1e-5)


def test_the_alignment_is_the_mean_of_both_divergences_of_torch():
    """As in the authors' code: `kl_div` of the logarithms in both directions, the mean over the rows."""
    torch.manual_seed(0)
    scores, labels = torch.randn(5, 4).tanh(), torch.rand(5, 4)
    ours, theirs = torch.softmax(scores / TAU, 1), torch.softmax(labels / TAU, 1)
    both = [
        torch.nn.functional.kl_div(one.log(), other, reduction="batchmean")
        for one, other in ((ours, theirs), (theirs, ours))
    ]
    losses, known = alignment_loss(scores, labels, TAU)
    assert known.all() and losses.mean().item() == pytest.approx(float(sum(both)) / 2, rel=1e-5)
    # similarities that are the labels, to a constant, cost nothing
    assert alignment_loss(labels - 0.3, labels, TAU)[0].abs().max() < 1e-6


def authors_loss(scores, labels, temperature):
    """UniME-V2's, of the formula in its `SoftLabelSoftKLContrastiveLoss`: 1e-8 on the logarithm of the second."""
    ours, theirs = torch.softmax(scores / temperature, 1), torch.softmax(labels / temperature, 1)
    forth = torch.nn.functional.kl_div((ours + 1e-8).log(), theirs, reduction="batchmean")
    back = torch.nn.functional.kl_div((theirs + 1e-8).log(), ours, reduction="batchmean")
    return (forth + back) / 2


@pytest.mark.parametrize("temperature", [0.02, 0.3])
def test_the_alignment_is_the_authors_at_low_temperatures_too(temperature):
    """Labels of 0 and 1 at 0.02 are e^50 apart, where a plain logarithm would cost 50."""
    scores = torch.tensor([[0.3, 0.31, 0.29], [0.9, -0.9, 0.0]], requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, 0.25], [0.0, 1.0, 1.0]])
    losses, _ = alignment_loss(scores, labels, temperature)
    (own,) = torch.autograd.grad(losses.mean(), scores)
    expected = authors_loss(scores, labels, temperature)
    (gradient,) = torch.autograd.grad(expected, scores)
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(own, gradient, rtol=1e-4, atol=1e-5)
    assert losses.max() <= -np.log(1e-8)


def test_labels_of_one_and_of_none_align_nothing_and_have_a_gradient():
    scores = torch.rand(3, 4, requires_grad=True)
    labels = torch.full((3, 4), torch.nan)
    labels[0, 0], labels[2, :2] = 1.0, torch.tensor([1.0, 0.0])
    losses, known = alignment_loss(scores, labels, 0.02)
    losses.sum().backward()
    assert known.tolist() == [False, False, True]
    assert scores.grad.isfinite().all() and not scores.grad[:2].any() and scores.grad[2, :2].all()


def test_a_margin_spares_the_own_negatives_and_drops_others_beyond_it():
    """One query; its own negative and another row's candidate both lie on it, the positive half a turn away."""
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    outputs = torch.stack([east, north, east, north, north, east])
    queries = torch.tensor([[0, 6], [1, 6]])
    candidates = torch.tensor([[3, 6], [2, 6], [4, 6], [5, 6]])
    pieces = BatchIndices(queries, candidates, 0, 2, torch.zeros(2, 4, dtype=torch.bool))
    plain, _ = loss_and_gradient(outputs, pieces, 1.0, ())
    masked, _ = loss_and_gradient(outputs, pieces, 1.0, (), LossConfig(margin_mask=0.5))
    e = np.e
    # row 0: positive 0, own negative 1, others 0 and 1 (dropped); row 1: positive 1, own negative 0, others 1 and 0
    assert plain.item() == pytest.approx((np.log(2 + 2 * e) + np.log(2 + 2 * e) - 1) / 2)
    assert masked.item() == pytest.approx((np.log(2 + e) + np.log(2 + 2 * e) - 1) / 2)


def scored(name, scores):
    names = [f"{name}t", *(f"{name}{k}" for k in range(len(scores) - 1))]
    return Example(name, Input("x", name), tuple(Input(None, n) for n in names), (), scores=tuple(scores))


def test_negatives_that_score_like_the_target_are_masked():
    nan = float("nan")
    examples = [scored("a", (0.9, 0.89, 0.5, 0.95)), scored("b", (nan, 0.9, 0.9)), scored("c", (0.5, nan, 0.45))]
    whole = make_batch(0, 0, examples * 2, 0, 1, joint=False, clusters=list)
    masked = whole.as_good(0.05)
    own = np.array([masked[i, i * 4 : i * 4 + 4] for i in range(6)])
    assert own[:3].astype(int).tolist() == [[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]
    assert masked.sum() == own.sum() and (own[:3] == own[3:]).all()
    second = make_batch(0, 0, examples * 2, 1, 2, joint=False, clusters=list)
    assert np.array_equal(second.as_good(0.05), masked[3:])


def family():
    """Rows with all that masks: siblings of one query image, a query twice, shared targets, and few negatives."""

    def row(query, text, names, scores=()):
        asked = Input(text, query)
        answers = (Input(None, "answer"),) if query == "q3" else ()
        same = (asked, Input(f"{text}, once more", query))
        return Example(query, asked, tuple(Input(None, name) for name in names), same, answers, scores=scores)

    nan = float("nan")
    return [
        row("q0", "red", ("t0", "q0", "n0"), (0.9, nan, 0.89)),
        row("q0", "blue", ("t1", "q0", "t0"), (0.5, 0.1, 0.2)),
        # the same query with another target, and a text that stands among those of the first row
        row("q0", "red", ("t2", "q0"), (0.5, 0.7)),
        row("q0", "red, once more", ("t3", "n0", "t1")),
        # its target is the first row's
        row("q1", "red", ("t0", "q1", "t2"), (1.0, 0.0, 1.0)),
        row("q2", "moved", ("near t0", "q2", "n1"), (0.3, nan, nan)),
        row("q3", "open", ("t5", "q3", "answer")),
        row("q4", "", ("answer", "q4", "t5"), (nan, 0.5, 0.25)),
    ]


def clusters(names):
    return [name.removeprefix("near ") for name in names]


FAMILY = {**COMBINATIONS[-1], "margin_mask": 0.02}
SCORE_MARGIN = 0.02


def embedding_of(item, leaf):
    """Of a query or an image: the sum of its image's row and its text's, by their names."""
    vocabulary = sorted({part for e in family() for one in (e.query, *e.candidates) for part in (one.image, one.text)
                         if part is not None})  # fmt: skip
    return sum(leaf[vocabulary.index(part)] for part in (item.image, item.text) if part is not None)


def family_leaf(dtype):
    return torch.randn(32, D, generator=torch.Generator().manual_seed(3)).to(dtype).requires_grad_()


def part_of_family(rank, world):
    """The loss of one process's rows, as `train` computes it, and its gradient for the embeddings of all parts."""
    leaf = family_leaf(torch.float32)
    batch = make_batch(0, 0, family(), rank, world, joint=False, clusters=clusters)
    outputs = torch.stack([embedding_of(item, leaf) for item in batch.inputs])
    options = LossConfig(**FAMILY, score_margin=SCORE_MARGIN)
    loss, gradient = loss_and_gradient(outputs, indices_of(batch, "cpu", True, options), TAU, (), options)
    outputs.backward(gradient)
    return loss, leaf.grad


def divergence(scores, labels):
    ours = torch.log_softmax(torch.stack(scores) / TAU, 0)
    theirs = torch.log_softmax(torch.tensor(labels, dtype=torch.float64) / TAU, 0)
    return ((ours.exp() - theirs.exp()) * (ours - theirs)).sum() / 2


def terms_of(row, other, unit, false_negative):
    """What one row adds to another's denominator: (score, whether the margin may take it out)."""
    query, positive, own = unit(row.query), unit(row.candidates[0]), other is row
    for k, item in enumerate(other.candidates):
        if (own and k == 0) or false_negative(row, item):
            continue
        if not (own and row.scores and row.scores[k] - row.scores[0] >= -SCORE_MARGIN):
            yield query @ unit(item), not own
        if not own:
            yield positive @ unit(item), True
    if not own and not false_negative(row, other.candidates[0]):
        yield query @ unit(other.query), True


def written_by_name():
    """The same loss with everything decided by names, row by row."""
    leaf, examples, options = family_leaf(torch.float64), family(), LossConfig(**FAMILY)

    def unit(item):
        return normalize(embedding_of(item, leaf), dim=0)

    def false_negative(row, item):
        targets = [other.candidates[0] for other in examples if other is not row and row.query in other.same]
        near = clusters([item.image]) == clusters([row.candidates[0].image])
        return near or item in targets or item in row.answers

    total = 0.0
    for row in examples:
        query = unit(row.query)
        own = query @ unit(row.candidates[0])
        bar = own.item() + options.margin_mask
        terms = [pair for other in examples for pair in terms_of(row, other, unit, false_negative)]
        left = [own, *(score for score, droppable in terms if not droppable or score.item() <= bar)]
        assert 1 < len(left) <= len(terms)
        loss = torch.logsumexp(torch.stack(left) / TAU, 0) - own / TAU
        judged = {k: score for k, score in enumerate(row.scores) if score == score}
        if len(judged) > 1:
            aligned = divergence([query @ unit(row.candidates[k]) for k in judged], list(judged.values()))
            loss = (1 - options.soft_labels) * loss + options.soft_labels * aligned
        total = total + loss / len(examples)
    total.backward()
    return total, leaf.grad


def test_siblings_and_false_negatives_count_as_their_names_say():
    loss, gradient = part_of_family(0, 1)
    expected, whole = written_by_name()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient.double(), whole, atol=1e-5)


def test_without_options_the_loss_is_the_papers_to_the_bit():
    outputs, queries, candidates, mask, scores = sample()
    pieces = BatchIndices(queries, candidates, 0, WIDTH, mask, scores)
    loss, gradient = loss_and_gradient(outputs, pieces, TAU, ())
    leaf = outputs.clone().requires_grad_()
    asked, shown = embedded(leaf, queries, candidates, D)
    expected = info_nce(asked, shown, torch.arange(B) * WIDTH, mask, TAU)
    expected.backward()
    assert torch.equal(loss, expected.detach()) and torch.equal(gradient, leaf.grad)


def half_of_each(path):
    """What one of two processes does: its part of every combination's loss, and the sums of both to a file."""
    distributed.init_process_group("gloo")
    half = B // 2
    first = distributed.get_rank() * half
    outputs, queries, candidates, mask, scores = sample()
    own, wide = slice(first, first + half), slice(first * WIDTH, (first + half) * WIDTH)
    results = {}
    for i, settings in enumerate(COMBINATIONS):
        pieces = BatchIndices(queries[own], candidates[wide], first * WIDTH, WIDTH, mask[own], scores[own])
        both = loss_and_gradient(outputs, pieces, TAU, (D, 3), LossConfig(**settings))
        for name, value in zip(("loss", "gradient"), both, strict=True):
            distributed.all_reduce(value)
            results[f"{name} {i}"] = value / 2
    for name, value in zip(("loss", "gradient"), part_of_family(distributed.get_rank(), 2), strict=True):
        distributed.all_reduce(value)
        results[f"family {name}"] = value / 2
    if not first:
        save_file(results, path)
    distributed.barrier()
    # gloo's threads may wait for one another for ever when the group is taken apart
    os._exit(0)


def test_two_processes_have_the_loss_and_gradient_of_one(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    port = ["--master_addr", "127.0.0.1", "--rdzv_endpoint", "127.0.0.1:0"]
    words = [*port, "-m", "tests.training.test_loss_options", str(tmp_path / "results.safetensors")]
    done = run_command([*launcher, *words], {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    results = load_file(tmp_path / "results.safetensors")
    outputs, queries, candidates, mask, scores = sample()
    pieces = BatchIndices(queries, candidates, 0, WIDTH, mask, scores)
    for i, settings in enumerate(COMBINATIONS):
        expected, whole = loss_and_gradient(outputs, pieces, TAU, (D, 3), LossConfig(**settings))
        assert results[f"loss {i}"].item() == pytest.approx(expected.item(), rel=1e-5), settings
        assert torch.allclose(results[f"gradient {i}"], whole, atol=1e-6), settings
    expected, whole = written_by_name()
    assert results["family loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(results["family gradient"].double(), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"), [("margin_mask", -0.1), ("margin_mask", 2), ("score_margin", -1), ("soft_labels", 1.5)]
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        LossConfig(**{name: value})


def test_all_are_off_by_default():
    assert all(not value for value in dataclasses.asdict(LossConfig()).values())


@pytest.fixture
def scored_rows(rows):
    """The triplets as `build` makes them of scores per candidate: none for the query image, ties among the others."""

    def scores(row):
        rng = np.random.default_rng(len(row["hns"]))
        each = [0.75, np.nan, *rng.choice([0.0, 0.25, 0.5, 0.75, 1.0], len(row["hns"]) - 1)]
        return {"candidate_scores": [each for _ in row["q_text"]]}

    return rows.map(scores)


@pytest.mark.parametrize(
    "settings", [*COMBINATIONS[1:], {"score_margin": 0.01}, {**COMBINATIONS[-1], "score_margin": 0}]
)
def test_cached_gradients_are_the_whole_batchs_with_every_option(model, scored_rows, settings):
    # embeddings of random weights are alike, so only the smallest margin drops any
    settings = settings | ({"margin_mask": 0.0} if "margin_mask" in settings else {})
    loss, gradients = learnt(made_task(model, scored_rows, temperature=0.1, **settings))
    again, cached = learnt(made_task(model, scored_rows, temperature=0.1, micro_batch=5, **settings))
    plain, _ = learnt(made_task(model, scored_rows, temperature=0.1))
    assert again == pytest.approx(loss, rel=1e-5) and apart(gradients, cached) < 1e-5
    assert abs(loss - plain) > 1e-5


def test_a_row_whose_image_is_lost_teaches_nothing_with_every_option(model, scored_rows):
    """A query of nothing, as `Batch.without` makes it: no gradient from the row, and none of its terms in others."""
    outputs, queries, candidates, mask, scores = sample()
    lost, nothing = 2, len(outputs)
    queries, mask, scores = queries.clone(), mask.clone(), scores.clone()
    queries[lost] = nothing
    gone = torch.arange(B * WIDTH) // WIDTH == lost
    mask[:, gone] = True
    mask[lost, lost * WIDTH], scores[lost] = False, torch.nan
    options = LossConfig(query_query=True, document_document=True, margin_mask=0.3, soft_labels=0.5)
    pieces = BatchIndices(queries, candidates, 0, WIDTH, mask, scores)
    _, gradient = loss_and_gradient(outputs, pieces, TAU, (), options)
    kept = [i for i in range(B) if i != lost]
    wide = [k for k in range(B * WIDTH) if not gone[k]]
    fewer = BatchIndices(
        queries[kept],
        candidates[wide],
        0,
        WIDTH,
        mask[kept][:, wide],
        scores[kept],
    )
    _, expected = loss_and_gradient(outputs, fewer, TAU, (), options)
    assert torch.allclose(gradient, expected * len(kept) / B, atol=1e-6)


@pytest.mark.parametrize("settings", [{"score_margin": 0.01}, {"soft_labels": 0.5}])
def test_triplets_without_scores_are_refused(model, rows, settings):
    with pytest.raises(TrainingError, match="run `megapairs verify --judgment pointwise`"):
        made_task(model, rows, **settings)


@pytest.fixture(scope="module")
def scored_triplets(corpus, models, tmp_path_factory):
    """A data set from pairs to triplets, with the scores of a CLIP as judge."""
    folder = tmp_path_factory.mktemp("scored")
    pairs = small_pairs(corpus, models, folder)
    rules = {"engine": "rule_based"}
    described = describe_pairs(pairs, corpus, config=DescribeConfig(**rules), out=folder / "descriptions")
    texts = instruct_pairs(described, corpus, config=InstructConfig(**rules), out=folder / "instructions")
    judge = VerifyConfig(engine="clip", model=f"{models}/clip")
    verified = verify_pairs(texts, pairs, corpus, config=judge, out=folder / "verified")
    return build_triplets(verified, pairs, corpus, config=BuildConfig(validation=0.2), out=folder / "triplets")


def logged(folder):
    lines = map(json.loads, (folder / "training_log.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


@pytest.mark.long
def test_the_command_trains_with_every_option_and_two_processes_as_one(scored_triplets, models, tmp_path):
    words = ["--model", "./clip", "--steps", "2", "--batch-size", "8", "--lr", "1e-3", "--negatives", "3"]
    words += ["--temperature", "0.1", "--log-every", "1", "--tracker", "none", "--triplets", scored_triplets.path]
    options = ["--margin-mask", "0", "--query-query", "--document-document"]
    options += ["--score-margin", "0.01", "--soft-labels", "0.5", "--micro-batch", "5"]
    folders = {name: tmp_path / name / "model" for name in ("plain", "one", "two")}
    for name, more in (("plain", []), ("one", options)):
        done = megapairs("train", *words, *more, "--work", models, "--out", folders[name])
        assert done.returncode == 0, done.stderr
    done = torchrun(2, "train", *words, *options, "--work", models, "--out", folders["two"])
    assert done.returncode == 0, done.stderr
    plain, one, two = (logged(folder) for folder in folders.values())
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    assert abs(plain[0]["loss"] - one[0]["loss"]) > 1e-3
    # most negatives score like the target, by embeddings of random weights
    assert all(line["masked_score"] > 0 for line in one) and "masked_score" not in plain[0]
    assert [line["masked_score"] for line in one] == [line["masked_score"] for line in two]


def test_the_command_says_what_the_options_need(triplets, models, tmp_path):
    words = ["--model", "./clip", "--steps", "1", "--batch-size", "8", "--triplets", triplets.path, "--work", models]
    done = megapairs("train", *words, "--soft-labels", "0.5", "--out", tmp_path / "m")
    assert done.returncode == 1 and "run `megapairs verify --judgment pointwise`" in done.stderr
    assert done.stderr.strip().count("Traceback") == 0
    done = megapairs("train", *words, "--max-tokens-per-pass", "100", "--out", tmp_path / "n")
    assert done.returncode == 1 and "`max_tokens_per_pass` is for language models" in done.stderr


if __name__ == "__main__":
    half_of_each(sys.argv[1])

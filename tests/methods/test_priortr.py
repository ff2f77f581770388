"""PriorTR, and its cut of the caches of the first layers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from harness import RAGGED, TOLERANCE, built, inputs_of, largest, oracle, policies
from harness_staged import HYBRID, LLAVA, run_on
from torch import Tensor
from versions import cache_of

import vlmprune
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.view import ImageView, ModelInfo
from vlmprune.methods.decoder.priortr import PriorTR
from vlmprune.methods.relevance import excess

QWEN = ModelInfo("qwen2_5_vl", 32, 28, has_cls=False)
INTERN = ModelInfo("internvl", 24, 28, has_cls=True)
NEXT = ModelInfo("llava_next", 24, 32, has_cls=True)


def asked(rows: Tensor | list[list[float]], keep: int = 2, info: ModelInfo = LLAVA) -> ImageView:
    text = torch.as_tensor(rows)
    return ImageView(keep, torch.arange(text.shape[-1]), None, info, {"text": text})


def by_loops(task: list[float], prior: list[float]) -> list[float]:
    p, q = [[x / sum(values) for x in values] for values in (task, prior)]
    return [x * math.log(x / y) for x, y in zip(p, q, strict=True)]


NULL, FIRST, SECOND, LAST = [0.1, 0.1, 0.1, 0.1], [0.4, 0.1, 0.2, 0.1], [0.1, 0.4, 0.2, 0.1], [0.1, 0.1, 0.1, 0.5]
TEXT = [NULL, FIRST, SECOND, LAST]


@pytest.mark.parametrize(
    ("info", "null", "rows"),
    [(LLAVA, 0, [0, 1, 2, 3]), (QWEN, 0, [0, 1, 2]), (INTERN, 1, [0, 1, 2, 3]), (NEXT, 0, [3])],
    ids=lambda value: getattr(value, "family", None),
)
def test_rows_are_those_of_the_authors(info: ModelInfo, null: int, rows: list[int]) -> None:
    task = [sum(TEXT[row][j] for row in rows) for j in range(4)]
    assert PriorTR().score(asked(TEXT, info=info)).tolist() == pytest.approx(by_loops(task, TEXT[null]), abs=1e-5)
    last = PriorTR(query="last").score(asked(TEXT, info=info))
    assert last.tolist() == pytest.approx(by_loops(LAST, TEXT[null]), abs=1e-5)


def test_what_every_question_looks_at_is_no_evidence() -> None:
    always = [[0.6, 0.1, 0.1, 0.1], [0.6, 0.1, 0.1, 0.3]]  # the first token draws attention whatever is asked
    assert PriorTR().select(asked(always, 1)).tolist() == [3]


def test_largest_of_heads_is_taken_after_the_mean_over_rows() -> None:
    heads = torch.tensor([[[1.0, 1, 1], [4, 0, 1]], [[1.0, 2, 1], [0, 2, 1]]])
    score = PriorTR(heads="max").score(asked(heads))
    assert score.tolist() == pytest.approx(by_loops([2.5, 2, 1], [1, 2, 1]), abs=1e-5)


def test_beyond_positive_scores_the_authors_keep_the_least_attended() -> None:
    rows = [[0.25, 0.25, 0.25, 0.25], [0.7, 0.17, 0.12, 0.01]]
    view = asked(rows, 2)
    assert PriorTR(query="last").select(view).tolist() == [0, 3]
    assert PriorTR(query="last", fill="attention").select(view).tolist() == [0, 1]
    assert PriorTR(query="last", fill="attention").select(replace(view, keep=3)).tolist() == [0, 1, 2]


def test_a_threshold_decides_how_many() -> None:
    method = PriorTR(threshold=0.0)
    assert not method.budgeted and not method.exact
    assert method.select(asked(TEXT)).tolist() == [0, 1, 3]
    assert PriorTR(threshold=9.0).select(asked(TEXT)).tolist() == [3]
    with pytest.raises(vlmprune.UserError, match="takes no budget"):
        vlmprune.recipe("priortr(threshold=0.0):0.5")
    with pytest.raises(vlmprune.UserError, match="threshold='all' must be a number"):
        PriorTR(threshold="all")  # type: ignore[arg-type]


def test_without_a_null_row_the_last_row_counts() -> None:
    assert PriorTR().select(asked([LAST], 1)).tolist() == [3]  # one text token: question and null row in one
    assert PriorTR().select(asked([NULL, LAST], 1, QWEN)).tolist() == [3]
    assert PriorTR().select(asked([SECOND], 1, INTERN)).tolist() == [1]
    assert PriorTR().select(asked(torch.zeros(0, 4), 2)).tolist() == [0, 1]  # no text after the image


def test_ties_zeros_and_one_token() -> None:
    assert PriorTR().select(asked([[0.2] * 5] * 3, 2)).tolist() == [0, 1]
    assert PriorTR().select(asked([[0.0] * 5] * 3, 2)).tolist() == [0, 1]
    assert PriorTR().select(asked([NULL, LAST], 1)).tolist() == [3]
    tiny = excess(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]))
    assert bool(tiny.isfinite().all()) and tiny[0] > 10


def test_it_acts_before_layer_three_or_behind_the_nearest_with_attention() -> None:
    assert [PriorTR().decoder_layer(info) for info in (LLAVA, QWEN, INTERN, HYBRID)] == [3, 3, 2, 4]
    assert vlmprune.recipe("priortr@5:0.2").stages[0].method == PriorTR(layers=(5,))
    for wrong, says in (((40,), "before decoder layer 40"), ((3, 5), "no schedule for as many as 2 layers")):
        with pytest.raises(vlmprune.UserError, match=says):
            PriorTR(layers=wrong).acts(LLAVA, 0.5)
    with pytest.raises(vlmprune.UserError, match="no decoder layer whose attention"):
        PriorTR().acts(ModelInfo("llava", 1, 1, has_cls=True), 0.5)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_the_caches_of_all_earlier_layers_are_cut_and_it_matters(family: str) -> None:
    torch.set_num_threads(1)
    recipe, inputs = Recipe((Stage(PriorTR(layers=(3,)), 0.3),)), inputs_of(family, RAGGED)
    tokens, logits, report = run_on(family, recipe, inputs)
    windows = (0, 2) if family == "gemma3" else ()
    assert report.trimmed == {layer: 3 for layer in range(3) if layer not in windows}
    expected = oracle(family, RAGGED, inputs, tokens, report, policies(recipe, family))
    assert largest(logits, expected) < TOLERANCE
    _, whole, kept = run_on(family, Recipe((Stage(PriorTR(layers=(3,), kv_prune=False), 0.3),)), inputs)
    assert kept.trimmed == {} and largest(whole[:, 0], logits[:, 0]) < TOLERANCE
    assert largest(whole[:, 1:], logits[:, 1:]) > 50 * TOLERANCE


def test_behind_another_cut_every_cache_holds_what_the_last_one_left() -> None:
    torch.set_num_threads(1)
    recipe, inputs = vlmprune.recipe("fastv@1:0.6 > priortr@3:0.4"), inputs_of("llava", RAGGED)
    with vlmprune.prune(built("llava"), recipe) as session:
        cache = cache_of(built("llava")(**inputs))
    left = session.last.columns.shape[1]
    assert [cache.layers[layer].keys.shape[2] for layer in range(4)] == [left] * 4
    tokens, logits, report = run_on("llava", recipe, inputs)
    expected = oracle("llava", RAGGED, inputs, tokens, report, policies(recipe, "llava"))
    assert largest(logits, expected) < TOLERANCE

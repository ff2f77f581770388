"""Prune-Aware Fusion: the corrected output is that of dense attention with edited logits, alone and inside models.

The reference inside a model is the masking oracle on eager attention whose own logits are edited, written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pytest
import torch
from harness import RAGGED, built, counted, extend, generate, inputs_of, largest
from harness_backends import FLASH, FLEX, flash, flex
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from versions import behind, cache_of

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.fusion import Fusion
from vlmprune.core.method import DecoderMethod, Method
from vlmprune.core.needs import Need
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.report import RunReport
from vlmprune.core.roles import Fusing
from vlmprune.core.signals import Features
from vlmprune.core.view import ImageView, ModelInfo
from vlmprune.models import adapter_for
from vlmprune.runtime import taps
from vlmprune.runtime.oracle import masking_oracle
from vlmprune.scores.fusion import Rows, _largest, fused_attention
from vlmprune.testing import FAMILIES, alone, image_numbers
from vlmprune.testing.weights import IMAGE

__all__ = ["flash", "flex"]
TOLERANCE = 2e-4


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# ------------------------------------------------------------------ the kernel


def edited_logits(logits: Tensor, groups: list[Tensor], fusion: Fusion) -> Tensor:
    """Row by row, as the formula reads. logits: [S], -inf where nothing is seen."""
    edited = logits.clone()
    over = logits if fusion.threshold_over == "row" else logits[torch.cat(groups)]
    share = torch.exp(logits - torch.logsumexp(over, 0))
    for group in groups:
        count = math.ceil(round(fusion.top_share * len(group), 9))
        for column in sorted(group.tolist(), key=lambda j: -float(logits[j]))[:count]:
            positive = float(logits[column]) > 0 or not fusion.positive_only
            if float(logits[column]) > -math.inf and float(share[column]) > fusion.threshold and positive:
                edited[column] += fusion.strength * logits[column]
    return edited


def dense(rows: Rows, groups: list[Tensor], fusion: Fusion) -> Tensor:
    """[R, H, dv] in float64."""
    heads, count = rows.query.shape[:2]
    output = torch.zeros(count, heads, rows.value.shape[-1], dtype=torch.float64)
    for head in range(heads):
        shared = head * rows.key.shape[0] // heads
        for i in range(count):
            logits = (rows.key[shared].double() @ rows.query[head, i].double()) * rows.scaling
            if rows.softcap:
                logits = rows.softcap * torch.tanh(logits / rows.softcap)
            logits = logits.masked_fill(~rows.visible[i], -math.inf)
            value = rows.value[shared].double()
            if rows.sinks is not None:  # as one more key, with nothing to give
                logits = torch.cat([logits, rows.sinks[head].double()[None]])
                value = torch.cat([value, torch.zeros_like(value[:1])])
            output[i, head] = torch.softmax(edited_logits(logits, groups, fusion), 0) @ value
    return output


def drawn(
    seed: int, keys: int, dtype: torch.dtype, scale: float, softcap: float | None = None, sinks: bool = False
) -> Rows:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    visible = torch.ones(keys, keys, dtype=torch.bool).tril()[keys // 2 :]
    query = scale * normal(4, len(visible), 8)
    key, value = normal(2, keys, 8), normal(2, keys, 6)
    return Rows(query, key, value, 0.3, visible, softcap, normal(4) if sinks else None)


NOTHING = Fusion(0.0, 1.0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    keys=st.integers(6, 24),
    scale=st.sampled_from([0.1, 1.0, 6.0]),
    softcap=st.sampled_from([None, 4.0]),
    sinks=st.booleans(),
    fusion=st.builds(
        Fusion, st.sampled_from([0.1, 0.3, 1.0]), st.sampled_from([0.0, 0.05, 0.2]), st.sampled_from([0.1, 0.5, 1.0]),
        st.sampled_from(["row", "candidates"]), st.booleans(),
    ),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)  # fmt: skip
def test_the_correction_is_exact(seed, keys, scale, softcap, sinks, fusion, dtype) -> None:
    rows = drawn(seed, keys, dtype, scale, softcap, sinks)
    order = torch.randperm(keys, generator=torch.Generator().manual_seed(seed))
    groups = [order[: keys // 3].sort().values, order[keys // 3 : keys // 2].sort().values]
    plain = dense(rows, groups, NOTHING)
    fused, raised = fused_attention(plain.to(dtype), rows, groups, **asdict(fusion))
    expected = dense(rows, groups, fusion)
    assert largest(fused.double(), expected) <= (1e-10 if dtype == torch.float64 else 1e-5)
    changed = (expected - plain).abs().amax(-1) > 1e-4
    assert bool(raised[changed].all()) and fused.dtype == dtype


@pytest.mark.parametrize("lse", [True, False])
def test_a_given_log_sum_exp_is_used_and_chunks_change_nothing(lse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, fusion = drawn(1, 20, torch.float64, 2.0), Fusion(0.3, 0.05, 0.5)
    groups = [torch.arange(3, 9)]
    plain, total = dense(rows, groups, NOTHING), rows.log_sum_exp()
    whole, _ = fused_attention(plain, rows, groups, **asdict(fusion))
    for module in ("fusion", "chunked"):
        monkeypatch.setattr(f"vlmprune.scores.{module}.CHUNK_ELEMENTS", 30)
    if lse:
        monkeypatch.setattr(Rows, "log_sum_exp", None)
    again, _ = fused_attention(plain, rows, groups, total if lse else None, **asdict(fusion))
    assert largest(whole, again) < 1e-12


@pytest.mark.parametrize("seed", range(8))
def test_rows_that_cannot_have_a_raised_logit_are_left_alone(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by few keys, whose log-sum-exp is less than the row's."""
    rows, fusion = drawn(seed, 64, torch.float64, 4.0), Fusion(0.3, 0.4, 0.5)
    groups, asked, own = [torch.arange(20, 30)], [0], Rows.log_sum_exp
    monkeypatch.setattr("vlmprune.scores.fusion.EVERY", 5)
    monkeypatch.setattr(Rows, "log_sum_exp", lambda self: asked.append(self.query.shape[1]) or own(self))
    fused, raised = fused_attention(dense(rows, groups, NOTHING), rows, groups, **asdict(fusion))
    assert largest(fused, dense(rows, groups, fusion)) <= 1e-10
    assert 0 < int(raised.any(1).sum()) <= sum(asked) < len(raised)


@pytest.fixture(autouse=True)
def the_same_draws() -> None:
    """Errors of rounding depend on the numbers drawn, which must not depend on the tests that ran before."""
    torch.manual_seed(0)


@pytest.mark.parametrize(("part", "count"), [(0.07, 7), (0.1, 10), (0.101, 11)])
def test_a_share_of_the_candidates_is_rounded_up_but_not_for_its_last_digit(part: float, count: int) -> None:
    keys = torch.arange(100.0, 0.0, -1.0)[None, :, None]
    rows = Rows(torch.ones(1, 1, 1), keys, torch.zeros(1, 100, 1), 0.01, torch.ones(1, 100, dtype=torch.bool))
    assert int(_largest(rows.logits(), [100], part).sum()) == count


@pytest.mark.parametrize("factor", [-3.0, -30.0])
def test_a_row_whose_lowered_logits_held_all_of_it(factor: float) -> None:
    """Negative logits fall: where they held nearly all of a row, old minus new is 0 / 0 in float32."""
    keys = torch.full((1, 4, 1), factor)
    keys[0, 0] = 12 * factor  # what the row goes over to, once the others are lowered
    rows = Rows(torch.ones(1, 1, 1), keys, torch.randn(1, 4, 3), 1.0, torch.ones(1, 4, dtype=torch.bool))
    groups, fusion = [torch.arange(1, 4)], Fusion(20.0, 0.05, 1.0)
    fused, raised = fused_attention(dense(rows, groups, NOTHING).float(), rows, groups, **asdict(fusion))
    assert bool(raised.all())
    assert largest(fused.double(), dense(rows, groups, fusion)) < 1e-5


def test_such_a_row_is_found_among_others_in_any_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.tensor([-36.0, -3.0, -3.0, -3.0])[None, :, None]
    query = torch.tensor([0.1, -0.2, 0.3, 0.2, 1.0, -0.1])[None, :, None]  # the fifth falls
    rows = Rows(query, keys, torch.randn(1, 4, 3), 1.0, torch.ones(6, 4, dtype=torch.bool))
    groups, fusion = [torch.arange(1, 4)], Fusion(20.0, 0.05, 1.0)
    monkeypatch.setattr("vlmprune.scores.fusion.CHUNK_ELEMENTS", 6)  # two rows of three candidates
    fused, _ = fused_attention(dense(rows, groups, NOTHING).float(), rows, groups, **asdict(fusion))
    assert largest(fused.double(), dense(rows, groups, fusion)) < 1e-5


def test_large_logits_do_not_overflow() -> None:
    rows = drawn(3, 12, torch.float32, 300.0)
    groups, fusion = [torch.arange(2, 8)], Fusion(1.0, 0.05, 1.0)
    fused, _ = fused_attention(dense(rows, groups, NOTHING).float(), rows, groups, **asdict(fusion))
    assert bool(fused.isfinite().all())


@pytest.mark.parametrize("fusion", [Fusion(0.0, 0.0, 1.0), Fusion(0.5, 1.1, 1.0), Fusion(0.5, 0.0, 0.0)])
def test_where_nothing_is_raised_the_output_is_the_same_to_the_bit(fusion: Fusion) -> None:
    rows = drawn(2, 16, torch.float32, 1.0)
    plain = dense(rows, [], NOTHING).float()
    fused, _ = fused_attention(plain, rows, [torch.arange(4, 9)], **asdict(fusion))
    assert torch.equal(fused, plain)


# ------------------------------------------------------------------ inside a model


KEEP = 0.3


@dataclass
class Cut(DecoderMethod, Fusing):
    """Keeps the longest features; fuses the next longest, with settings that raise much."""

    name = "cut"
    strength: float = 0.8
    threshold: float = 0.01
    threshold_over: str = "row"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features()}

    def fusion(self, info: ModelInfo) -> Fusion | None:
        return Fusion(self.strength, self.threshold, 0.5, self.threshold_over) if self.strength else None

    def unfused(self) -> Method:
        return replace(self, strength=0.0)

    def order(self, view: ImageView) -> Tensor:
        return torch.argsort(view["features"].norm(dim=1), descending=True)

    def select(self, view: ImageView) -> Tensor:
        return self.order(view)[: view.keep]

    def candidates(self, view: ImageView) -> Tensor:
        return self.order(view)[view.keep : view.keep + view.n // 3]


@dataclass
class Ask(Cut):
    """Notes the order of each image's tokens."""

    stage = "vision"
    seen: list[Tensor] = field(default_factory=list)

    def decoder_layer(self, info: ModelInfo) -> None:  # type: ignore[override]
        return None

    def fusion(self, info: ModelInfo) -> None:
        return None

    def select(self, view: ImageView) -> Tensor:
        self.seen.append(self.order(view))
        return super().select(view)


def orders(family: str, inputs: dict[str, Tensor]) -> Iterator[Tensor]:
    """For each image its slots by the length of their features."""
    ask = Ask()
    with torch.no_grad(), vlmprune.prune(built(family), Recipe((Stage(ask, 0.5),))):
        built(family)(**inputs)
    return iter(ask.seen)


def fused_slots(order: Tensor) -> Tensor:
    keep = round(KEEP * len(order))
    return order[keep : keep + len(order) // 3]


@contextmanager
def edited_eager(
    model: Any, layers: list[int], groups: list[list[Tensor]], prompt: int, fusion: Fusion
) -> Iterator[None]:
    """Eager attention that edits the logits of these decoder layers: rows of the prompt outside the candidates."""
    modules = [adapter_for(model).decoder_attention(layer) for layer in layers]

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if module not in modules:
            return taps._eager_of(module)(module, query, key, value, *args, **kwargs)
        [mask] = args
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1).double(), value.repeat_interleave(repeat, 1).double()
        logits = query.double() @ key.transpose(2, 3) * kwargs["scaling"]
        cap = kwargs.get("softcap")
        logits = cap * torch.tanh(logits / cap) if cap else logits
        logits = logits.masked_fill(mask != 0, -math.inf)
        for row, images in enumerate(groups):
            given_up = torch.cat(images)
            for i in set(range(prompt)) - set(given_up.tolist()):
                for head in range(logits.shape[1]):
                    if bool(logits[row, head, i, given_up].isfinite().any()):
                        logits[row, head, i] = edited_logits(logits[row, head, i], images, fusion)
        output = torch.softmax(logits, -1) @ value
        return output.transpose(1, 2).to(query.dtype).contiguous(), None

    ALL_ATTENTION_FUNCTIONS["eager"] = attend
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["eager"]


def reference(
    family: str, inputs: dict[str, Tensor], tokens: Tensor, report: RunReport, layers: list[int], method: Cut
) -> Tensor:
    model, numbers = built(family, "eager"), image_numbers(FAMILIES[family], RAGGED)
    found = orders(family, inputs)
    groups = [
        [(numbers[row] == image).nonzero().squeeze(1)[fused_slots(next(found))] for image in range(len(sample))]
        for row, sample in enumerate(RAGGED)
    ]
    fusion = method.fusion(adapter_for(model).info)
    assert fusion is not None
    with torch.no_grad(), edited_eager(model, layers, groups, inputs["input_ids"].shape[1], fusion):
        return masking_oracle(model, inputs, tokens, report, {}, numbers)


EVERY_KIND = (
    "llava", "llava_next", "llava_onevision video", "qwen2_5_vl", "qwen2_5_vl video", "qwen3_vl", "qwen3_vl video",
    "internvl", "gemma3", "paligemma", "paligemma2", "smolvlm",
)  # fmt: skip


@pytest.mark.parametrize("family", EVERY_KIND)
def test_a_model_answers_as_if_its_logits_were_edited(family: str) -> None:
    """M-RoPE, deepstack, grouped queries, windows, two-way blocks, capped logits; padding and several images."""
    inputs, method = inputs_of(family, RAGGED), Cut()
    with vlmprune.prune(built(family), Recipe((Stage(method, KEEP),))) as session:
        tokens, logits = generate(built(family), inputs)
    assert largest(logits, reference(family, inputs, tokens, session.last, [0, 1], method)) < TOLERANCE
    assert set(session.last.fused) == {0, 1} and all(0.01 < share <= 1 for share in session.last.fused.values())
    with vlmprune.prune(built(family), Recipe((Stage(Cut(strength=0.0), KEEP),))) as session:
        plain = generate(built(family), inputs)[1]
    assert session.last.fused == {} and largest(plain[:, 0], logits[:, 0]) > 20 * TOLERANCE  # it did something


def test_a_model_whose_caps_bend_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2's cap is far above what a tiny model reaches, so that it is lowered here."""
    for model in {built("paligemma2"), built("paligemma2", "eager")}:
        for layer in range(4):
            monkeypatch.setattr(adapter_for(model).decoder_attention(layer), "attn_logit_softcapping", 0.5)
    inputs, method = inputs_of("paligemma2", RAGGED), Cut()
    with vlmprune.prune(built("paligemma2"), Recipe((Stage(method, KEEP),))) as session:
        tokens, logits = generate(built("paligemma2"), inputs)
    assert largest(logits, reference("paligemma2", inputs, tokens, session.last, [0, 1], method)) < TOLERANCE


@pytest.mark.parametrize(("layer", "fused"), [(1, [0]), (3, [1, 2])])
def test_the_two_layers_before_the_cut_and_no_others(layer: int, fused: list[int]) -> None:
    inputs, method = inputs_of("llava", RAGGED), Cut(layer=layer, threshold_over="candidates")
    with vlmprune.prune(built("llava"), Recipe((Stage(method, KEEP),))) as session:
        tokens, logits = generate(built("llava"), inputs)
    assert sorted(session.last.fused) == fused
    assert largest(logits, reference("llava", inputs, tokens, session.last, fused, method)) < TOLERANCE


@pytest.mark.parametrize("kernel", ["eager", FLASH, FLEX])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl_moe", "internvl"])
@pytest.mark.usefixtures("flash", "flex")
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_every_kernel_is_corrected_alike(family: str, kernel: str) -> None:
    inputs, recipe = inputs_of(family, RAGGED), Recipe((Stage(Cut(), KEEP),))
    answers = []
    for attention in ("sdpa", kernel):
        with torch.no_grad(), vlmprune.prune(built(family, attention), recipe) as session:
            answers.append(built(family, attention)(**inputs).logits[:, -1])
        assert sorted(session.last.fused) == [0, 1]
    assert largest(*answers) < TOLERANCE


@pytest.mark.usefixtures("flash")
def test_flash_attention_is_corrected_within_each_layers_window() -> None:
    """It is given no mask: what a row sees is put together here. Of layers 1 and 2 the second one slides."""
    inputs, recipe = inputs_of("gemma3", RAGGED), Recipe((Stage(Cut(layer=3), KEEP),))
    causal = {name: value for name, value in inputs.items() if name != "token_type_ids"}  # as flash attention does
    assert [adapter_for(built("gemma3")).layer_kind(layer) for layer in (1, 2, 3)] == [
        "full_attention", "sliding_attention", "full_attention",
    ]  # fmt: skip
    answers = []
    for attention, asked in (("sdpa", causal), (FLASH, inputs)):
        with torch.no_grad(), vlmprune.prune(built("gemma3", attention), recipe) as session:
            answers.append(built("gemma3", attention)(**asked).logits[:, -1])
        assert sorted(session.last.fused) == [1, 2]
    assert largest(*answers) < TOLERANCE


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3", "internvl"])
def test_batch_beams_caches_and_scored_answers(family: str) -> None:
    model, inputs, recipe = built(family), inputs_of(family, RAGGED), Recipe((Stage(Cut(), KEEP),))
    with vlmprune.prune(model, recipe):
        tokens, logits = generate(model, inputs)
        for row in range(len(RAGGED)):  # alone, without padding
            assert largest(generate(model, alone(FAMILIES[family], RAGGED, row))[1][0], logits[row]) < TOLERANCE
        steps = tokens.shape[1]
        longer = counted(family, extend(family, inputs, tokens[:, :-1]))
        again = model(**longer, use_cache=False, logits_to_keep=steps).logits  # the answer is no prompt: not fused
        assert largest(again, logits) < TOLERANCE
        static = generate(model, inputs, cache_implementation="static", disable_compile=True)[1]
        assert largest(static, logits) < TOLERANCE
        out = model.generate(
            **inputs, num_beams=2, max_new_tokens=steps, do_sample=False, length_penalty=0.0,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        answer = out.sequences[:, inputs["input_ids"].shape[1] :]
        longer = counted(family, extend(family, inputs, answer[:, :-1]))
        scored = model(**longer, use_cache=False, logits_to_keep=steps).logits
    chosen = scored[..., :80].log_softmax(-1).gather(2, answer[..., None])[..., 0].sum(1)  # markers are suppressed
    full = scored.log_softmax(-1).gather(2, answer[..., None])[..., 0].sum(1)
    assert min(largest(chosen, out.sequences_scores), largest(full, out.sequences_scores)) < 10 * TOLERANCE


def test_a_new_image_behind_a_cache() -> None:
    """Its queries and candidates are found behind what the cache holds, and see all of that."""
    model, method = built("llava"), Cut()
    first, more = inputs_of("llava", [[0]]), inputs_of("llava", [[1]], seed=50)
    both = {name: torch.cat([first[name], more[name]], dim=1) for name in ("input_ids", "attention_mask")}
    pixels = {"pixel_values": torch.cat([first["pixel_values"], more["pixel_values"]])}
    with torch.no_grad():
        cache = cache_of(model(**first))
        with vlmprune.prune(model, Recipe((Stage(method, KEEP),))) as session:
            logits = model(**{**more, "attention_mask": both["attention_mask"]}, **behind(cache)).logits[:, -1:]
    columns = (both["input_ids"] == IMAGE)[0].nonzero().squeeze(1)
    slots = len(columns) // 2
    numbers = torch.full_like(both["input_ids"], -1)
    numbers[0, columns] = torch.arange(2).repeat_interleave(slots)
    report = RunReport(stages=[(2, [[torch.arange(slots), *session.last.kept[0]]])])
    groups, eager = [[columns[slots:][fused_slots(next(orders("llava", more)))]]], built("llava", "eager")
    fusion = method.fusion(adapter_for(model).info)
    for edit, same in ((fusion, True), (Fusion(0.0, 1.0), False)):
        assert edit is not None
        with torch.no_grad(), edited_eager(eager, [0, 1], groups, numbers.shape[1], edit):
            expected = masking_oracle(eager, {**both, **pixels}, torch.zeros(1, 1), report, {}, numbers)
        assert (largest(logits, expected) < TOLERANCE) == same


def test_an_attention_module_that_is_not_heard_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("llava")
    module: Any = adapter_for(model).decoder_attention(0)
    usual: Callable[..., Any] = type(module).forward

    def deaf(*args: Any, **kwargs: Any) -> Any:
        taps._TAPS.edited.pop(module, None)
        return usual(module, *args, **kwargs)

    monkeypatch.setattr(module, "forward", deaf)
    with vlmprune.prune(model, Recipe((Stage(Cut(), KEEP),))), pytest.raises(UserError, match="attention functions"):
        model(**inputs_of("llava", RAGGED))
    assert not taps._TAPS.edited and not any(taps._WRAPPED.values())


def test_recurrent_layers_are_passed_over_or_refused_in_words() -> None:
    model, inputs = built("qwen3_5"), inputs_of("qwen3_5", RAGGED)  # layers 1 and 3 have an attention map
    with torch.no_grad(), vlmprune.prune(model, Recipe((Stage(Cut(layer=3), KEEP),))) as session:
        model(**inputs)
    assert list(session.last.fused) == [1]
    with pytest.raises(UserError, match="has no attention map"):
        vlmprune.prune(model, Recipe((Stage(Cut(layer=1), KEEP),)))

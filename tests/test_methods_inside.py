"""Methods inside the LLM through the whole matrix of generation, on LLaVA, Qwen2.5-VL, Qwen3-VL and InternVL.

The reference is the masking oracle where a method only drops, and where it merges one uncached forward; that forward is
itself held to a step-by-step reference for SparseVLM, which merges (`ByHand`; AutoPrune's is in
methods/test_autoprune.py). MustDrop, whose decoding sees less than its prompt, has its own in
methods/test_mustdrop.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import (
    RAGGED,
    STEPS,
    TOLERANCE,
    alone,
    built,
    counted,
    extend,
    generate,
    inputs_of,
    largest,
    oracle,
    policies,
    text_part,
)
from harness_staged import ALL, DROPPING, TRIMMING, VARIANTS, clusters_by_loops, cuts
from torch import Tensor
from versions import behind, cache_of

import vlmprune
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.methods.decoder.sparsevlm import SparseVLM
from vlmprune.models import adapter_for

families = pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"])
ELSEWHERE = ["qwen3_vl", "internvl"]  # on the others test_methods_modes.py runs each method by itself
WHOLE = [name for name in ALL if name not in TRIMMING]
REPEATED = [name for name in DROPPING if name not in TRIMMING and cuts(name) > 1]
RUN = [(family, name) for name in WHOLE for family in (["llava", "qwen2_5_vl"] * (name in VARIANTS) + ELSEWHERE)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def expected(family: str, name: str, inputs: dict[str, Tensor], tokens: Tensor, report: Any) -> Tensor:
    """[B, T, V] the logits from which `tokens` must have been chosen."""
    recipe, steps = Recipe((ALL[name],)), tokens.shape[1]
    if name in DROPPING:
        return oracle(family, RAGGED, inputs, tokens, report, policies(recipe, family))
    longer = counted(family, extend(family, inputs, tokens[:, :-1]))
    with vlmprune.prune(built(family), recipe):
        return built(family)(**longer, use_cache=False, logits_to_keep=steps).logits[:, -steps:]


@torch.no_grad()
@pytest.mark.parametrize(("family", "name"), RUN)
def test_every_way_of_generating(family: str, name: str) -> None:
    """Greedy, with a static cache, beams and a second turn of a ragged batch, and prompt-lookup decoding."""
    model, inputs = built(family), inputs_of(family, RAGGED)
    question, prompt = torch.tensor([[21, 22, 23, 24], [31, 32, 33, 34]]), inputs["input_ids"].shape[1]
    one = extend(family, inputs_of(family, [[0, 1]]), torch.tensor([[11, 12, 13, 14, 15, 11, 12]]))
    options: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True}
    with vlmprune.prune(model, Recipe((ALL[name],))) as session:
        first = model.generate(**inputs, **options, output_logits=True)
        answer, report = first.sequences[:, prompt:], session.last
        turn = text_part(extend(family, inputs, torch.cat([answer, question], dim=1)))
        tokens, later = generate(model, turn, **behind(cache_of(first)))
        same, fixed = generate(model, inputs, cache_implementation="static", disable_compile=True)
        beams = model.generate(**inputs, **options, num_beams=3, length_penalty=0.0, output_scores=True)
        greedy = model.generate(**one, max_new_tokens=8, do_sample=False)
        lookup = model.generate(**one, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
    logits = torch.stack(first.logits, dim=1)
    assert largest(logits, expected(family, name, inputs, answer, report)) < TOLERANCE
    assert torch.equal(answer, same) and largest(logits, fixed) < TOLERANCE
    said = torch.cat([answer, question, tokens], dim=1)
    assert largest(later, expected(family, name, inputs, said, report)[:, -STEPS:]) < TOLERANCE
    best = beams.sequences[:, prompt:]
    chosen = expected(family, name, inputs, best, report).log_softmax(-1).gather(2, best[..., None])
    assert largest(chosen[..., 0].sum(1), beams.sequences_scores) < 10 * TOLERANCE  # a sum over steps
    assert torch.equal(greedy, lookup)


@families
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("name", REPEATED)
def test_both_position_policies(family: str, name: str, positions: str) -> None:
    inputs, recipe = inputs_of(family, RAGGED), Recipe((ALL[name],))
    with vlmprune.prune(built(family), recipe, positions=positions) as session:
        tokens, logits = generate(built(family), inputs)
    layers = [layer for layer, _ in session.last.stages]
    wanted = oracle(family, RAGGED, inputs, tokens, session.last, dict.fromkeys(layers, positions))
    assert largest(logits, wanted) < TOLERANCE


@pytest.mark.parametrize(
    ("policy", "recipes"),
    [
        ("original", ["fastv:0.5", "vtw:0.5", "dart:0.5", "random@2:0.5", "sparsevlm(version=+):0.5"]),
        (
            "compact",
            ["pyramiddrop:0.5", "sparsevlm:0.5", "sparsevlm(version=1.0):0.5", "adaptinfer:0.5", "mustdrop:0.5"],
        ),
    ],
)
def test_positions_are_the_authors_on_llava_and_kept_where_they_tell_places(policy: str, recipes: list[str]) -> None:
    for text in recipes:
        assert set(policies(vlmprune.recipe(text), "llava").values()) == {policy}
        assert set(policies(vlmprune.recipe(text), "qwen2_5_vl").values()) == {"original"}


# ---------------------------------------------------------------------- recycling, step by step


class ByHand:
    """SparseVLM 1.5 in one uncached forward of one sample: tokens are taken out of and put into its hidden states.

    Args:
        columns: [S] number of the image in each column of prompt and answer, -1 for text.
        end: length of the prompt.
    """

    def __init__(self, family: str, columns: Tensor, end: int, keep: float, policy: str) -> None:
        self.model, self.adapter = built(family, "eager"), adapter_for(built(family, "eager"))
        self.image, self.end, self.policy, self.keep = columns.clone(), end, policy, keep
        self.column = torch.arange(len(columns))  # of the prompt, for each token that is there
        self.acts = {act.layer: act for act in acts_of(SparseVLM(), keep, self.adapter.info)}
        self.whole, self.entered, self.maps, self.merged = columns, torch.empty(0), torch.empty(0), 0

    def logits(self, inputs: dict[str, Tensor], positions: Tensor) -> Tensor:
        """[V] of the token after `inputs`, whose columns have these position ids [..., 1, S]."""
        self.positions, text = positions, self.adapter.text_model
        handles = [
            layer.register_forward_pre_hook(self.before(number), with_kwargs=True)
            for number, layer in enumerate(self.adapter.decoder_layers)
        ] + [
            self.adapter.decoder_attention(number).register_forward_hook(
                lambda module, args, out: setattr(self, "maps", out[1][0])
            )
            for number in range(len(self.adapter.decoder_layers))
        ]
        if hasattr(text, "_deepstack_process"):
            text.__dict__["_deepstack_process"] = self.deepstack
        try:
            return self.model(**inputs, use_cache=False).logits[0, -1]
        finally:
            text.__dict__.pop("_deepstack_process", None)
            for handle in handles:
                handle.remove()

    def deepstack(self, hidden: Tensor, visual: Tensor, level: Tensor) -> Tensor:
        added = torch.zeros(len(self.whole), hidden.shape[-1])
        added[self.whole >= 0] = level
        return hidden + added[self.column]

    def before(self, number: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = (args[0] if args else kwargs["hidden_states"])[0]
            if number == 0:
                self.entered = hidden
            if number in self.acts:
                hidden = self.act(number, hidden)
            size = len(hidden)
            mask = torch.zeros(1, 1, size, size).masked_fill(torch.ones(size, size).triu(1).bool(), -1e30)
            rotary = self.adapter.rotary(hidden[None], self.positions, number)
            changed = {**kwargs, "attention_mask": mask, "position_embeddings": rotary, "position_ids": None}
            return ((hidden[None], *args[1:]), changed) if args else ((), {**changed, "hidden_states": hidden[None]})

        return hook

    def act(self, number: int, hidden: Tensor) -> Tensor:
        tokens, states = [], []  # which tokens go on, and what they are
        at = 0
        for image in range(int(self.whole.max()) + 1):
            own = (self.image == image).nonzero().squeeze(1)
            words = (self.image < 0) & (self.column < self.end) & (torch.arange(len(hidden)) > own[-1])
            words = words.nonzero().squeeze(1)
            entered = self.entered[self.whole == image]
            match = torch.softmax(entered @ self.entered[self.column[words]].T, dim=1).mean(0)
            raters = words[match > match.mean()]
            relation = self.maps[:, raters][..., own].mean((0, 1))
            order = relation.argsort(descending=True)
            k = self.acts[number].budget(len(own), len(entered))
            best = order[k:][: int(0.3 * (len(own) - k)) + 1]
            made, middles = clusters_by_loops(hidden[own[best]], len(best) // 10 + 1)
            kept = own[order[:k].sort().values]
            tokens += [torch.arange(at, int(own[0])), kept, own[best[middles]]]  # a cluster stands where its middle did
            states += [hidden[at : own[0]], hidden[kept], made]
            at, self.merged = int(own[-1]) + 1, self.merged + len(made)
        index = torch.cat([*tokens, torch.arange(at, len(hidden))])
        self.image, self.column, self.positions = self.image[index], self.column[index], self.positions[..., index]
        if self.policy == "compact":
            self.positions = torch.arange(len(index))[None]
        return torch.cat([*states, hidden[at:]])


@torch.no_grad()
@families
@pytest.mark.parametrize("keep", [192 / 576, 0.12])
def test_recycling_equals_a_forward_cut_by_hand(family: str, keep: float) -> None:
    recipe, inputs = Recipe((Stage(SparseVLM(), keep),)), inputs_of(family, RAGGED)
    with vlmprune.prune(built(family), recipe) as session:
        tokens, logits = generate(built(family), inputs)
    policy = SparseVLM().positions(adapter_for(built(family)).info)
    for row in range(len(RAGGED)):
        single = alone(family, RAGGED, row)
        end = single["input_ids"].shape[1]
        for step in (0, STEPS - 1):
            given = extend(family, single, tokens[row : row + 1, :step])
            numbers = torch.nn.functional.pad(numbers_of(given["input_ids"][0, :end]), (0, step), value=-1)
            hand = ByHand(family, numbers, end, keep, policy)
            assert largest(hand.logits(given, ids_of(family, given)), logits[row, step]) < TOLERANCE
            assert hand.merged >= 3 * len(RAGGED[row])
            for image, kept in enumerate(
                session.last.kept[row]
            ):  # a merged token counts where its cluster's middle was
                first = (numbers == image).nonzero()[0]
                assert torch.equal((hand.column[hand.image == image] - first).sort().values, kept)


def numbers_of(ids: Tensor) -> Tensor:
    """[S] number of the image that a column shows, -1 for text: each stretch of placeholders is one."""
    shown = (ids == 90).long()
    begins = (shown - torch.nn.functional.pad(shown, (1, 0))[:-1]).clamp(min=0)
    return torch.where(shown.bool(), begins.cumsum(0) - 1, -1)


def ids_of(family: str, inputs: dict[str, Tensor]) -> Tensor:
    """[1, S] or [3, 1, S] position ids of the unpruned model."""
    inner = adapter_for(built(family)).inner
    if not hasattr(inner, "get_rope_index"):
        return torch.arange(inputs["input_ids"].shape[1])[None]
    known = {name: inputs[name] for name in ("image_grid_thw", "mm_token_type_ids", "attention_mask")}
    return inner.get_rope_index(inputs["input_ids"], **known)[0]


def test_what_was_recycled_has_no_rows_in_the_encoder() -> None:
    recipe = "sparsevlm@1:0.5 > mustdrop@3:0.5"
    with (
        vlmprune.prune(built("llava"), recipe),
        pytest.raises(vlmprune.UserError, match="mustdrop reads what the vision side made of each token"),
    ):
        built("llava")(**inputs_of("llava", RAGGED))

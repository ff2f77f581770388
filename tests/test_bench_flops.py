"""Operations: the shares that papers print, and what fusion costs."""

from __future__ import annotations

import contextlib
import math
from copy import copy
from types import SimpleNamespace

import pytest
import torch
from harness import built, inputs_of
from torch.utils.flop_counter import FlopCounterMode
from transformers import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2MLP

from vlmprune.bench.flops import (
    CHUNK,
    encoder_flops,
    fusion_flops,
    papers_flops,
    prefill_flops,
    run_flops,
    sample_flops,
    visual_per_layer,
)
from vlmprune.bench.passes import Encoded, from_slots, of_passes, tower_of, watched
from vlmprune.bench.shapes import TOWERS, UNCOUNTED, shape_of
from vlmprune.core.shape import Shape
from vlmprune.methods.decoder.autoprune_curve import keep_shares
from vlmprune.models import FAMILIES as ADAPTERS
from vlmprune.models import adapter_for
from vlmprune.testing import FAMILIES
from vlmprune.testing.families.gemma4 import ROOM
from vlmprune.testing.weights import PATCH

COUNTED = [name for name, family in FAMILIES.items() if family.name not in UNCOUNTED]
SMALL = Shape(
    family="llava", encoder_layers=3, encoder_width=32, encoder_mlp=48, encoder_gated=False, encoder_heads=4,
    has_cls=True, window=0, full_layers=3, patch_inputs=768, merge=1, projector=2048, layers=4, width=32, mlp=48,
    q_width=32, kv_width=16, vocabulary=99,
)  # fmt: skip


@pytest.mark.parametrize(
    ("target", "steepness", "entering", "shares"),
    [
        (192, 0.2, 209.5, (41.9, 44.8)),
        (128, 0.2, 145.6, (31.9, 35.3)),
        (64, 0.2, 81.8, (21.9, 25.9)),
        (192, 0.4, 209.9, (42.0, 45.0)),
        (64, 0.0, 80.3, (21.7, 25.7)),
    ],
)
def test_autoprune_at_the_papers_budgets(
    target: int, steepness: float, entering: float, shares: tuple[float, float]
) -> None:
    """What enters a layer, and the count with a gated MLP beside 60 and 95 tokens of text.

    The published 42.9, 33.7 and 23.2 % lie between those of the two prompts at the authors' usual steepness.
    """
    counts = [576, first := min(int(2.5 * target), 576)]
    for share in keep_shares(steepness, target, first, 576, 32):
        kept = min(math.ceil((first - 1) * share), counts[-1])
        recycled = int(0.3 * (counts[-1] - kept)) + 1
        counts.append(kept + (recycled // 10 + 1 if kept < counts[-1] else 0))
    assert abs(sum(counts[1:]) / 32 - target) < 0.5 and abs(sum(counts[:32]) / 32 - entering) < 0.06
    for text, share in zip((60, 95), shares, strict=True):
        lengths = [text + count for count in counts[:32]]
        ours, whole = (papers_flops(4096, 11008, n, matrices=3) for n in (lengths, [text + 576] * 32))
        assert abs(100 * ours / whole - share) < 0.06


@pytest.mark.parametrize(
    ("kept", "layers", "text", "share"),
    [
        ((322, 180, 100), (2, 8, 16), 60, 39.0),
        ((241, 101, 42), (2, 8, 16), 60, 29.1),
        ((110, 21, 4), (2, 8, 16), 60, 19.2),
        ((288, 144, 72), (8, 16, 24), 0, 46.6),
    ],
    ids=["192", "128", "64", "as published"],
)
def test_pyramiddrop_with_text_and_as_published(
    kept: tuple[int, ...], layers: tuple[int, ...], text: int, share: float
) -> None:
    lengths = [text + tokens for tokens in visual_per_layer(32, 576, list(zip(layers, kept, strict=True)))]
    ours, whole = (papers_flops(4096, 11008, n, matrices=3) for n in (lengths, [text + 576] * 32))
    assert abs(100 * ours / whole - share) < 0.06


def test_hilo_and_topv_at_the_papers_shares() -> None:
    """By the count with two matrices: 2.576 to 0.377 T on Qwen3-VL-8B at 10 %, and TopV's 49 %."""
    n = 418  # of which the unpruned count is 2.576 T
    whole, cut = (papers_flops(4096, 12288, lengths) for lengths in ([n] * 36, [n] * 2 + [42] * 34))
    assert abs(whole / 1e12 - 2.576) < 0.01 and abs(cut / whole - 0.377 / 2.576) < 0.003
    lengths = visual_per_layer(32, 576, [(3, round(0.437 * 576))])
    assert abs(papers_flops(4096, 11008, lengths) / papers_flops(4096, 11008, [576] * 32) - 0.49) < 0.01


@pytest.mark.parametrize(
    ("n", "correction", "with_sums"),
    [(576, 0.13, 0.6), (1024, 0.26, 1.1), (2880, 0.81, 3.4), (4096, 1.15, 4.8), (6400, 1.8, 7.3)],
)
def test_what_fusion_costs(n: int, correction: float, with_sums: float) -> None:
    """Percent of the pruned prefill by the count of its authors: 10 % kept, 30 % coarse, 64 text tokens, 32 layers."""
    kept, keys = round(0.1 * n), n + 64
    candidates = round(0.3 * n) - kept
    prefill = papers_flops(4096, 11008, [keys] * 2 + [kept + 64] * 30)
    sums = fusion_flops(4096, keys - candidates, keys, 0)
    corrected = fusion_flops(4096, keys - candidates, keys, candidates) - sums
    assert abs(100 * corrected / prefill - correction) < 0.05  # two layers, a multiplication with its addition as one
    assert abs(100 * (corrected + fusion_flops(4096, keys, keys, 0)) / prefill - with_sums) < 0.06


def test_fusion_is_counted_in_the_layers_that_it_edits() -> None:
    def selection(recipe: str, *stages: tuple[int, int]) -> float:
        record = SimpleNamespace(input_tokens=59, visual_before=49, visual_encoded=49, stages=stages)
        return run_flops(SMALL, recipe, [record]).selection

    q = SMALL.q_width
    pixels, features = 2 * 768 * 49**2, 2 * SMALL.width * 49**2
    assert selection("hilo(lambda_=0)@2:0.2", (2, 10)) == pixels + features
    edited = fusion_flops(q, 59 - 34, 59, 34)  # 0.9 of 49 are 44 coarsely chosen
    assert selection("hilo@2:0.2", (2, 10)) == pixels + features + 2 * edited
    assert selection("fuse(divprune:0.2)@1", (1, 10)) == features + fusion_flops(q, 59 - 15, 59, 15)
    twice = selection("hilo@2,3:0.2", (2, 20), (3, 10)) - selection("hilo(lambda_=0)@2,3:0.2", (2, 20), (3, 10))
    assert twice == 2 * fusion_flops(q, 59 - 24, 59, 24) + fusion_flops(q, 30 - 10, 30, 10)


def test_every_family_has_a_shape_or_a_reason() -> None:
    assert {*TOWERS, *UNCOUNTED} == set(ADAPTERS) and not {*TOWERS} & {*UNCOUNTED} and all(UNCOUNTED.values())
    for name, family in FAMILIES.items():
        assert (shape_of(built(name).config) is None) == (family.name in UNCOUNTED), name
    assert shape_of(SimpleNamespace(model_type="blip")) is None


def counted(family: str, seed: int) -> tuple[Shape, Encoded, int, int, int]:
    """Of one picture: shape, what the tower saw, slots, length of the prompt, and what torch counts."""
    # in eager attention torch sees every product, and so it does of experts one at a time
    model, inputs = FAMILIES[family].build("eager"), inputs_of(family, [[seed]])
    for config in (model.config, model.config.get_text_config()):
        config._experts_implementation = "eager"
    if hasattr(head := model.get_encoder(modality="image"), "use_head"):
        head.use_head = False  # SigLIP's pooling head, which nothing reads
    shape, slots, length = shape_of(model.config), FAMILIES[family].slots(seed), inputs["input_ids"].shape[1]
    assert shape is not None
    passes: list[int] = []
    with contextlib.ExitStack() as stack:
        towers = [tower_of(model), getattr(adapter_for(model).inner, "video_tower", None)]
        seen = [stack.enter_context(watched(tower, PATCH)) for tower in towers if tower is not None]
        counter = stack.enter_context(FlopCounterMode(display=False))
        model(**inputs, use_cache=False, logits_to_keep=1)
        passes = [one for each in seen for one in each]
    return shape, of_passes(shape, tuple(passes), slots), slots, length, counter.get_total_flops()


@torch.no_grad()
@pytest.mark.parametrize(("family", "seed"), [(name, seed) for name in COUNTED for seed in (0, 1)])
def test_the_formula_counts_what_torch_counts(family: str, seed: int) -> None:
    """One sample, up to the logits of the first new token.

    Torch counts masked logits and the convolution of padding, too, and sums that are written as products (`summed`);
    triangular systems it does not count. Windows that the edge cuts count as whole ones with us alone.
    """
    shape, encoded, _, length, torchs = counted(family, seed)
    ours = encoder_flops(shape, encoded.passes) + 2 * encoded.projected * shape.projector
    ours += prefill_flops(shape, [length] * shape.layers)
    widths = [shape.q_width + shape.read_width] * (shape.layers - len(shape.recurrent))
    if shape.apart:  # their last layers compute the last token, which sees all
        widths = [2 * width for *_, width in shape.apart[: shape.layers - shape.last_alone]]
    masked = sum(widths) * length * (length - 1)
    heads, key, value = shape.recurrent_heads
    text = built(family).config.get_text_config()
    padding = 0
    if shape.recurrent:
        kernel, mixed = text.conv_L_cache if shape.family == "lfm2_vl" else text.linear_conv_kernel_dim, shape.width
        if heads:
            mixed = 2 * text.linear_num_key_heads * key + heads * value
        padding = len(shape.recurrent) * 2 * mixed * kernel * (kernel - 1)
    solved = len(shape.recurrent) * heads * -(-length // CHUNK) * CHUNK**2 * (key + value)
    cut = shape.window and any(one % shape.window for one in encoded.passes)
    ours += masked + padding - solved + summed(family, shape, encoded)
    assert ours >= torchs if cut else ours == torchs


def summed(family: str, shape: Shape, encoded: Encoded) -> int:
    """What torch counts of embeddings and means that a tower makes by a matrix: we leave these out."""
    vision, each = built(family).config.vision_config, encoded.passes
    if shape.family == "gemma4":  # patches averaged to slots
        return sum(2 * (n // shape.merge) * n * shape.encoder_width for n in each)
    if shape.family == "lfm2_vl":  # positions resized
        return 2 * sum(each) * vision.num_patches * shape.encoder_width
    return 0


# videos whose tower takes two frames together, so that slots do not tell the frames
TOGETHER = {name for name in COUNTED if "video" in FAMILIES[name].modalities and FAMILIES[name].kind.frames > 1}


@torch.no_grad()
@pytest.mark.parametrize("family", [name for name in COUNTED if name not in TOGETHER])
def test_slots_tell_what_the_tower_saw(family: str) -> None:
    """A video of those does not tell its frames, and some of OneVision's canvases have as many slots as others."""
    for seed in (0, 2) if family.startswith("llava_onevision") else range(4):
        shape, encoded, slots, *_ = counted(family, seed)
        known = not shape.opaque and not (family == "llava_next_video" and slots % 4 == 0)  # as a video's, too
        assert from_slots(shape, slots) == (encoded if known else None), seed


def test_a_pooled_video_and_a_picture_with_as_many_slots() -> None:
    """Nine slots for the 36 patches of a frame: where a picture has as many as some frames, their number decides."""
    shape = shape_of(built("llava_next_video video").config)
    assert shape is not None and shape.pooled == 4
    assert from_slots(shape, 27) == from_slots(shape, 27, frames=3) == Encoded((36,) * 3, 27)
    assert from_slots(shape, 27, frames=2) is None
    assert from_slots(shape, 36 + 6 * 13) == Encoded((36,) * 3, 36 * 3)
    both = 36 + 12 * 9  # a canvas of two tiles by two without its padding, or sixteen frames
    assert from_slots(shape, both) is None and from_slots(shape, both, frames=16) == Encoded((36,) * 16, both)


def test_the_width_of_lfm2s_mlp() -> None:
    """Two thirds, times a factor, rounded up, as the modules are made."""
    config = built("lfm2_vl").config.get_text_config().to_dict()
    config |= {"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 1.3, "block_multiple_of": 16}
    text = Lfm2Config(**config)
    whole = copy(built("lfm2_vl").config)
    whole.text_config = text
    shape = shape_of(whole)
    assert shape is not None and shape.mlp == Lfm2MLP(text).w1.out_features == 48


def test_a_count_that_no_picture_has_is_not_known() -> None:
    shape = shape_of(built("llava_next").config)
    assert shape is not None and from_slots(shape, 16 + 3) is None
    record = SimpleNamespace(input_tokens=40, visual_before=19, visual_encoded=19, stages=())
    flops = run_flops(shape, "vanilla", [record])
    assert flops.encoder is None and flops.total is None and flops.papers > 0


def test_chunks_of_frames_share_their_slots() -> None:
    """Kimi's, of two frames here; the last one of three has one."""
    shape = shape_of(built("kimi_k25").config)
    assert shape is not None and shape.chunk == 2 and shape.merge == 4
    assert from_slots(shape, 16, frames=3) == Encoded((2 * 32, 32), 16) and from_slots(shape, 15, frames=3) is None


def test_what_sees_pictures_where_there_is_no_encoder() -> None:
    model = built("gemma4_unified")
    assert tower_of(model) is model.model.embed_vision
    with watched(tower_of(model), PATCH) as passes:
        model(**inputs_of("gemma4_unified", [[0], [1]]))
    assert passes == [ROOM, ROOM]


@pytest.mark.parametrize("family", ["gemma4", "molmo2", "lfm2_vl"])
def test_what_is_read_of_a_tower_that_no_count_tells_is_known_where_it_was_watched(family: str) -> None:
    shape = shape_of(built(family).config)
    assert shape is not None
    record = SimpleNamespace(input_tokens=40, visual_before=24, visual_encoded=24, stages=((0, 8),))
    read, free = (run_flops(shape, spec, [record]) for spec in ("hiprune:8", "pixelprune:8"))
    assert read.selection is None and free.selection and read.encoder is free.encoder is free.total is None
    assert read.prefill == free.prefill > 0
    seen = sample_flops(shape, "hiprune:8", 16, 24, [(0, 8)], of_passes(shape, (50, 50), 24))
    assert seen.selection == 2 * 2 * shape.encoder_width * 100**2 and seen.total  # attention of two layers

"""Floating-point operations of a run up to its first new token, by one formula for every method.

A multiplication and the addition that follows count as two. With N encoder tokens (CLS included) of a picture, tile or
frame whose tokens attend to one another (`bench.passes`), P of them patches, S rows that the projector takes, and at
decoder layer l a sequence of n_l tokens (text and the visual tokens that enter it):

    encoder     2 P patch_inputs d + layers (2 N (4 d^2 + g d m) + 4 d A),  A = N^2, or N w in a layer with windows of w
                (windows that the picture's edge cuts are counted whole); layers behind a merger inside the encoder have
                N / 4 tokens, and the merger costs 2 P times its multiplications per patch
    projector   2 S projector
                The towers of Gemma 4 and LFM2-VL see padding, and that of Molmo 2 crops that overlap: a measurement,
                which watches them, knows both parts; of recorded answers they are not known
    prefill     sum over l of a_l + 2 n_l 3 D M, and 2 D vocabulary once (for each token if it computes all logits)
                a_l = 2 n_l (2 D q + 2 D kv) + 4 q n_l (n_l + 1) / 2 with attention (and 2 n_l D q where it is gated);
                where keys and values come from latents, 2 n_l (latents + D v) + 2 (q + v) n_l (n_l + 1) / 2;
                3 D M is a router D E and 3 D (k M_e + M_s) in a mixture of experts: k of E chosen, M_s shared.
                Gemma 4's layers differ in q, kv and M, have both an MLP and experts or an input of their own, P wide:
                2 n_l 2 D P, and 2 n_0 D P for each layer once; those that share keys make none, and compute the last
                token alone: 2 (2 D q + 3 D M) + 4 q n_l.
    recurrent   a_l = 2 n_l weights + H n (C (5 k + 3 v) + 6 k v): the gated delta rule in chunks of C = 64 tokens, with
                H heads of keys k and values v wide, and n the next multiple of C above n_l;
                LFM2's are convolutions over K tokens, 2 n_l (4 D^2 + D K)
    selection   what the methods declare they need: attention scores 2 d N^2 (or one row of them; an upper bound in
                layers of N / 4 tokens, or where layers differ), a comparison of all tokens with each other 2 n^2 width
                (an upper bound for methods that compare only some of them); and in
                each layer whose attention is fused 2 q R (n_l + 2 F): of R queries the log-sum-exp over all keys, and
                logits and values at F candidates

d, m: width and MLP width of the encoder, g = 3 for a gated MLP and 2 otherwise; D, M: of the decoder (gated);
q, kv: heads times head width of queries and of keys. Norms, activations, embeddings and the softmax are left out.

Papers count sum over l of 4 n_l D^2 + 2 n_l^2 D + 2 n_l D M (FastV and others) or + 3 n_l D M (SparseVLM, FitPrune,
AutoPrune: a gated MLP): no encoder, no grouped-query attention, no recurrence, one operation a multiplication. In a
mixture of experts M is the width that a token passes. These figures stand beside ours as `papers` and `papers_gated`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from vlmprune.bench.passes import Encoded, from_slots
from vlmprune.core.act import Act
from vlmprune.core.fusion import layers_before
from vlmprune.core.needs import EncoderNeed
from vlmprune.core.recipe import recipe
from vlmprune.core.roles import Fusing
from vlmprune.core.shape import Load, Shape

_VANILLA = "vanilla"
CHUNK = 64  # tokens, in transformers and in the kernels that it takes
SQUARE = 4  # patches that a merger inside the encoder makes one token of


class Flops(NamedTuple):
    """Operations of a sample up to its first new token. The papers' are other counts of the prefill, not parts.

    `selection` is None where a method reads a signal whose cost is not stated (`Need.flops`), `encoder` and `projector`
    where token counts do not tell what the tower saw, and so is what a method reads of such a tower.
    """

    encoder: float | None
    projector: float | None
    prefill: float
    selection: float | None
    papers: float
    papers_gated: float

    @property
    def total(self) -> float | None:
        """Of all parts; None where one of them is not known."""
        if self.encoder is None or self.projector is None or self.selection is None:
            return None
        return self.encoder + self.projector + self.prefill + self.selection


class Counted(Protocol):
    """What is read of a record (see `store.Record`)."""

    @property
    def input_tokens(self) -> int: ...
    @property
    def visual_before(self) -> int: ...
    @property
    def visual_encoded(self) -> int: ...
    @property
    def stages(self) -> Sequence[tuple[int, int]]: ...


def run_flops(shape: Shape, recipe_text: str, records: Iterable[Counted], frames: int = 0) -> Flops:
    """Mean operations of a sample of a run.

    Args:
        shape: the model.
        recipe_text: the run's recipe, or "vanilla".
        records: its samples, with their token counts.
        frames: of the video of each sample, where all are known to have as many.
    """
    kinds = Counter((r.input_tokens - r.visual_before, r.visual_encoded, tuple(r.stages)) for r in records)
    samples = [(_sample(shape, recipe_text, *kind, frames), count) for kind, count in kinds.items()]
    whole = max(1, sum(kinds.values()))

    def mean(parts: Iterable[float | None]) -> float | None:
        total = 0.0
        for part, (_, count) in zip(parts, samples, strict=True):
            if part is None:
                return None
            total += count * part
        return total / whole

    return Flops(*(mean(sample[k] for sample, _ in samples) for k in range(len(Flops._fields))))  # type: ignore[arg-type]


def _sample(
    shape: Shape, recipe_text: str, text: int, slots: int, stages: Sequence[tuple[int, int]], frames: int
) -> Flops:
    return sample_flops(shape, recipe_text, text, slots, stages, from_slots(shape, slots, frames))


def sample_flops(
    shape: Shape, recipe_text: str, text: int, slots: int, stages: Sequence[tuple[int, int]], encoded: Encoded | None
) -> Flops:
    """Operations of one sample.

    Args:
        shape: the model.
        recipe_text: the recipe, or "vanilla".
        text: tokens of the prompt that are not visual.
        slots: visual tokens that the encoder made.
        stages: (decoder layer, visual tokens after it) of each cut.
        encoded: what the tower and the projector worked on; None where nobody knows.
    """
    visual = visual_per_layer(shape.layers, slots, stages)
    lengths = [text + tokens for tokens in visual]
    return Flops(
        encoder=None if encoded is None else encoder_flops(shape, encoded.passes),
        projector=None if encoded is None else 2.0 * encoded.projected * shape.projector,
        prefill=prefill_flops(shape, lengths),
        selection=_selection_flops(shape, recipe_text, text, slots, visual, encoded),
        papers=papers_prefill(shape, lengths, matrices=2),
        papers_gated=papers_prefill(shape, lengths, matrices=3),
    )


def visual_per_layer(layers: int, encoded: int, stages: Sequence[tuple[int, int]]) -> list[int]:
    """Visual tokens that enter each decoder layer, after cuts (layer, tokens left) of `encoded` tokens."""
    cuts = dict(stages)
    tokens, counts = encoded, []
    for layer in range(layers):
        tokens = cuts.get(layer, tokens)
        counts.append(tokens)
    return counts


def encoder_flops(shape: Shape, passes: Iterable[int]) -> float:
    """Operations of the vision tower on pictures, tiles or frames of so many patches each."""
    return sum(count * _pass_flops(shape, patches) for patches, count in Counter(passes).items())


def _pass_flops(shape: Shape, patches: int) -> float:
    n, d = patches + shape.has_cls * (patches > 0), shape.encoder_width
    linear = 2.0 * (4 * d * d + (3 if shape.encoder_gated else 2) * d * shape.encoder_mlp)
    windowed, few = shape.encoder_layers - shape.full_layers, n // SQUARE
    full = shape.full_layers - shape.shrunk_layers
    pairs = full * n * n + windowed * n * min(n, shape.window or n) + shape.shrunk_layers * few * few
    tokens = (full + windowed) * n + shape.shrunk_layers * few
    return 2.0 * patches * (shape.patch_inputs * d + shape.midway) + tokens * linear + 4.0 * d * pairs


def prefill_flops(shape: Shape, lengths: Sequence[int]) -> float:
    """Operations of the decoder for a prompt with `lengths` tokens entering its layers, and its logits."""
    layers = sum(_layer_flops(shape, k, n) for k, n in enumerate(lengths)) + 2.0 * lengths[0] * shape.once
    rows = lengths[-1] if shape.all_logits else 1
    return layers + 2.0 * shape.width * shape.vocabulary * rows


def _layer_flops(shape: Shape, layer: int, n: int) -> float:
    if not shape.apart:
        return _mixer_flops(shape, layer, n) + 2.0 * n * _mlp_weights(shape, layer)
    projections, others, width = shape.apart[layer]
    if layer >= shape.layers - shape.last_alone:
        return 2.0 * (projections + others) + 4.0 * width * n
    return 2.0 * n * (projections + others) + 2.0 * width * n * (n + 1)


def _mixer_flops(shape: Shape, layer: int, n: int) -> float:
    """Of the part of a layer in which tokens meet: attention, or a recurrence."""
    if layer in shape.recurrent:
        return 2.0 * n * shape.recurrent_weights + recurrence_flops(shape, n)
    outwards = shape.width * (shape.read_width + shape.gated_query * shape.q_width)
    return 2.0 * n * (shape.projections + outwards) + float((shape.q_width + shape.read_width) * n * (n + 1))


def recurrence_flops(shape: Shape, n: int) -> float:
    """Of the gated delta rule on n tokens, chunk by chunk.

    A chunk multiplies keys by keys, queries by keys, and the latter by values (2 C^2 (2 k + v)), reads and writes the
    state (6 C k v), and solves two triangular systems for keys and values (C^2 (k + v)).
    """
    heads, key, value = shape.recurrent_heads
    return float(heads * -(-n // CHUNK) * CHUNK * (CHUNK * (5 * key + 3 * value) + 6 * key * value))


def _mlp_weights(shape: Shape, layer: int) -> int:
    return shape.sparse_mlp if layer in shape.sparse else 3 * shape.width * shape.mlp


def papers_prefill(shape: Shape, lengths: Sequence[int], matrices: int) -> float:
    """The papers' count of a model's prefill."""
    widths = [shape.active if layer in shape.sparse else shape.mlp for layer in range(shape.layers)]
    return sum(papers_flops(shape.width, mlp, [n], matrices) for mlp, n in zip(widths, lengths, strict=True))


def papers_flops(width: int, mlp: int, lengths: Sequence[int], matrices: int = 2) -> float:
    """The papers' count: sum of 4 n d^2 + 2 n^2 d + 2 (or 3: `matrices` of the MLP) n d m over the layers."""
    return float(sum(4 * n * width**2 + 2 * n * n * width + matrices * n * width * mlp for n in lengths))


def _selection_flops(
    shape: Shape, recipe_text: str, text: int, slots: int, visual: Sequence[int], encoded: Encoded | None
) -> float | None:
    if recipe_text == _VANILLA:
        return 0.0
    total, present, fused = 0.0, slots, set[int]()
    seen = sum(patches + shape.has_cls for patches in encoded.passes) if encoded and shape.opaque else 0
    for act in recipe(recipe_text).on(shape.info).acts:
        layer = act.layer
        if layer is not None:
            present = visual[layer - 1] if layer else slots
            edited = [before for before in layers_before(layer) if before not in fused]
            total += sum(_act_fusion(shape, act, text, visual[before], visual[layer]) for before in edited)
            fused |= {*edited} if act.fusion else set()
        load = Load(shape, slots, present, text, seen)
        for need in act.needs.values():
            unknown = shape.opaque and encoded is None and isinstance(need, EncoderNeed) and need.required
            cost = None if unknown else need.flops(load)
            if cost is None:
                return None
            total += cost
    return total


def _act_fusion(shape: Shape, act: Act, text: int, present: int, kept: int) -> float:
    """What an act's fusion costs in a layer that `present` visual tokens enter, of which `kept` will be left."""
    if act.fusion is None or not isinstance(act.method, Fusing) or kept >= present:
        return 0.0
    candidates = act.method.candidate_count(act, kept, present)
    return fusion_flops(shape.q_width, text + present - candidates, text + present, candidates)


def fusion_flops(q_width: int, rows: int, keys: int, candidates: int) -> float:
    """Operations that correct the attention of `rows` queries at some of their `keys`."""
    return 2.0 * q_width * rows * keys + 4.0 * q_width * rows * candidates

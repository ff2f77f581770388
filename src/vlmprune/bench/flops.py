"""Floating-point operations of a run up to its first new token, by one formula for every method.

A multiplication and the addition that follows count as two. With N encoder tokens (CLS included), P of them patches,
S = P / merge slots made by the encoder, and at decoder layer l a sequence of n_l tokens (text and the visual tokens
that enter it):

    encoder     2 P patch_inputs d + layers (2 N (4 d^2 + g d m) + 4 d A),  A = N^2, or N w in a layer with windows of w
    projector   2 S projector
    prefill     sum over l of 2 n_l (2 D q + 2 D kv + 3 D M) + 4 q n_l (n_l + 1) / 2, and 2 D vocabulary once
    selection   what the methods declare they need: attention scores 2 d N^2 (or one row of them), a comparison of all
                tokens with each other 2 n^2 width (an upper bound for methods that compare only some of them); and in
                each layer whose attention is fused 2 q R (n_l + 2 F): of R queries the log-sum-exp over all keys, and
                logits and values at F candidates

d, m: width and MLP width of the encoder, g = 3 for a gated MLP and 2 otherwise; D, M: of the decoder (gated);
q, kv: heads times head width of queries and of keys. Norms, activations, embeddings and the softmax are left out.

Papers count sum over l of 4 n_l D^2 + 2 n_l^2 D + 2 n_l D M (FastV and others) or + 3 n_l D M (SparseVLM, FitPrune,
AutoPrune: a gated MLP): no encoder, no grouped-query attention, one operation a multiplication. These figures stand
beside ours as `papers` and `papers_gated`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from vlmprune.core.act import Act
from vlmprune.core.fusion import layers_before
from vlmprune.core.recipe import recipe
from vlmprune.core.roles import Fusing
from vlmprune.core.shape import Load, Shape

_VANILLA = "vanilla"


class Flops(NamedTuple):
    """Operations of a sample up to its first new token. The papers' are other counts of the prefill, not parts.

    `selection` is None where a method reads a signal whose cost is not stated (`Need.flops`).
    """

    encoder: float
    projector: float
    prefill: float
    selection: float | None
    papers: float
    papers_gated: float

    @property
    def total(self) -> float | None:
        """Of all parts; None where a method reads a signal that nobody has counted."""
        return None if self.selection is None else self.encoder + self.projector + self.prefill + self.selection


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


def run_flops(shape: Shape, recipe_text: str, records: Iterable[Counted]) -> Flops:
    """Mean operations of a sample of a run.

    Args:
        shape: the model.
        recipe_text: the run's recipe, or "vanilla".
        records: its samples, with their token counts.
    """
    kinds = Counter((r.input_tokens - r.visual_before, r.visual_encoded, tuple(r.stages)) for r in records)
    samples = [(_sample(shape, recipe_text, *kind), count) for kind, count in kinds.items()]
    whole = max(1, sum(kinds.values()))

    def mean(parts: Iterable[float | None]) -> float | None:
        total = 0.0
        for part, (_, count) in zip(parts, samples, strict=True):
            if part is None:
                return None
            total += count * part
        return total / whole

    return Flops(*(mean(sample[k] for sample, _ in samples) for k in range(len(Flops._fields))))  # type: ignore[arg-type]


def _sample(shape: Shape, recipe_text: str, text: int, encoded: int, stages: Sequence[tuple[int, int]]) -> Flops:
    visual = visual_per_layer(shape.layers, encoded, stages)
    lengths = [text + tokens for tokens in visual]
    return Flops(
        encoder=encoder_flops(shape, encoded),
        projector=2.0 * encoded * shape.projector,
        prefill=prefill_flops(shape, lengths),
        selection=_selection_flops(shape, recipe_text, text, encoded, visual),
        papers=papers_flops(shape.width, shape.mlp, lengths),
        papers_gated=papers_flops(shape.width, shape.mlp, lengths, matrices=3),
    )


def visual_per_layer(layers: int, encoded: int, stages: Sequence[tuple[int, int]]) -> list[int]:
    """Visual tokens that enter each decoder layer, after cuts (layer, tokens left) of `encoded` tokens."""
    cuts = dict(stages)
    tokens, counts = encoded, []
    for layer in range(layers):
        tokens = cuts.get(layer, tokens)
        counts.append(tokens)
    return counts


def encoder_flops(shape: Shape, slots: int) -> float:
    """Operations of the vision tower for an image of `slots` slots, tile by tile where it is cut into tiles."""
    if shape.tile and slots > shape.tile:
        whole, rest = divmod(slots, shape.tile)
        return whole * encoder_flops(shape, shape.tile) + encoder_flops(shape, rest)
    patches = slots * shape.merge
    n, d = patches + shape.has_cls * (slots > 0), shape.encoder_width
    linear = 2.0 * n * (4 * d * d + (3 if shape.encoder_gated else 2) * d * shape.encoder_mlp)
    windowed = shape.encoder_layers - shape.full_layers
    pairs = shape.full_layers * n * n + windowed * n * min(n, shape.window or n)
    return 2.0 * patches * shape.patch_inputs * d + shape.encoder_layers * linear + 4.0 * d * pairs


def prefill_flops(shape: Shape, lengths: Sequence[int]) -> float:
    """Operations of the decoder for a prompt with `lengths` tokens entering its layers, and one row of logits."""
    d = shape.width
    weights = 2 * d * shape.q_width + 2 * d * shape.kv_width + 3 * d * shape.mlp
    layers = sum(2.0 * n * weights + 2.0 * shape.q_width * n * (n + 1) for n in lengths)
    return layers + 2.0 * d * shape.vocabulary


def papers_flops(width: int, mlp: int, lengths: Sequence[int], matrices: int = 2) -> float:
    """The papers' count: sum of 4 n d^2 + 2 n^2 d + 2 (or 3: `matrices` of the MLP) n d m over the layers."""
    return float(sum(4 * n * width**2 + 2 * n * n * width + matrices * n * width * mlp for n in lengths))


def _selection_flops(shape: Shape, recipe_text: str, text: int, encoded: int, visual: Sequence[int]) -> float | None:
    if recipe_text == _VANILLA:
        return 0.0
    total, present, fused = 0.0, encoded, set[int]()
    for act in recipe(recipe_text).on(shape.info).acts:
        layer = act.layer
        if layer is not None:
            present = visual[layer - 1] if layer else encoded
            edited = [before for before in layers_before(layer) if before not in fused]
            total += sum(_act_fusion(shape, act, text, visual[before], visual[layer]) for before in edited)
            fused |= {*edited} if act.fusion else set()
        load = Load(shape, encoded, present, text)
        for need in act.needs.values():
            cost = need.flops(load)
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

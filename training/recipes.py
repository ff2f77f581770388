"""The stages of training; optimisers start anew with each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: for the log.
        steps: optimiser steps.
        muon_lr, adamw_lr: peak learning rates; the first `WARMUP_STEPS` rise to them.
        dense: dense scenes and no questions about them (text-only option matching instead).
        mixes: (step, expected draws of each task an image) knots, linear in between.
        auxiliary: (step, weight of the auxiliary losses) knots, linear in between.
        decay_from: step at which the cosine to zero begins; None keeps the rate.
        adaptive: draw lagging tasks more often, finished ones less.
        two_option_share: (step, share of multiple-choice questions with two options) knots.
        first_wording_share: share of questions in their task's first wording, beside its share of the rest.
        hints: (step, weight of the loss on `TextBatch.hint`) knots.
        kinds: shares of the kinds of pictures (`training.examples`), of which a step draws one.
        cut_share: share of the steps in which the decoder gets a part of the visual tokens (`training.cuts`).
        late_share: share of the other steps about one picture in which tokens leave inside the decoder.
        photo_share: share of the scenes with a photograph behind them.
        frozen_tower: the vision tower stays as it is.
        contrastive: pictures against captions, for the layers of the tower that methods read (`training.contrast`).
        pairs: of them in a step.
        feature_factor: what the projector's output is multiplied by before the stage (losses do not change).
    """

    name: str
    steps: int
    muon_lr: float
    adamw_lr: float
    dense: bool = False
    mixes: tuple[tuple[int, dict[str, float]], ...] = ()
    auxiliary: tuple[tuple[int, float], ...] = ((0, 1.0),)
    decay_from: int | None = None
    adaptive: bool = False
    two_option_share: tuple[tuple[int, float], ...] = ((0, 0.0),)
    first_wording_share: float = 0.4
    hints: tuple[tuple[int, float], ...] = ((0, 0.0),)
    kinds: tuple[tuple[str, float], ...] = (("scene", 1.0),)
    cut_share: float = 0.0
    late_share: float = 0.0
    photo_share: float = 0.25
    frozen_tower: bool = False
    contrastive: bool = False
    pairs: int = 0
    feature_factor: float = 1.0


WARMUP_STEPS = 30
IMAGES_A_STEP = 16
TEXT_LENGTH = 152

_LOOKUPS = {
    "color": 2.0,
    "shape": 2.0,
    "letter": 1.5,
    "texture": 0.7,
    "ocr": 2.0,
    "size": 1.0,
    "position": 0.7,
    "option": 1.0,
    "exist": 0.5,
    "side": 0.5,
}
_BINDING = {
    "color": 2.5,
    "shape": 2.5,
    "attr_yn": 0.7,
    "exist": 0.7,
    "size": 1.2,
    "position": 1.0,
    "option": 0.7,
    "ocr": 0.7,
    "letter": 0.3,
    "texture": 0.2,
    "count": 0.3,
}
_FIRST = {
    "color": 2.0,
    "shape": 2.0,
    "letter": 0.7,
    "texture": 0.5,
    "ocr": 1.5,
    "size": 1.2,
    "position": 1.2,
    "option": 0.5,
    "exist": 1.0,
    "attr_yn": 0.5,
    "side": 0.7,
    "mcq": 0.5,
    "count": 0.3,
}
_ALL = {
    "exist": 1.2,
    "attr_yn": 0.6,
    "count": 0.9,
    "compare": 0.7,
    "color": 0.8,
    "shape": 0.8,
    "spatial": 0.8,
    "side": 0.6,
    "position": 0.7,
    "size": 0.7,
    "mcq": 1.2,
    "ocr": 1.2,
    "letter": 0.7,
    "texture": 0.4,
    "instruct": 0.8,
    "option": 0.4,
}
_END = _ALL | {"side": 0.1, "option": 0.0, "spatial": 1.1, "compare": 0.9}

_MATCH = _END | {"option": 1.5, "mcq": 1.8}
_WIDE = _END | {"side": 0.3, "mcq_size": 0.8, "size": 1.0, "box": 1.5}
_SETTLE = _WIDE | {"box": 0.0}
_KINDS = (("scene", 0.45), ("page", 0.2), ("screen", 0.2), ("pair", 0.15))
_BROAD = _SETTLE | {"box": 1.0, "count": 1.1}
_ALL_KINDS = (("scene", 0.6), ("page", 0.15), ("screen", 0.13), ("pair", 0.12))
_NUMBERS = _BROAD | {"box": 0.4, "count": 2.5, "compare": 1.4, "texture": 1.0}
_MOSTLY_SCENES = (("scene", 0.84), ("page", 0.04), ("screen", 0.06), ("pair", 0.06))
_POLISH = _END | {"mcq_size": 1.6, "size": 0.9, "count": 1.1}


def _later(wide: int, settle: int, contrast: int, pairs: int, cuts: int) -> tuple[Stage, ...]:
    """What follows when a model can do the first tasks: more kinds of pictures, captions, missing tokens."""
    return (
        Stage(
            "wide",
            wide,
            1.6e-3,
            1.0e-3,
            mixes=((0, _WIDE),),
            auxiliary=((0, 0.3), (700, 0.15)),
            adaptive=True,
            hints=((0, 0.5), (600, 0.3)),
            kinds=_KINDS,
            cut_share=0.25,
        ),
        Stage(
            "settle",
            settle,
            1.4e-3,
            1.0e-3,
            mixes=((0, _SETTLE),),
            auxiliary=((0, 0.3), (settle, 0.1)),
            decay_from=settle // 3,
            adaptive=True,
            hints=((0, 0.4), (settle, 0.1)),
            cut_share=0.4,
        ),
        Stage("contrast", contrast, 1.0e-3, 1.0e-3, decay_from=contrast // 4, contrastive=True, pairs=pairs),
        Stage(
            "cuts",
            cuts,
            8.0e-4,
            5.0e-4,
            mixes=((0, _SETTLE), (cuts * 2 // 3, _POLISH)),
            auxiliary=((0, 0.08),),
            decay_from=cuts // 6,
            adaptive=True,
            hints=((0, 0.1), (cuts * 2 // 3, 0.05)),
            cut_share=0.65,
            frozen_tower=True,
        ),
    )


def _robust(broad: int, contrast: int, pairs: int, end: int) -> tuple[Stage, ...]:
    """The third run: all kinds of pictures, tokens missing before and inside the decoder, captions for patches too."""
    return (
        Stage(
            "broad",
            broad,
            1.4e-3,
            1.0e-3,
            mixes=((0, _BROAD),),
            auxiliary=((0, 0.3), (broad, 0.12)),
            decay_from=broad // 2,
            adaptive=True,
            hints=((0, 0.4), (broad, 0.1)),
            kinds=_ALL_KINDS,
            cut_share=0.3,
            late_share=0.25,
        ),
        Stage("words", contrast, 1.0e-3, 1.0e-3, decay_from=contrast // 4, contrastive=True, pairs=pairs),
        _end("end", end),
    )


def _end(name: str, steps: int) -> Stage:
    """All kinds of pictures with the tower as it is, so that the language model alone gets used to missing tokens."""
    return Stage(
        name,
        steps,
        8.0e-4,
        5.0e-4,
        mixes=((0, _BROAD), (steps // 2, _BROAD | {"count": 1.3, "mcq_size": 1.2})),
        auxiliary=((0, 0.08),),
        decay_from=steps // 5,
        adaptive=True,
        hints=((0, 0.1), (steps, 0.05)),
        kinds=_ALL_KINDS,
        cut_share=0.4,
        late_share=0.25,
        frozen_tower=True,
    )


def _exact(numbers: int, contrast: int, pairs: int) -> tuple[Stage, ...]:
    """The fourth run: counts, and photographs that are not among the ten of the training."""
    return (
        Stage(
            "numbers",
            numbers,
            1.2e-3,
            8.0e-4,
            mixes=((0, _NUMBERS),),
            auxiliary=((0, 0.6), (numbers, 0.3)),
            decay_from=numbers // 5,
            adaptive=True,
            hints=((0, 0.2), (numbers, 0.05)),
            kinds=_MOSTLY_SCENES,
            cut_share=0.35,
            late_share=0.15,
            photo_share=0.4,
        ),
        Stage("names", contrast, 7.0e-4, 7.0e-4, decay_from=contrast // 4, contrastive=True, pairs=pairs),
    )


RECIPES: dict[str, tuple[Stage, ...]] = {
    "llava": (
        Stage("warm-up", 750, 3.9e-3, 1.3e-3, dense=True),
        Stage(
            "joint",
            1100,
            1.6e-3,
            1.2e-3,
            mixes=((0, _LOOKUPS), (350, _LOOKUPS), (500, _ALL)),
            auxiliary=((0, 0.4),),
            adaptive=True,
            two_option_share=((0, 0.5),),
        ),
        Stage(
            "binding",
            300,
            2.0e-3,
            1.2e-3,
            mixes=((0, _BINDING),),
            auxiliary=((0, 0.4),),
            two_option_share=((0, 0.5),),
            first_wording_share=0.8,
            hints=((0, 0.5),),
            feature_factor=0.1,
        ),
        Stage(
            "mixing",
            200,
            1.6e-3,
            1.2e-3,
            mixes=((0, _BINDING), (250, _ALL)),
            auxiliary=((0, 0.3),),
            adaptive=True,
            two_option_share=((0, 0.4),),
            hints=((0, 0.5),),
        ),
        Stage(
            "all",
            1500,
            1.6e-3,
            1.2e-3,
            mixes=((0, _ALL), (700, _ALL), (1100, _END)),
            auxiliary=((0, 0.3), (400, 0.3), (1100, 0.08)),
            decay_from=300,
            adaptive=True,
            two_option_share=((0, 0.4), (500, 0.4), (1000, 0.0)),
            hints=((0, 1.0), (500, 1.0), (1200, 0.05)),
        ),
        Stage(
            "polish",
            600,
            7.0e-4,
            5.0e-4,
            mixes=((0, _POLISH),),
            auxiliary=((0, 0.08),),
            decay_from=150,
            adaptive=True,
            hints=((0, 0.1),),
        ),
        *_later(wide=400, settle=450, contrast=300, pairs=96, cuts=550),
        Stage("captions", 200, 2.0e-3, 1.0e-3, decay_from=120, contrastive=True, pairs=96),
        *_robust(broad=2400, contrast=300, pairs=96, end=1200),
        *_exact(numbers=2200, contrast=120, pairs=96),
        _end("last", 500),
    ),
    "qwen2_5_vl": (
        Stage("warm-up", 750, 3.9e-3, 1.3e-3, dense=True),
        Stage(
            "binding",
            400,
            2.6e-3,
            1.2e-3,
            mixes=((0, _FIRST),),
            auxiliary=((0, 0.3),),
            hints=((0, 0.5),),
            two_option_share=((0, 0.5),),
        ),
        Stage(
            "joint",
            2400,
            2.0e-3,
            1.2e-3,
            mixes=((0, _ALL), (900, _ALL), (1200, _MATCH), (1600, _MATCH), (2000, _END)),
            auxiliary=((0, 0.3), (500, 0.3), (1400, 0.06)),
            hints=((0, 0.4), (600, 0.4), (1200, 0.15), (1700, 0.15), (2200, 0.05)),
            decay_from=900,
            adaptive=True,
            two_option_share=((0, 0.5), (500, 0.5), (1300, 0.2), (1600, 0.2), (1800, 0.0)),
        ),
        *_later(wide=200, settle=400, contrast=120, pairs=48, cuts=420),
        *_robust(broad=1900, contrast=120, pairs=48, end=800),
        *_exact(numbers=1450, contrast=50, pairs=48),
    ),
}

"""Checks that prune a model by an adapter, with methods that use all that it says."""

from __future__ import annotations

import torch

from vlmprune.runtime.session import prune
from vlmprune.testing import model_checks
from vlmprune.testing.adapter_checks import modalities, of_adapter
from vlmprune.testing.adapter_subject import BEFORE, INSIDE, AdapterSubject
from vlmprune.testing.check import Failed, Noted, Skipped
from vlmprune.testing.image_checks import hold
from vlmprune.testing.subject import Subject


@of_adapter(
    "keeping everything gives what the unpruned model gives, bit for bit, also in generation", after=["several_images"]
)
def keep_all(subject: AdapterSubject) -> None:
    hold([*subject.probes.values()], model_checks.keep_all, _generates_the_same)


def _generates_the_same(probe: Subject) -> None:
    with prune(probe.ground.model, probe.recipe(1.0)) as session:
        whole = probe.generate(probe.ground.inputs, session)
    vanilla = probe.generate(probe.ground.inputs)
    if not torch.equal(whole.tokens, vanilla.tokens) or not torch.equal(whole.logits, vanilla.logits):
        raise Failed("expected what the unpruned model generates, but tokens or logits differ")


@of_adapter(
    "a cut before the LLM is exact in generation with a cache: it equals the oracle", after=["keep_all", "positions"]
)
def oracle_before(subject: AdapterSubject) -> None:
    _judge(subject, BEFORE)


@of_adapter(
    "a cut inside the LLM is exact in generation with a cache: it equals the oracle", after=["keep_all", "positions"]
)
def oracle_inside(subject: AdapterSubject) -> None:
    if INSIDE not in subject.probes:
        raise Skipped("no decoder layer before the last has an attention map")
    _judge(subject, INSIDE)


def _judge(subject: AdapterSubject, where: str) -> None:
    hold([subject.probes[where]], model_checks.exact_on_model, model_checks.oracle)


@of_adapter(
    "a batch with padding gives each sample what it gets alone",
    after=["oracle_before", "oracle_inside", "encoder_signals"],
)
def batch(subject: AdapterSubject) -> None:
    hold([*subject.probes.values()], model_checks.alone)


@of_adapter("an image of odd shape is pruned exactly", after=["oracle_before", "oracle_inside"])
def odd_shape(subject: AdapterSubject) -> None:
    hold([*subject.probes.values()], model_checks.odd_shape_on_model)


@of_adapter("in half precision the budget is the same and no logit is NaN", after=["oracle_before", "oracle_inside"])
def half_precision(subject: AdapterSubject) -> None:
    hold([*subject.probes.values()], model_checks.half_precision)


@of_adapter("where the adapter says that it encodes videos, it is checked on videos, frame by frame", of="families")
def video(subjects: list[AdapterSubject]) -> None:
    if not any("video" in one.adapter.feature_functions for one in subjects):
        raise Skipped("it encodes no videos")
    shown = [one for one in subjects if "video" in modalities(one)]
    if not shown and any(one.family is None for one in subjects):
        raise Skipped("the sample is a picture; `--family` shows tiny videos")
    if not shown and subjects[0].videos:
        raise Skipped(f"its tiny models with videos are others: {', '.join(map(repr, subjects[0].videos))}")
    if not shown:
        raise Failed("expected a tiny model with videos among its declarations, but there is none")
    for one in shown:
        hold([one.probes[BEFORE]], _frames)


def _frames(probe: Subject) -> None:
    """A budget frame by frame is spread over all of them."""
    family = probe.ground.family
    assert family is not None
    method = type(probe.method)(per="frame")
    report = Subject(method, probe.ground).forward(probe.ground.inputs).report
    for row, grids in enumerate(report.grids):
        for image, found in enumerate(grids):
            if found is None:
                raise Failed(f"expected a grid with frames for image {image} of sample {row}, but it has none")
            cells, kept = report.cells[row][image], report.kept[row][image]
            frame = cells // (found.rows * found.cols)
            sizes = torch.bincount(frame[cells >= 0], minlength=found.frames)
            left = torch.bincount(frame[kept][cells[kept] >= 0], minlength=found.frames)
            share = len(kept) / len(cells)
            if bool(((left - share * sizes).abs() > 2).any()):
                raise Failed(
                    f"expected the budget spread over the frames of image {image}, but they keep {left.tolist()}"
                )


@of_adapter("its operations are counted, by the widths and depths of this model", after=["declared"])
def operations(subject: AdapterSubject) -> None:
    from vlmprune.bench.shapes import UNCOUNTED, shape_of

    adapter = subject.adapter
    shape = shape_of(adapter.config)
    if shape is None:
        why = UNCOUNTED.get(adapter.family, "`TOWERS` of vlmprune/bench/shapes.py")
        raise Noted(f"its operations are not counted, so tables show a dash ({why})")
    said = {
        "encoder_layers": len(adapter.encoder_layers()),
        "has_cls": adapter.has_cls,
        "layers": len(adapter.decoder_layers),
        "full_layers": len(adapter.encoder_layers() if adapter.full_layers is None else adapter.full_layers),
    }
    for name, due in said.items():
        if getattr(shape, name) != due:
            raise Failed(
                f"expected {name}={due!r}, as the adapter says, but it is counted with {getattr(shape, name)!r}"
            )

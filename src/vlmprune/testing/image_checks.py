"""The methods by which adapters are checked, held against checks of methods; and several images in a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from vlmprune.testing import model_checks
from vlmprune.testing.adapter_checks import of_adapter
from vlmprune.testing.adapter_subject import BEFORE, AdapterSubject
from vlmprune.testing.check import Failed
from vlmprune.testing.subject import KEEP, Subject


def hold(probes: Sequence[Subject], *checks: Callable[[Subject], None]) -> None:
    """Run checks of methods on the probes, which must not be refused; a failure names the probe."""
    for probe in probes:
        try:
            if probe.refused:
                raise Failed(f"expected that it can prune this model, but it is refused: {probe.refused}")
            model_checks.runs(probe)
            for one in checks:
                one(probe)
        except Failed as error:
            raise Failed(f"{error} ({probe.method.name})") from error


@of_adapter("several images of a prompt have a budget each, and no text between them is lost", after=["slots"])
def several_images(subject: AdapterSubject) -> None:
    hold([subject.probes[BEFORE]], _images_of_their_own)


def _images_of_their_own(probe: Subject) -> None:
    run = model_checks.run_of(probe)
    numbers, mask = probe.ground.numbers, probe.ground.inputs["attention_mask"]
    for row, due in enumerate(model_checks.due_counts(probe, KEEP, run.report)):
        left = [len(kept) for kept in run.report.kept[row]]
        if left != due:
            raise Failed(f"expected {due} tokens to be left of the images of sample {row}, but got {left}")
        assert run.report.columns is not None
        columns = run.report.columns[row]
        columns = columns[columns >= 0]
        text = ((numbers[row] < 0) & mask[row].bool()).nonzero().squeeze(1)
        if columns[numbers[row][columns] < 0].tolist() != text.tolist():
            raise Failed(f"expected all text of sample {row}, once and in order, but some is lost or moved")
        for image, kept in enumerate(run.report.kept[row]):
            own = (numbers[row] == image).nonzero().squeeze(1)
            if not torch.equal(own[kept], columns[numbers[row][columns] == image]):
                raise Failed(f"expected the kept slots of image {image} of sample {row} at their columns")

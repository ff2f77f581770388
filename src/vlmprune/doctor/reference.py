"""References for a pruned, cached generation, and the distance up to which logits count as equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlmprune.core.report import RunReport
from vlmprune.doctor.prompts import Prompts
from vlmprune.models.base import Adapter
from vlmprune.runtime import oracle as oracles

TOLERANCE = 1e-3  # of the logits' spread; right and wrong are four orders of magnitude apart
ORACLE_BACKENDS = ("sdpa", "eager")


def no_comparison(adapter: Adapter) -> str | None:
    """Why no logits of this model can be compared, or None."""
    dtypes = {parameter.dtype for parameter in adapter.model.parameters()} - {torch.float32}
    if not dtypes:
        return None
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    return f"it needs float32, and rounding to {names} hides small errors (without a GPU, doctor loads float32)"


def no_oracle(adapter: Adapter) -> str | None:
    """Why the oracle cannot judge this model, or None."""
    backend = adapter.text_model.config._attn_implementation
    if (reason := no_comparison(adapter)) is not None or backend in ORACLE_BACKENDS:
        return reason
    return f"it needs sdpa or eager attention to mask columns, and {backend} is on"


def oracle_name(adapter: Adapter) -> str:
    return "cutting oracle" if oracles.is_cut(adapter.model) else "masking oracle"


def oracle(adapter: Adapter, prompts: Prompts, said: Tensor, report: RunReport, policies: Mapping[int, str]) -> Tensor:
    """[B, N, V] logits of all that was said after the prompts.

    Args:
        said: [B, N] tokens.
        report: of the pruned run.
        policies: position policy by the layer before which a stage acts.
    """
    numbers = image_numbers(adapter, prompts.inputs, report)
    return oracles.oracle(adapter.model, prompts.inputs, prompts.rows, said, report, policies, numbers)


def image_numbers(adapter: Adapter, inputs: Mapping[str, Any], report: RunReport) -> Tensor:
    """[B, S] number of the image that a prompt column shows, as the run told images apart; -1 for text."""
    ids = inputs["input_ids"]
    slots = torch.isin(ids, torch.tensor(list(adapter.placeholder_ids.values()), device=ids.device))
    numbers = torch.full_like(ids, -1)
    for row, images in enumerate(report.cells):
        sizes = torch.tensor([len(cells) for cells in images], device=ids.device)
        numbers[row, slots[row]] = torch.arange(len(sizes), device=ids.device).repeat_interleave(sizes)
    return numbers


def difference(logits: Tensor, expected: Tensor) -> tuple[str, bool]:
    """The largest difference in words, and whether it is within the tolerance (not where it is NaN)."""
    error, limit = float((logits - expected).abs().max()), TOLERANCE * float(expected.std())
    return f"largest difference {error:.1e} (at most {limit:.1e})", error <= limit

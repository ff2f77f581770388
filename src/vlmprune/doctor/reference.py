"""References for a pruned, cached generation, and the distance up to which logits count as equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlmprune.core.recipe import Recipe
from vlmprune.core.report import RunReport
from vlmprune.doctor.prompts import Answer, Prompts
from vlmprune.models.base import Adapter
from vlmprune.runtime.oracle import cutting_oracle, is_recurrent, masking_oracle, with_text

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
    return "cutting oracle" if is_recurrent(adapter.model) else "masking oracle"


def oracle(adapter: Adapter, prompts: Prompts, said: Tensor, report: RunReport, policies: Mapping[int, str]) -> Tensor:
    """[B, N, V] logits of all that was said after the prompts; row by row on a model with recurrent layers.

    Args:
        said: [B, N] tokens.
        report: of the pruned run.
        policies: position policy by the layer before which a stage acts.
    """
    numbers = image_numbers(adapter, prompts.inputs, report)
    if not is_recurrent(adapter.model):
        return masking_oracle(adapter.model, prompts.inputs, said, report, policies, numbers)
    rows = []
    for row, (inputs, start) in enumerate(zip(prompts.rows, prompts.padding, strict=True)):
        own = RunReport(stages=[(layer, [kept[row]]) for layer, kept in report.stages], trimmed=report.trimmed)
        at = slice(row, row + 1)
        rows.append(cutting_oracle(adapter.model, inputs, said[at], own, policies, numbers[at, start:]))
    return torch.cat(rows)


def image_numbers(adapter: Adapter, inputs: Mapping[str, Any], report: RunReport) -> Tensor:
    """[B, S] number of the image that a prompt column shows, as the run told images apart; -1 for text."""
    ids = inputs["input_ids"]
    slots = torch.isin(ids, torch.tensor(list(adapter.placeholder_ids.values()), device=ids.device))
    numbers = torch.full_like(ids, -1)
    for row, images in enumerate(report.cells):
        sizes = torch.tensor([len(cells) for cells in images], device=ids.device)
        numbers[row, slots[row]] = torch.arange(len(sizes), device=ids.device).repeat_interleave(sizes)
    return numbers


def policies_of(adapter: Adapter, recipe: Recipe, positions: str | None = None) -> dict[int, str]:
    """Position policy by layer (0: before the LLM), as the methods of a recipe ask for it, or as it is forced."""
    info, chosen = adapter.info, dict[int, str]()
    for act in recipe.on(info).acts:
        layer, policy = act.layer or 0, positions or act.positions
        chosen[layer] = "compact" if "compact" in (policy, chosen.get(layer)) else policy
    return chosen


@torch.no_grad()
def uncached(adapter: Adapter, inputs: Mapping[str, Any], answer: Answer) -> Tensor:
    """[B, T, V] the logits of an answer by one forward of the whole text, without a cache.

    It says how many tokens stand behind the prompt (`logits_to_keep`), so that methods do not take them for a question.
    Positions are counted as `generate` did, because some scores depend on where the counting begins.
    """
    extra = answer.tokens.shape[1] - 1
    longer = with_text(adapter, inputs, answer.tokens[:, :-1])
    if answer.positions is not None:
        later = answer.positions[..., -1:] + torch.arange(1, extra + 1, device=answer.positions.device)
        longer["position_ids"] = torch.cat([answer.positions, later], dim=-1)
    model: Any = adapter.model
    return model(**longer, use_cache=False, logits_to_keep=extra + 1).logits[:, -extra - 1 :]


def difference(logits: Tensor, expected: Tensor) -> tuple[str, bool]:
    """The largest difference in words, and whether it is within the tolerance (not where it is NaN)."""
    error, limit = float((logits - expected).abs().max()), TOLERANCE * float(expected.std())
    return f"largest difference {error:.1e} (at most {limit:.1e})", error <= limit

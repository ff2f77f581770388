"""What tests on the tiny models share: models, prompts, generation, and the oracle of what they must give."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import vlmprune
from vlmprune.core.recipe import Recipe
from vlmprune.core.report import RunReport
from vlmprune.models import adapter_for
from vlmprune.runtime.encoder_reading import of_encoder
from vlmprune.runtime.oracle import is_recurrent
from vlmprune.runtime.oracle import oracle as oracle_of
from vlmprune.testing import FAMILIES, Family, image_numbers, prompt
from vlmprune.testing import alone as tiny_alone

TOLERANCE = 2e-4
STEPS = 5
EVERYWHERE = ("divprune", "fastv", "three stages", "visionzip")  # before the LLM, inside, both, and made anew
EVERYTHING = ("llava", "qwen2_5_vl")  # families on which every method runs in every mode
Samples = list[list[int | None]]
RAGGED: Samples = [[0, 1], [2]]  # two images interleaved with text beside one: left padding, different counts


@cache
def built(family: str, attention: str = "sdpa") -> Any:
    return FAMILIES[family].build(attention)


def cases(specs: dict[str, str], mode: str = "") -> Any:
    """(family, name of a recipe): everything on two families, and on all others one recipe of each kind.

    Left out are families that lack the mode (`Family.lacks`), and recipes that read an encoder where there is none.
    """
    wanted = {"downsample": resizes, "before and inside": blind}
    pairs = [
        (family, name)
        for family in FAMILIES
        for name, spec in specs.items()
        if mode not in FAMILIES[family].lacks
        and runnable(family, [spec])
        and (family in EVERYTHING or name in EVERYWHERE or wanted.get(name, lambda family: False)(family))
    ]
    return pytest.mark.parametrize(("family", "name"), pairs, ids=[f"{family}-{name}" for family, name in pairs])


def resizes(family: str) -> bool:
    """Whether pictures can be resized before its encoder."""
    return "downsample" not in FAMILIES[family].lacks


def blind(family: str) -> bool:
    """Whether it has no vision encoder."""
    return "encoder" in FAMILIES[family].lacks


def reads_encoder(spec: str, family: str) -> bool:
    """Whether some method of a recipe cannot do without statistics of the family's encoder."""
    acts = vlmprune.recipe(spec).on(adapter_for(built(family)).info).acts
    needs = [need for act in acts for need in act.needs.values()]
    return any(part.required for need in needs for part in of_encoder(need))


families = pytest.mark.parametrize("family", FAMILIES)
seeing = pytest.mark.parametrize("family", [family for family in FAMILIES if not blind(family)])


def runnable(family: str, specs: Iterable[str]) -> list[str]:
    """Those of some recipes that read no encoder where the family has none."""
    return [spec for spec in specs if not (blind(family) and reads_encoder(spec, family))]


def with_specs(specs: Iterable[str], names: Iterable[str] = FAMILIES) -> Any:
    """(family, spec): each recipe on each family that it can run on."""
    return pytest.mark.parametrize(
        ("family", "spec"), [(family, spec) for family in names for spec in runnable(family, specs)]
    )


def inputs_of(family: str, samples: Samples, seed: int = 0) -> dict[str, Tensor]:
    return prompt(FAMILIES[family], samples, seed)


def alone(family: str, samples: Samples, row: int) -> dict[str, Tensor]:
    return tiny_alone(FAMILIES[family], samples, row)


TEXT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


def text_part(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in TEXT if name in inputs}


def oracle(
    family: str,
    samples: Samples,
    inputs: dict[str, Tensor],
    tokens: Tensor,
    report: RunReport,
    policies: dict[int, str],
    numbers: Tensor | None = None,
) -> Tensor:
    """What the pruned logits must be: the masking oracle, or the cutting oracle row by row on recurrent models."""
    model = built(family)
    numbers = image_numbers(FAMILIES[family], samples) if numbers is None else numbers
    rows = [alone(family, samples, row) for row in range(len(samples))] if is_recurrent(model) else []
    return oracle_of(model, inputs, rows, tokens, report, policies, numbers)


def generate(model: Any, inputs: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    """New token ids [B, T] and the logits they were chosen from [B, T, V]."""
    settings = {"max_new_tokens": STEPS, "do_sample": False, **options}
    out = model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **settings)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


def policies(spec: str | Recipe, family: str, forced: str | None = None) -> dict[int, str]:
    """Position policy by layer, as the methods (or the user) ask for it."""
    return vlmprune.recipe(spec).on(adapter_for(built(family)).info).policies(forced)


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def extend(family: str, inputs: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """The inputs with more text behind them, which attends causally."""
    count = tokens.shape[1]
    values = {
        "attention_mask": 1,
        "mm_token_type_ids": 0,
        "token_type_ids": adapter_for(built(family)).later_token_type,
    }
    padded = {
        name: torch.nn.functional.pad(inputs[name], (0, count), value=values[name])
        for name in TEXT[1:]
        if name in inputs
    }
    return {**inputs, **padded, "input_ids": torch.cat([inputs["input_ids"], tokens], dim=1)}


def counted(family: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with position ids as `generate` counts them; with M-RoPE the model makes the same itself.

    DART's norms of rotated keys depend on absolute positions.
    """
    if hasattr(adapter_for(built(family)).inner, "get_rope_index"):
        return inputs
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0) + FAMILIES[family].first_position
    return {**inputs, "position_ids": positions}


SEEDS = [[0, 1], [2], [3]]  # every shape of the tables: two images beside one, padded


def batch(family: Family, samples: list[list[int]]) -> dict[str, Tensor]:
    return prompt(family, [[*sample] for sample in samples])

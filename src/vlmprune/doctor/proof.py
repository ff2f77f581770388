"""Which methods run on a model, and the proof that pruning is exact on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.report import RunReport
from vlmprune.models.base import Adapter
from vlmprune.runtime.oracle import cutting_oracle, is_recurrent, masking_oracle

TOKENS = 4
KEEP = 0.5
TOLERANCE = 1e-3  # of the logits' spread; right and wrong are four orders of magnitude apart
ORACLE_BACKENDS = ("sdpa", "eager")


def try_methods(adapter: Adapter, inputs: Mapping[str, Any]) -> tuple[list[str], bool]:
    """A line a method, those that cannot run together by their reason; and whether none of them broke."""
    lines, unbroken = [f"methods (keep {KEEP}):"], True
    refused: dict[str, list[str]] = {}
    layer = layer_after_attention(adapter)
    for name in sorted(vlmprune.METHODS):
        wanted = [name]
        if is_recurrent(adapter.model) and "layer" in vlmprune.METHODS[name].__dataclass_fields__ and layer:
            wanted.append(f"{name}@{layer}")  # its own layer may be recurrent and have nothing to read
        for spec in wanted:
            try:
                lines.append(f"  {spec:12} works: {_run(adapter, inputs, spec)}")
                break
            except UserError as error:
                refused.setdefault(str(error), []).append(spec)
            except Exception as error:  # a method of a third party may do anything
                lines.append(f"  {spec:12} BREAKS: {type(error).__name__}: {_first_line(error)}")
                unbroken = False
                break
    lines += [f"  {', '.join(names):12} no: {reason}" for reason, names in refused.items()]
    return lines, unbroken


def _run(adapter: Adapter, inputs: Mapping[str, Any], spec: str) -> str:
    with vlmprune.prune(adapter.model, spec, keep=KEEP) as session, torch.no_grad():
        adapter.model(**inputs)
    before, after = session.last.tokens[0]
    read = ", ".join(f"{signal.split('.')[1]} of layer {layer}" for signal, layer in session.last.layers.items())
    return f"{before} -> {after} tokens" + (f"; reads {read}" if read else "")


def layer_after_attention(adapter: Adapter) -> int | None:
    """The first decoder layer, from 2 on where there is one, whose predecessor has an attention map."""
    after = [layer + 1 for layer in adapter.attention_layers if layer + 1 < len(adapter.decoder_layers)]
    return next((layer for layer in after if layer >= 2), after[-1] if after else None)


def proof_recipe(adapter: Adapter) -> str:
    """A cut before the language model, and one inside it where the decoder has a layer to read."""
    layer = layer_after_attention(adapter)
    return "divprune:0.5" if layer is None else f"divprune:0.5 > fastv@{layer}:0.5"


def prove(adapter: Adapter, inputs: Mapping[str, Any]) -> tuple[list[str], bool]:
    """keep 1.0 against the unpruned model, a pruned run against the oracle; and whether both hold."""
    same, proven = _identity(adapter.model, inputs), True
    verdict = "equals vanilla bit for bit" if same else "DIFFERS from vanilla"
    lines = ["proof on this model:", f"  keep 1.0 {verdict}, prefill and {TOKENS} decoded tokens"]
    spec = proof_recipe(adapter)
    if reason := _no_oracle(adapter):
        lines.append(f"  {spec} is not compared with an oracle: {reason}")
    else:
        line, proven = _oracle(adapter, inputs, spec)
        lines.append(f"  {line}")
    return lines, same and proven


def _identity(model: Any, inputs: Mapping[str, Any]) -> bool:
    vanilla = _generate(model, inputs)
    with vlmprune.prune(model, "divprune", keep=1.0):
        whole = _generate(model, inputs)
    return torch.equal(vanilla[0], whole[0]) and torch.equal(vanilla[1], whole[1])


def _no_oracle(adapter: Adapter) -> str | None:
    """Why the oracle cannot judge this model, or None."""
    dtypes = {parameter.dtype for parameter in adapter.model.parameters()} - {torch.float32}
    if dtypes:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        return f"it needs float32, and rounding to {names} hides small errors (without a GPU, doctor loads float32)"
    backend = adapter.text_model.config._attn_implementation
    if backend not in ORACLE_BACKENDS:
        return f"it needs sdpa or eager attention to mask columns, and {backend} is on"
    return None


def _oracle(adapter: Adapter, inputs: Mapping[str, Any], spec: str) -> tuple[str, bool]:
    model = adapter.model
    with vlmprune.prune(model, spec, positions="original") as session:
        tokens, logits = _generate(model, inputs)
    recurrent = is_recurrent(model)
    oracle = cutting_oracle if recurrent else masking_oracle
    numbers = image_numbers(adapter, inputs, session.last)
    expected = oracle(model, inputs, tokens, session.last, image=numbers)
    error, spread = float((logits - expected).abs().max()), float(expected.std())
    equal = error <= TOLERANCE * spread
    name = "cutting oracle (some layers are recurrent)" if recurrent else "masking oracle"
    return (
        f"{spec} {'equals' if equal else 'DIFFERS from'} the {name}: largest difference {error:.1e} on logits of "
        f"spread {spread:.2g}"
    ), equal


def image_numbers(adapter: Adapter, inputs: Mapping[str, Any], report: RunReport) -> Tensor:
    """[1, S] number of the image that a prompt column shows, -1 for text: all of the sample picture's are one."""
    ids = inputs["input_ids"]
    columns = torch.isin(ids[0], torch.tensor(list(adapter.placeholder_ids.values()), device=ids.device))
    sizes = torch.tensor([len(cells) for cells in report.cells[0]], device=ids.device)
    numbers = torch.full_like(ids, -1)
    numbers[0, columns] = torch.arange(len(sizes), device=ids.device).repeat_interleave(sizes)
    return numbers


@torch.no_grad()
def _generate(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    out = model.generate(
        **inputs,
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


def _first_line(error: Exception) -> Any:
    return next(iter(str(error).strip().splitlines()), "")

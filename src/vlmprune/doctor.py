"""`vlmprune doctor MODEL`: where the visual tokens are, which methods work, and a live proof that pruning is exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import vlmprune
from vlmprune.bench.load import load_model
from vlmprune.core.errors import UserError
from vlmprune.core.recipe import recipe
from vlmprune.core.view import Grid
from vlmprune.models import adapter_for
from vlmprune.models.base import Adapter
from vlmprune.report.run import chat_inputs
from vlmprune.runtime.oracle import masking_oracle

TOKENS = 4
PROOF = "divprune:0.5 > fastv:0.5"
QUESTION = "What color is the circle?"


def diagnose(name: str) -> str:
    """Load a model, look at one generated picture, and report.

    Args:
        name: an embedded model, a folder or a hub id.

    Raises:
        UserError: the model cannot be loaded, or its family is not supported.
    """
    loaded = load_model(name)
    adapter = adapter_for(loaded.model)
    inputs = chat_inputs(loaded.processor, sample_picture(), QUESTION).to(loaded.model.device, loaded.model.dtype)
    lines = [*_architecture(name, adapter), "", *_layout(loaded.model, inputs), "", *_methods(loaded.model, inputs), ""]
    return "\n".join([*lines, *_proof(loaded.model, inputs)])


def sample_picture() -> Image.Image:
    """A picture with one bright disc, wider than high, so that a transposed grid would show."""
    rows, cols = torch.meshgrid(torch.arange(168), torch.arange(224), indexing="ij")
    disc = (rows - 60) ** 2 + (cols - 150) ** 2 < 30**2
    picture = torch.full((168, 224, 3), 90, dtype=torch.uint8)
    picture[disc] = torch.tensor([230, 60, 40], dtype=torch.uint8)
    return Image.fromarray(picture.numpy())


def _architecture(name: str, adapter: Adapter) -> Iterator[str]:
    model, info = adapter.model, adapter.info
    attention = adapter.text_model.config._attn_implementation
    dtype = next(model.parameters()).dtype
    yield f"{name}: {type(model).__name__} (family {info.family}), {dtype}, {attention} attention"
    tower = [f"{info.encoder_layers} layers, the projector reads layer {adapter.used_layer}"]
    tower.append("with a CLS token" if info.has_cls else "no CLS token (CLS-attention methods use received attention)")
    if adapter.full_layers is not None:
        tower.append(f"full attention in layers {', '.join(map(str, adapter.full_layers))}, windows elsewhere")
    yield f"vision tower: {'; '.join(tower)}"
    yield f"language model: {info.decoder_layers} decoder layers (0 to {info.decoder_layers - 1})"


def _layout(model: Any, inputs: Any) -> Iterator[str]:
    with vlmprune.prune(model, "random", keep=0.5) as session, torch.no_grad():
        model(**inputs)
    report, length = session.last, inputs["input_ids"].shape[1]
    before, _ = report.tokens[0]
    adapter = adapter_for(model)
    ids = torch.tensor(list(adapter.placeholder_ids.values()), device=inputs["input_ids"].device)
    columns = torch.isin(inputs["input_ids"][0], ids).nonzero().squeeze(1)
    yield (
        f"a sample picture: {before} visual tokens of {length} in the prompt, columns {int(columns[0])} to "
        f"{int(columns[-1])}"
    )
    grid = report.grids[0][0]
    if grid is None:
        yield "its slots form no grid"
        return
    yield f"slot grid {grid.rows} x {grid.cols} (rows x columns); with random:0.5, # is kept and . is dropped:"
    yield from draw_grid(grid, report.kept[0][0])


def draw_grid(grid: Grid, kept: Tensor) -> Iterator[str]:
    """Rows of `#` (kept) and `.` (dropped), the first frame of a video."""
    marks = torch.zeros(grid.size, dtype=torch.bool)
    marks[kept] = True
    for row in marks[: grid.rows * grid.cols].view(grid.rows, grid.cols).tolist():
        yield "  " + " ".join("#" if mark else "." for mark in row)


def _methods(model: Any, inputs: Any) -> Iterator[str]:
    yield "methods (keep 0.5):"
    for name in sorted(vlmprune.METHODS):
        try:
            with vlmprune.prune(model, name, keep=0.5) as session, torch.no_grad():
                model(**inputs)
        except UserError as error:
            yield f"  {name:12} no: {error}"
            continue
        before, after = session.last.tokens[0]
        read = ", ".join(f"{signal.split('.')[1]} of layer {layer}" for signal, layer in session.last.layers.items())
        yield f"  {name:12} works: {before} -> {after} tokens" + (f"; reads {read}" if read else "")


def _proof(model: Any, inputs: Any) -> Iterator[str]:
    yield "proof on this model:"
    vanilla = _generate(model, inputs)
    with vlmprune.prune(model, "divprune", keep=1.0):
        whole = _generate(model, inputs)
    same = torch.equal(vanilla[0], whole[0]) and torch.equal(vanilla[1], whole[1])
    yield f"  keep 1.0 equals vanilla, prefill and {TOKENS} decoded tokens: {'bit for bit' if same else 'NO'}"
    asked = recipe(PROOF)
    with vlmprune.prune(model, asked, positions="original") as session:
        tokens, logits = _generate(model, inputs)
    expected = masking_oracle(model, inputs, tokens, session.last)
    error, scale = float((logits - expected).abs().max()), float(expected.std())
    yield f"  {asked} equals the masking oracle: largest difference {error:.1e} on logits of spread {scale:.2g}"


def _generate(model: Any, inputs: Any) -> tuple[Tensor, Tensor]:
    out = model.generate(
        **inputs,
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)

"""Reading the vision encoder of a vision-language model, by the signals that pruning methods read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import vlmprune
from vlmprune.analyze.reading import Reading
from vlmprune.ask.run import chat_inputs
from vlmprune.bench.load import Loaded
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.needs import Need
from vlmprune.core.recipe import recipe
from vlmprune.core.signals import ClsAttention, ReceivedAttention
from vlmprune.core.view import Grid, ImageView, ModelInfo
from vlmprune.drawing.window import seen_window
from vlmprune.runtime.vision import ImageTokens, joined

_ANY = "What is this?"  # the encoder sees no text, but a processor wants some


@dataclass
class _Probe(Method):
    """Declares the attention of every encoder layer. It is encoded for, never run."""

    name: ClassVar[str] = "probe"
    stage: ClassVar[str] = "vision"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        found: dict[str, Need] = {f"received.{layer}": ReceivedAttention(layer) for layer in range(info.encoder_layers)}
        if info.has_cls:
            found |= {f"cls.{layer}": ClsAttention(layer) for layer in range(info.encoder_layers)}
        return found

    def select(self, view: ImageView) -> Tensor:
        raise NotImplementedError("a probe keeps nothing")


class Tower:
    """The vision encoder of a loaded vision-language model."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    @torch.no_grad()
    def read(self, image: Image.Image) -> Reading:
        """What the encoder did with a picture.

        Raises:
            UserError: the model's encoder cannot be read, or its tokens form no grid that vlmprune knows.
        """
        model, processor = self._loaded.model, self._loaded.processor
        inputs = chat_inputs(processor, image, _ANY).to(model.device, model.dtype)
        probe = _Probe()
        tokens = joined(vlmprune.encode_images(model, inputs, recipe(probe, 0.5)).images())
        grid, cells = _over_picture(tokens, self._loaded.name)

        window = seen_window(processor, image.size)
        features = tokens.features[cells].float().cpu().numpy()
        received = _by_layer(tokens, ReceivedAttention, cells)
        assert received is not None  # the probe needs it of every layer
        return Reading(grid, window, received, _by_layer(tokens, ClsAttention, cells), features)


def _by_layer(tokens: ImageTokens, kind: type[ReceivedAttention | ClsAttention], cells: Tensor) -> np.ndarray | None:
    """[layers, n] a signal of all layers, at the tokens of the grid; None where it was not read."""
    found = {need.layer: value for need, value in tokens.signals.items() if isinstance(need, kind)}
    if not found:
        return None
    return torch.stack([found[layer][cells].float().cpu() for layer in sorted(found)]).numpy()  # type: ignore[type-var]


def _over_picture(tokens: ImageTokens, name: str) -> tuple[Grid, Tensor]:
    """The grid that the tokens form over the picture, and the token at each of its cells, in raster order."""
    for whole in tokens.places.wholes or ():
        shown = (whole.cells >= 0).nonzero().squeeze(1)
        order = whole.cells[shown].argsort()
        if torch.equal(whole.cells[shown][order].cpu(), torch.arange(whole.grid.size)):
            return whole.grid, shown[order]
    raise UserError(f"The visual tokens of {name} form no grid that vlmprune knows: choose another model.")

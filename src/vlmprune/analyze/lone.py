"""Reading a vision encoder without a language model: CLIP, SigLIP, DINO, DeiT, ViT and their kin.

Nothing is known of the encoder by its name. What calls transformers' attention functions is its layers, and which
token shows which patch is tried out: a change of one patch must change one token of the first layer, and that one.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlmprune.analyze.reading import Reading
from vlmprune.core.errors import UserError
from vlmprune.core.view import Grid
from vlmprune.drawing.window import seen_window
from vlmprune.models.weights import first_sentence, load_whole
from vlmprune.runtime.taps import AttentionCall, ahead, capture
from vlmprune.scores import attention_rows, received_attention


@dataclass
class LoneEncoder:
    """A vision encoder of transformers with its image processor.

    Attributes:
        name: as the user wrote it.
        model: what takes pixels.
        processor: makes pixels of a picture.
    """

    name: str
    model: nn.Module
    processor: Any

    def __post_init__(self) -> None:
        self._attentions: list[nn.Module] = []  # one a layer, once a picture has shown them
        self._proven: set[Grid] = set()  # grids of which it is known that token i shows cell i

    @torch.no_grad()
    def read(self, image: Image.Image) -> Reading:
        """What the encoder did with a picture.

        Raises:
            UserError: its attention cannot be read, or its tokens are not the patches of a grid.
        """
        inputs = self._inputs(image)
        grid = self._grid(inputs)
        self._attentions = self._attentions or self._find_attentions(inputs)
        states: list[Tensor] = []
        last = self._stack()[-1]
        handle = last.register_forward_hook(lambda module, args, output: states.append(_first(output)))
        try:
            with capture(self._attentions) as calls:
                self.model(**inputs)
        finally:
            handle.remove()
        each = [self._only(calls[module], grid) for module in self._attentions]
        before = each[0].key.shape[2] - grid.size if each[0].mask is None else 0
        self._prove(inputs, grid, before)
        patches = slice(before, before + grid.size)
        received = torch.stack([received_attention(c.query, c.key, c.scaling, c.real)[0, patches] for c in each])
        paid = None
        if before:  # CLS comes first; registers and DeiT's distillation token follow it
            rows = [attention_rows(c.query[:, :, :1], c.key, c.scaling, c.visible(0, 1))[0, 0, patches] for c in each]
            paid = torch.stack(rows).cpu().numpy()
        features = states[0][0, patches].float().cpu().numpy()
        return Reading(grid, seen_window(self.processor, image.size), received.cpu().numpy(), paid, features)

    def _inputs(self, image: Image.Image) -> dict[str, Tensor]:
        """The arguments of the model for a picture."""
        try:
            made = self.processor(images=image, return_tensors="pt")
        except ValueError as error:
            width, height = image.size
            raise UserError(
                f"The processor of {self.name!r} refuses a picture of {width}x{height} pixels: {first_sentence(error)}"
            ) from error
        known = inspect.signature(self.model.forward).parameters
        names = [name for name in made if name in known or name.startswith("pixel_")]
        weight = next(self.model.parameters())
        return {name: made[name].to(weight.device, weight.dtype if made[name].is_floating_point() else None)
                for name in names}  # fmt: skip

    def _grid(self, inputs: dict[str, Tensor]) -> Grid:
        """The patches of the picture."""
        if "spatial_shapes" in inputs:  # SigLIP 2 takes pictures of any shape
            rows, cols = inputs["spatial_shapes"][0].tolist()
            return Grid(rows, cols)
        size = getattr(self.model.config, "patch_size", None)
        pixels = inputs.get("pixel_values")
        if size is None or pixels is None or pixels.ndim != 4:
            raise UserError(
                f"{self.name!r} does not cut pictures into patches of one size, so its attention has no place on them: "
                "choose an encoder such as CLIP, SigLIP, DINO, DeiT or ViT."
            )
        high, wide = (size, size) if isinstance(size, int) else size
        return Grid(pixels.shape[2] // high, pixels.shape[3] // wide)

    def _find_attentions(self, inputs: dict[str, Tensor]) -> list[nn.Module]:
        """What calls transformers' attention functions while the encoder runs."""
        configured = [
            module
            for module in self.model.modules()
            if getattr(getattr(module, "config", None), "_attn_implementation", None)
        ]
        with capture(configured) as calls:
            self.model(**inputs)
        found = [module for module in configured if calls[module]]
        if not found:
            raise UserError(
                f"The attention of {self.name!r} cannot be read: it does not go through transformers' attention "
                "functions."
            )
        return found

    def _stack(self) -> nn.ModuleList:
        """The list of its layers, each with one of the attention modules, in order."""
        for stack in self.model.modules():
            if isinstance(stack, nn.ModuleList) and len(stack) == len(self._attentions):
                pairs = zip(stack, self._attentions, strict=True)
                if all(any(part is attention for part in layer.modules()) for layer, attention in pairs):
                    return stack
        raise UserError(f"{self.name!r} has {len(self._attentions)} attentions that are not one stack of layers.")

    def _only(self, calls: list[AttentionCall], grid: Grid) -> AttentionCall:
        """The one call of a layer, over all tokens of the picture at once."""
        tokens = calls[0].key.shape[2]
        if len(calls) != 1 or len(calls[0].key) != 1 or calls[0].query.shape[2] != tokens or tokens < grid.size:
            raise UserError(
                f"A layer of {self.name!r} does not attend from all of its tokens to all of them (windows, pooling): "
                "choose an encoder such as CLIP, SigLIP, DINO, DeiT or ViT."
            )
        return calls[0]

    def _prove(self, inputs: dict[str, Tensor], grid: Grid, before: int) -> None:
        """Raise UserError unless token `before + i` shows patch i: the second patch of a row, and the last one."""
        if grid in self._proven:
            return
        plain = self._first_queries(inputs)
        for cell in (1, grid.size - 1):
            changed = self._first_queries({**inputs, "pixel_values": _other(inputs["pixel_values"], cell, grid)})
            moved = (changed - plain).abs().amax((0, 1, 3)).nonzero().flatten().tolist()
            if moved != [before + cell]:
                raise UserError(
                    f"The tokens of {self.name!r} are not the patches of its picture in their order: its attention "
                    "has no place on the picture."
                )
        self._proven.add(grid)

    def _first_queries(self, inputs: dict[str, Tensor]) -> Tensor:
        """[1, H, tokens, d] of the first layer, which mixes no tokens before its attention."""
        return ahead(self._attentions[0], lambda: self.model(**inputs)).query


def _other(pixels: Tensor, cell: int, grid: Grid) -> Tensor:
    """Pixels with another patch at one cell."""
    pixels = pixels.clone()
    if pixels.ndim == 3:  # patches in a row
        pixels[:, cell] += 1
        return pixels
    high, wide = pixels.shape[2] // grid.rows, pixels.shape[3] // grid.cols
    row, col = divmod(cell, grid.cols)
    pixels[:, :, row * high : (row + 1) * high, col * wide : (col + 1) * wide] += 1
    return pixels


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def load_encoder(name: str, path: str, config: Any, device: str) -> LoneEncoder:
    """A vision encoder from a folder or hub id.

    Args:
        name: as the user wrote it.
        config: its config.

    Raises:
        UserError: it cannot be loaded, or takes no pictures.
    """
    import transformers

    named = getattr(transformers, next(iter(config.architectures or ()), ""), transformers.AutoModel)
    try:
        model = load_whole(named, path, name, dtype=torch.float32 if device == "cpu" else "auto")
    except UserError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"transformers cannot load {name!r} as a vision encoder: {first_sentence(error)}") from error
    vision = getattr(model, "vision_model", model)  # of the pairs of a vision and a text encoder
    if getattr(vision, "main_input_name", "") != "pixel_values":
        raise UserError(
            f"{name!r} is a {config.model_type} model, which takes no pictures: give a vision-language model, or an "
            "encoder such as CLIP, SigLIP, DINO, DeiT or ViT."
        )
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(path)
    except Exception as error:  # the same
        raise UserError(f"No image processor could be loaded from {name!r}: {first_sentence(error)}") from error
    return LoneEncoder(name, vision.eval().to(device), processor)

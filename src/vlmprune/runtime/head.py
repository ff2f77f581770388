"""Models with a head that is not a language model's: ColPali, ColQwen2, classifiers.

Such a head reads the hidden states beside the attention mask that the user gave, which knows nothing of dropped tokens.
So it is handed hidden states of the prompt's length, with the tokens that are left at the end of each row's real
columns; what it makes of each token is brought back to the shorter sequence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.errors import UserError
from vlmprune.core.report import RunReport
from vlmprune.models.base import Adapter
from vlmprune.runtime.attributes import Attachments


def can_generate(model: nn.Module) -> bool:
    """Whether the model has transformers' `generate`."""
    return hasattr(model, "generate") and hasattr(model, "prepare_inputs_for_generation")


class Head:
    """Hooks on a model with such a head and on the multimodal model in it.

    Columns of dropped tokens are NaN on the way through the head: one that mixes tokens shows it in what it returns,
    and is refused.
    """

    def __init__(self, adapter: Adapter, report: Callable[[], RunReport]) -> None:
        self.model, self.inner, self.adapter, self.report = adapter.model, adapter.inner, adapter, report
        self.pixels: dict[str, Any] = {}  # kept from a head that would encode them itself, for the model inside
        self.mask: Tensor | None = None
        self.before: RunReport | None = None
        self.width = 0  # columns of the prompt
        self.places: Tensor | None = None  # [B, P] where the tokens that are left stand among them, -1 for a filler

    def install(self, attached: Attachments) -> None:
        """To be called before hooks that read what the multimodal model is given."""
        attached.pre_hook(self.model, self._enter)
        attached.pre_hook(self.inner, self._enter_inner)
        attached.after(self.inner, self._widen, always=False)
        attached.after(self.model, self._shorten, always=False)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.places, self.pixels, self.before = None, {}, self.report()
        parameters = inspect.signature(type(self.model).forward).parameters
        names = [name for name in parameters if name != "self"]
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids")
        self.mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        pixels = [name for name in self.adapter.pixels.values() if kwargs.get(name) is not None]
        if not pixels or ids is None or "inputs_embeds" not in parameters or kwargs.get("inputs_embeds") is not None:
            return (), kwargs
        # A head that takes embeddings may run the tower itself (ColQwen2); the multimodal model does it as well, seen.
        known = inspect.signature(type(self.inner).forward).parameters
        seen = [name for name in kwargs if name in known and name.startswith(("pixel_", "image_", "video_"))]
        self.pixels = {name: kwargs[name] for name in seen if kwargs[name] is not None}
        kwargs = {**kwargs, **dict.fromkeys(seen), "inputs_embeds": self.model.get_input_embeddings()(ids)}  # type: ignore[operator]
        return (), kwargs

    def _enter_inner(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pixels, self.pixels = self.pixels, {}
        embeds = kwargs.get("inputs_embeds")
        ids = kwargs.get("input_ids", args[0] if args else None)
        given = embeds if embeds is not None else ids
        self.width = 0 if given is None else given.shape[1]
        if not pixels:
            return None
        if ids is not None:  # a head that hands on what it is given needed no embeddings
            return args, {**kwargs, **pixels, "inputs_embeds": None}
        return args, {**kwargs, **self._unpadded(pixels)}

    def _unpadded(self, pixels: dict[str, Any]) -> dict[str, Any]:
        """Patches in one row, as Qwen's towers take them, of patches in a padded row per image."""
        found, grids = dict(pixels), pixels.get("image_grid_thw")
        values = pixels.get("pixel_values")
        if values is not None and values.ndim == 3 and grids is not None:
            counts = grids.prod(-1)
            found["pixel_values"] = values[torch.arange(values.shape[1], device=counts.device) < counts[:, None]]
        return found

    def _widen(self, module: nn.Module, args: Any, output: Any) -> Any:
        report = self.report()
        if report is self.before or report.columns is None:
            return None
        hidden = output[0]
        valid = report.columns.to(hidden.device) >= 0
        if valid.shape[1] == self.width:
            return None
        if valid.shape[0] != hidden.shape[0]:
            raise UserError(f"vlmprune cannot prune this call of a {type(self.model).__name__}: repeat no samples.")
        real = torch.ones(len(valid), self.width, dtype=torch.bool, device=hidden.device)
        if self.mask is not None:
            real = self.mask.to(hidden.device).bool()
        self.places = torch.full_like(valid, -1, dtype=torch.long)
        wide = hidden.new_full((len(hidden), self.width, hidden.shape[-1]), float("nan"))
        for row, kept in enumerate(valid):
            self.places[row, kept] = real[row].nonzero().squeeze(1)[-int(kept.sum()) :]
            wide[row, self.places[row, kept]] = hidden[row, kept]
        if isinstance(output, tuple):
            return wide, *output[1:]
        output["last_hidden_state"] = wide
        return output

    def _shorten(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self.places is None:
            return None
        places, self.places = self.places, None
        items = output.items() if isinstance(output, dict) else enumerate(output)
        short = {name: self._short(value, places) for name, value in items}
        if not isinstance(output, dict):
            return tuple(short.values())
        for name, value in short.items():
            output[name] = value
        return output

    def _short(self, value: Any, places: Tensor) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if value.shape[:2] == (len(places), self.width):
            rows = torch.arange(len(places), device=value.device)[:, None]
            places = places.to(value.device)
            value = value[rows, places.clamp(min=0)]
            value = value.masked_fill((places < 0).view(*places.shape, *[1] * (value.ndim - 2)), 0)
        if bool(value.isnan().any()):
            raise UserError(
                f"The head of this {type(self.model).__name__} mixes tokens, so it cannot be given a pruned sequence: "
                "prune the multimodal model in it, and apply the head to the hidden states that it returns."
            )
        return value

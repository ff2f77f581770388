"""The hooks of steps that need none inside the text model, but for layers with a rotary embedding of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vlmprune.models.base import Adapter
from vlmprune.runtime.attributes import Attachments, Removable
from vlmprune.runtime.cache import state_of
from vlmprune.runtime.expected import Expected, interface_of, rotary_ids
from vlmprune.runtime.steady import Step, fits


class StepHooks:
    """Begins such steps, and holds the hooks that are on while layers get a rotary embedding of their own.

    Args:
        now: the step of this thread.
    """

    def __init__(
        self, attached: Attachments, adapter: Adapter, expected: Expected, now: Callable[[], Step | None]
    ) -> None:
        self._expected, self._now, self._hooks = expected, now, Removable(attached)
        if adapter.only_before is not None:
            return  # nothing is re-numbered inside such a model
        rotary: Any = adapter.text_model.rotary_emb
        self._hooks.add(rotary, self._spread)
        self._hooks.add(rotary, self._first, after=True)
        for number, layer in enumerate(adapter.decoder_layers):
            self._hooks.add(layer, self._layer_hook(number))

    def begin(self, cache: Cache | None, given: dict[str, Any], mask: Tensor | None) -> Step | None:
        """A step, if this forward without images need not be watched; with the arguments of `fits`."""
        state = state_of(cache)
        if state is None or cache is None or state.steady is None or torch.compiler.is_compiling():
            return None
        if state.steady.here != self._expected.here or not fits(given, mask, cache):
            return None
        step = Step(self._expected, state.steady, cache)
        if step.renumbers:
            self._hooks.needed()
        else:
            self._hooks.unneeded()
        return step

    def bare(self) -> bool:
        """Take these hooks off; False where another thread needs them."""
        self._hooks.unneeded()
        return not self._hooks.on

    def end(self, step: Step) -> None:
        if step.renumbers:
            self._hooks.over()

    def _spread(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        step = self._now()
        if step is None or kwargs is None:
            return None
        given = interface_of(module).named(args, kwargs)
        return (), {**given, **{name: step.spread(ids) for name, ids in rotary_ids(given).items()}}

    def _first(self, module: nn.Module, args: Any, output: Any) -> Any:
        step = self._now()
        return step.first(output) if step is not None and step.renumbers else None

    def _layer_hook(self, number: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
            step = self._now()
            return None if step is None or kwargs is None else step.at_layer(number, module, args, kwargs)

        return hook

"""Compiled steps of decoding: the plain model's own graph, with nothing of the runtime in it.

`generate` compiles the steps behind a prefill where the cache is static. A hook that keeps what it knows in Python
would break that graph. So a step at which the plain model does right by itself, as a watched one found, is given a
cache of its plain class, position ids behind the shortened prompt, and the mask of what is stored; the hooks let it
pass. All other steps are not compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate

from vlmprune.runtime.attributes import Attachments
from vlmprune.runtime.cache import PrunedState, adopt, release, state_of
from vlmprune.runtime.expected import CACHE, EMBEDS, MASK, POSITIONS, cache_in, cache_of, interface_of
from vlmprune.runtime.steady import lower

if TYPE_CHECKING:
    from vlmprune.runtime.text import TextHooks

_PLAIN = "vlmprune_plain"  # on a cache, while a step runs that the hooks let pass


def passes(given: Mapping[str, Any]) -> bool:
    """Whether a call, by its arguments, is of such a step. The compiler traces it."""
    cache = given.get(CACHE[0])
    return getattr(given.get(CACHE[1]) if cache is None else cache, _PLAIN, False)


def passed(output: Any) -> bool:
    """The same of what a call returned; None where it raised."""
    return output is not None and getattr(cache_of(output), _PLAIN, False)


class CompiledSteps:
    """Stands between `generate` and the compiled model of one session."""

    def __init__(self, model: nn.Module, text: TextHooks) -> None:
        self._model: Any = model
        self._text = text

    def install(self, attached: Attachments) -> None:
        original: Any = getattr(self._model, "get_compiled_call", None)
        if original is None:
            return

        @functools.wraps(original)
        def get_compiled_call(*args: Any, **kwargs: Any) -> Callable[..., Any]:
            return functools.partial(self._call, original(*args, **kwargs))

        attached.put(self._model, "get_compiled_call", get_compiled_call)

    def _call(self, compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = interface_of(self._model).named(args, kwargs)
        cache = cache_in(given)
        if cache is None or not self._can(cache, given) or not self._text.bare():
            return self._model(*args, **kwargs)
        running, state = self._text.running, state_of(cache)
        running.mask, running.ids, running.grown = None, None, 0
        if state is None:
            return self._run(compiled, cache, given)
        release(cache)
        try:
            return self._run(compiled, cache, self._behind(state, cache, given))
        finally:
            adopt(cache, state)

    def _can(self, cache: Cache, given: Mapping[str, Any]) -> bool:
        """Whether the plain model does right: on a whole cache without images, or where a watched step found so."""
        if any(given.get(pixels) is not None for pixels in self._text.adapter.pixels.values()):
            return False
        if (state := state_of(cache)) is None:
            return getattr(cache, "vlmprune_whole", False)
        ids, mask = given.get("input_ids"), self._text.running.mask
        return (
            state.plain is not None
            and state.plain.here == self._text.expected.here
            and isinstance(ids, Tensor)
            and ids.shape[1] == 1
            and given.get(POSITIONS) is not None
            and not self._text.running.other_mask
            and (mask is None or bool(mask[:, -1].all()))  # known before the step, so a GPU is not waited for longer
        )

    def _behind(self, state: PrunedState, cache: Cache, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that a plain model would be given behind the prompt that is left."""
        assert state.plain is not None
        ids = given["input_ids"]
        positions = lower(given[POSITIONS], state.plain.lowered)
        arguments = {
            "config": self._model.config,
            EMBEDS: torch.empty(*ids.shape, 0, dtype=self._model.dtype, device=ids.device),
            MASK: None,
            POSITIONS: positions,
        }
        function: Any = getattr(self._model, "create_masks_for_generate", create_masks_for_generate)
        mask = self._text.expected.mask(function, cache, arguments)
        kinds = {"": mask} if isinstance(mask, Tensor) else mask
        laid = {kind: made.contiguous() for kind, made in kinds.items()}  # as `generate` lays out its own
        return {**given, POSITIONS: positions, MASK: laid.get("", laid)}

    def _run(self, compiled: Callable[..., Any], cache: Cache, given: dict[str, Any]) -> Any:
        setattr(cache, _PLAIN, True)
        try:
            output = compiled(**given)
        finally:
            delattr(cache, _PLAIN)
        if cache_of(output) is not cache:
            self._text.expected.surprise("The compiled model returned another cache than it was given")
        return output

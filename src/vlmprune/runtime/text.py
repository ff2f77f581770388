"""The text side: hooks on the text model and its decoder layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.report import RunReport
from vlmprune.core.signals import Alignment
from vlmprune.models.base import Adapter
from vlmprune.runtime import deepstack
from vlmprune.runtime.cache import state_of
from vlmprune.runtime.decoder_signals import check_readable
from vlmprune.runtime.flow import Prompt
from vlmprune.runtime.forward import Forward
from vlmprune.runtime.select import decoder_stages, fused_layers, vision_stages

if TYPE_CHECKING:
    from vlmprune.runtime.text_tower import TextTower


class TextHooks:
    """Hooks of one session. Each forward of the text model that concerns it is a `Forward`; all others pass untouched.

    Attributes:
        read_prompt: set by the session before each call of the multimodal model that carries images.
        vision_seconds: time that reading the encoder took for these images.
        prompt_mask: the 2-D mask `generate` holds, for when it hands the model a 4-D one.
        report: what the last prefill did.
        text_tower, question: see `Session`.
    """

    def __init__(self, adapter: Adapter, recipe: Recipe, positions: str | None, seed: int) -> None:
        self.adapter, self.recipe, self.positions, self.seed = adapter, recipe, positions, seed
        self.before_llm = vision_stages(adapter, recipe)
        self.at_layer = decoder_stages(adapter, recipe)
        self.fused = fused_layers(adapter, self.at_layer)
        for layer, stage in self.at_layer.items():
            check_readable(adapter, layer, stage.method.needs(adapter.info).values())
        self.read_prompt: Callable[[], Prompt | None] | None = None
        self.vision_seconds = 0.0
        self.prompt_mask: Tensor | None = None
        self.report = RunReport()
        self.text_tower: TextTower | None = None
        self.question: str | list[str] | None = None
        self._forward: Forward | None = None
        self._handles: list[Any] = []
        self._undo_deepstack: Callable[[], None] = lambda: None

    def install(self) -> None:
        text = self.adapter.text_model
        self._handles = [
            text.register_forward_pre_hook(self._enter, with_kwargs=True),
            text.register_forward_hook(self._leave, always_call=True),
        ]
        for number, layer in enumerate(self.adapter.decoder_layers):
            self._handles.append(layer.register_forward_pre_hook(self._layer_hook(number), with_kwargs=True))
        self._undo_deepstack = deepstack.wrap(
            text, lambda: None if self._forward is None else self._forward.current.index
        )

    def remove(self) -> None:
        self._end()
        self._undo_deepstack()
        for handle in self._handles:
            handle.remove()

    @property
    def text_read(self) -> str | None:
        """What text-guided methods compared the image with."""
        needs = (
            need
            for stage in self.recipe.acts(self.adapter.info)
            for need in stage.method.needs(self.adapter.info).values()
        )
        if not any(isinstance(need, Alignment) for need in needs):
            return None
        return "instruction embeddings" if self.text_tower is None else "CLIP text tower"

    def policy(self, stage: Stage) -> str:
        return self.positions or stage.method.positions(self.adapter.info)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        read, self.read_prompt = self.read_prompt, None
        prompt = read() if read is not None else None
        mask, self.prompt_mask = self.prompt_mask, None
        if prompt is None and state_of(kwargs.get("past_key_values")) is None:
            return None
        if prompt is not None:
            self.adapter.check_prompt(kwargs)
        self._forward = Forward(self, prompt, mask, kwargs)
        return args, self._forward.enter(kwargs)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        forward = self._end()
        if forward is not None and output is not None:  # None after an exception
            forward.leave(output)

    def _end(self) -> Forward | None:
        forward, self._forward = self._forward, None
        if forward is not None:
            forward.stop_capture()
        return forward

    def _layer_hook(self, number: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return None if self._forward is None else self._forward.at_layer(number, args, kwargs)

        return hook

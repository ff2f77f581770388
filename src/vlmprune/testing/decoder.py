"""What passes through a decoder layer of an unpruned model, by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vlmprune.models.base import Adapter


def following(adapter: Adapter, layer: int, run: Callable[[], Any]) -> nn.Module:
    """The norm that the text model runs first in a decoder layer, or behind the last one.

    It is an identity where a layer begins with its projections (Molmo2-O).
    """
    layers, ran = adapter.decoder_layers, list[nn.Module]()
    begun = False

    def begin(module: nn.Module, args: Any, output: Any = None) -> None:
        nonlocal begun
        begun = True

    def note(module: nn.Module, args: Any) -> None:
        if begun:
            ran.append(module)

    last = layer == len(layers)
    handles = [layers[-1].register_forward_hook(begin) if last else layers[layer].register_forward_pre_hook(begin)]
    parts = [module for module in adapter.text_model.modules() if not any(True for _ in module.children())]
    handles += [module.register_forward_pre_hook(note) for module in parts]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return nn.Identity() if isinstance(ran[0], nn.Linear) else ran[0]


@contextmanager
def watched(adapter: Adapter, layer: int) -> Iterator[dict[str, Tensor]]:
    """A layer's "input" and "output", its attention "maps" (eager attention only), what its "mlp" reads and the "next"
    layer gets, and the "embeds" that enter the language model."""
    seen: dict[str, Tensor] = {}
    module: Any = adapter.decoder_layers[layer]
    mlp: Any = next(getattr(module, name) for name in ("mlp", "feed_forward") if hasattr(module, name))
    following = adapter.decoder_layers[layer + 1 : layer + 2]

    def note_input(name: str) -> Any:
        def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[name] = args[0] if args else kwargs["hidden_states"]

        return note

    def note_text(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["embeds"] = kwargs["inputs_embeds"]

    def note_output(module: Any, args: Any, output: Any) -> None:
        seen["output"] = output[0] if isinstance(output, tuple) else output

    handles = [
        module.register_forward_pre_hook(note_input("input"), with_kwargs=True),
        module.register_forward_hook(note_output),
        # what the next layer gets: deepstack adds to the output in between
        *(after.register_forward_pre_hook(note_input("next"), with_kwargs=True) for after in following),
        mlp.register_forward_pre_hook(lambda _, args: seen.__setitem__("mlp", args[0])),
        adapter.text_model.register_forward_pre_hook(note_text, with_kwargs=True),
    ]
    if adapter.layer_kind(layer) != "linear_attention":
        attention = adapter.decoder_attention(layer)
        handles.append(attention.register_forward_hook(lambda _, args, out: seen.__setitem__("maps", out[1])))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()

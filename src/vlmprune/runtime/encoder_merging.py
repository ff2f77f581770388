"""Merging inside a plain vision transformer: between attention and MLP of each layer, by hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.errors import UserError
from vlmprune.core.roles import MergesInside, goes_to
from vlmprune.runtime.attributes import put
from vlmprune.runtime.taps import Capture

PARTS = ("self_attn", "layer_norm2", "mlp")  # of a layer of CLIP or SigLIP


def spread_over_layers(tokens: int, keep: int, layers: int) -> list[int]:
    """How many of `tokens` to merge away in each layer so that `keep` are left: evenly, never more than half of them.

    Where the even share would leave more than later layers can still halve down to `keep`, earlier ones merge more.
    """
    counts = []
    for layer in range(layers):
        left = layers - layer
        even = -(-(tokens - keep) // left)
        least = tokens - keep * 2 ** (left - 1)  # later layers halve at best
        counts.append(min(max(even, least, 0), tokens // 2, tokens - keep))
        tokens -= counts[-1]
    if tokens > keep:
        raise UserError(
            f"{tokens} tokens cannot be merged down to {keep} in this encoder's {layers} layers: keep more."
        )
    return counts


class EncoderMerging:
    """One run of a tower on pictures of as many patches each.

    Args:
        layers: the tower's layers up to the one that is projected.
        keep: patch tokens to leave of `patches`.
        cls: whether a CLS token stands first.
    """

    def __init__(
        self, method: MergesInside, layers: Sequence[nn.Module], patches: int, keep: int, cls: bool, family: str
    ) -> None:
        if not all(hasattr(layer, part) for layer in layers for part in PARTS):
            raise UserError(
                f"{method.name}(inside=True) knows layers of CLIP and SigLIP towers, not those of {family}."
            )
        attention: Any = self._part(layers[0], "self_attn")
        if method.proportional and attention.config._attn_implementation not in ("sdpa", "eager"):
            raise UserError(f"{method.name}: sizes count in attention under sdpa and eager only; set prop_attn=False.")
        self.method, self.layers, self.cls = method, layers, cls
        self.counts = spread_over_layers(patches, keep, len(layers))
        self.sizes: Tensor | None = None  # [pictures, t]
        self.first: Tensor | None = None  # [pictures, t] the first patch that each token stands for, CLS counted
        self.into: Tensor | None = None  # [pictures, patches] the token that each patch is part of, CLS counted
        self._entering: Tensor | None = None
        self._handles: list[Any] = []
        self._undo: list[Callable[[], None]] = []
        self._tap = Capture([self._part(layer, "self_attn") for layer in layers])

    @staticmethod
    def _part(layer: Any, name: str) -> Any:
        return getattr(layer, name)

    def __enter__(self) -> EncoderMerging:
        self._tap.start()
        for number, layer in enumerate(self.layers):
            mlp = self._part(layer, "mlp")
            real = mlp.forward
            self._undo.append(put(mlp, "forward", torch.zeros_like))  # the layer's own sum is that of too many tokens
            self._handles += [
                layer.register_forward_pre_hook(self._weigh, with_kwargs=True),
                self._part(layer, "layer_norm2").register_forward_pre_hook(self._note),
                # before transformers' own hook, which records hidden states
                layer.register_forward_hook(self._merge(number, layer, real), prepend=True),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        self._tap.stop()
        for handle in self._handles:
            handle.remove()
        for undo in self._undo:
            undo()

    def _weigh(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.sizes is None or not self.method.proportional:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        mask = self.sizes.log().to(hidden)[:, None, None].expand(-1, 1, hidden.shape[1], -1)
        return (args[:1], {**kwargs, "attention_mask": mask})

    def _note(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._entering = args[0]

    def _merge(self, number: int, layer: Any, mlp: Any) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            assert self._entering is not None
            hidden = self._step(self._entering, self._tap.calls[layer.self_attn][-1].key, self.counts[number])
            result = hidden + mlp(layer.layer_norm2(hidden))
            return (result, *output[1:]) if isinstance(output, tuple) else result

        return hook

    def _step(self, hidden: Tensor, keys: Tensor, count: int) -> Tensor:
        """Merge `count` tokens of each picture."""
        if self.sizes is None or self.first is None:
            places = torch.arange(hidden.shape[1], device=hidden.device).expand(len(hidden), -1)
            self.sizes, self.first, self.into = torch.ones_like(places, dtype=torch.float32), places, places
        if not count:
            return hidden
        assert self.into is not None
        rows, sizes, first, into = [], [], [], []
        for picture in range(len(hidden)):
            step = self.method.merging(keys[picture].float().mean(0), count, self.cls)
            merged, size = step.merge(hidden[picture].float(), self.sizes[picture])
            places = self.first[picture]
            rows.append(merged.to(hidden))
            sizes.append(size)
            first.append(places[step.stay].scatter_reduce(0, step.joined, places[step.leave], "amin"))
            into.append(goes_to(step, len(places))[self.into[picture]])
        self.sizes, self.first, self.into = torch.stack(sizes), torch.stack(first), torch.stack(into)
        return torch.stack(rows)

    def anchors(self) -> list[Tensor]:
        """For each picture [keep] the first patch that each token left stands for, in the order the tower returns."""
        assert self.first is not None
        return list(self.first[:, int(self.cls) :] - int(self.cls))

    def members(self) -> list[Tensor]:
        """For each picture [patches] the token left (0..keep-1) that each patch is part of."""
        assert self.into is not None
        return list(self.into[:, int(self.cls) :] - int(self.cls))

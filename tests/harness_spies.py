"""Methods that note what they are shown, and what a session could leave behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlmprune.core.method import DecoderMethod, Method
from vlmprune.core.needs import Need
from vlmprune.core.view import ImageView


class Spy(Method):
    """Keeps the first tokens and remembers what it was shown."""

    name, stage = "spy", "vision"

    def __init__(self, needs: dict[str, Any]) -> None:
        self.wanted, self.seen = needs, []

    def needs(self, info: Any) -> dict[str, Any]:
        return self.wanted

    def select(self, view: ImageView) -> torch.Tensor:
        self.seen.append({name: view[name] for name in self.wanted})
        return torch.arange(view.keep)


class InnerSpy(Spy):
    stage = "decoder"

    def __init__(self, layer: int, needs: dict[str, Any]) -> None:
        super().__init__(needs)
        self.layer = layer

    decoder_layer = DecoderMethod.decoder_layer


class Onlooker(InnerSpy):
    """Drops all but the first tokens in its first prompt, and none later."""

    exact = False

    def __init__(self, layer: int, needs: dict[str, Need], images: int) -> None:
        super().__init__(layer, needs)
        self.images = images

    def budget(self, act: Any, n: int, total: int) -> int:
        return n - 1

    def select(self, view: ImageView) -> Tensor:
        super().select(view)
        return torch.arange(3 if len(self.seen) <= self.images else view.n)


def fingerprint(model: torch.nn.Module) -> dict[str, Any]:
    """Everything a session could leave behind."""
    state: dict[str, Any] = {"weights": {name: value.clone() for name, value in model.state_dict().items()}}
    for name, module in model.named_modules():
        hooks = [len(getattr(module, kind)) for kind in vars(module) if kind.endswith("hooks")]
        state[name] = (sorted(key for key in vars(module)), hooks, type(module), type(module).forward)
    state["attention"] = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    return state


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    weights = all(torch.equal(a["weights"][name], b["weights"][name]) for name in a["weights"])
    return weights and {k: v for k, v in a.items() if k != "weights"} == {k: v for k, v in b.items() if k != "weights"}

"""An adapter on one model: what the model does without pruning, and methods by which it is pruned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vlmprune.models import adapter_for
from vlmprune.models.base import Adapter
from vlmprune.runtime.expected import interface
from vlmprune.runtime.vision import current_names
from vlmprune.testing.adapters import Declared
from vlmprune.testing.check import Failed, Skipped, method_of
from vlmprune.testing.family import Family
from vlmprune.testing.subject import Ground, Subject

BEFORE, INSIDE = "before", "inside"


def layer_after_attention(adapter: Adapter) -> int | None:
    """The first decoder layer, from 2 on where there is one, whose predecessor has an attention map.

    None where there is none, or tokens cannot be cut inside the language model.
    """
    if adapter.only_before is not None:
        return None
    after = [layer + 1 for layer in adapter.attention_layers if layer + 1 < len(adapter.decoder_layers)]
    return next((layer for layer in after if layer >= 2), after[-1] if after else None)


@dataclass
class Encoded:
    """One call of a function that encodes images or videos.

    Attributes:
        modality: "image" or "video".
        adapter: as the call sees the model.
        call: its arguments.
        pooled: what it returned as features.
    """

    modality: str
    adapter: Adapter
    call: dict[str, Any]
    pooled: Any


class AdapterSubject:
    """An adapter's class on one model.

    Attributes:
        cls: the class.
        ground: the model, and prompts for it.
        family: what is declared of a tiny model; None for a user's model.
        videos: the names of tiny models with videos that there are for the class.
    """

    def __init__(self, adapter: Declared, ground: Ground) -> None:
        self.cls, self.ground, self.family = adapter.adapter, ground, ground.family
        self.videos = [name for name, family in adapter.all.items() if "video" in family.modalities]

    @cached_property
    def adapter(self) -> Adapter:
        """As `prune` finds it; `Failed` where that is another one."""
        found = adapter_for(self.ground.model)
        expected = self.cls.variant(found.inner.config)
        if type(found) is not expected:
            kind = self.ground.model.config.model_type
            raise Failed(
                f"expected that a {kind} model gets {expected.__name__}, but it gets {type(found).__name__} "
                "(see `families` and `knows`)"
            )
        return found

    @property
    def declared(self) -> Family:
        """What is declared of the tiny model."""
        if self.family is None:
            raise Skipped("it needs a declaration, which tiny models have (`--family`)")
        return self.family

    @cached_property
    def probes(self) -> dict[str, Subject]:
        """Methods that use all that an adapter says: they cut before the LLM, inside it, by the encoder, and merge."""
        layer = layer_after_attention(self.adapter)
        chosen = {BEFORE: "divprune"} | ({} if layer is None else {INSIDE: f"fastv@{layer}"})
        if not self.unreadable:
            chosen |= {"encoder": "hiprune", "merging": "visionzip"}
        return {name: Subject(method_of(text), self.ground) for name, text in chosen.items()}

    @cached_property
    def unreadable(self) -> str:
        """Why the adapter lets no method read the encoder, at the start or at the first prompt; "" where it does."""
        return Subject(method_of("hiprune"), self.ground).refused or ""

    @contextmanager
    def encoding(self) -> Iterator[list[Encoded]]:
        """While each outermost call of a function that encodes is noted."""
        adapter, found, inside = self.adapter, list[Encoded](), list[str]()
        own = {name: getattr(adapter.inner, name) for name in adapter.feature_functions.values()}

        def recorder(modality: str, name: str) -> Any:
            def record(*args: Any, **kwargs: Any) -> Any:
                inside.append(name)
                try:
                    output = own[name](*args, **kwargs)
                finally:
                    inside.pop()
                if not inside:  # get_video_features of some families calls get_image_features
                    named = current_names(adapter, interface(own[name]).named(args, kwargs))
                    pooled = getattr(output, adapter.features_in, output)
                    found.append(Encoded(modality, adapter.called_with(name, named), named, _copied(pooled)))
                return output

            return record

        try:
            for modality, name in adapter.feature_functions.items():
                setattr(adapter.inner, name, recorder(modality, name))
            yield found
        finally:
            for name in own:
                delattr(adapter.inner, name)


def _copied(pooled: Any) -> Any:
    return pooled.clone() if isinstance(pooled, Tensor) else [rows.clone() for rows in pooled]


@torch.no_grad()
def embeddings(adapter: Adapter, inputs: dict[str, Any]) -> Tensor:
    """[B, S, D] what enters the language model in an unpruned forward."""
    seen: list[Tensor] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["inputs_embeds"])

    handle = adapter.text_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        model: Any = adapter.model
        model(**inputs)
    finally:
        handle.remove()
    return seen[0]

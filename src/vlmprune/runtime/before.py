"""The stages before the LLM: what methods choose among the tokens of each image, one act after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlmprune.core.act import Act
from vlmprune.core.fates import DROPPED, Fate
from vlmprune.core.roles import Observes, changes_encoding
from vlmprune.core.view import ImageView, Merged, Selection
from vlmprune.runtime.prompt_reading import Picked
from vlmprune.runtime.select import Choice, Known, choices_of, due_of, observe, view_of
from vlmprune.runtime.vision import ImageTokens


@dataclass
class Entering:
    """One image before the LLM.

    Attributes:
        image: its tokens.
        acts: those before the LLM, taken `at` this image.
        shown: [count] which of its slots the attention mask does not hide; None if it hides none.
        known: changed by the acts, and handed on to those inside the LLM.
        states: its tokens as they came from the tower, then after each act.
    """

    image: ImageTokens
    acts: Sequence[Act]
    shown: Tensor | None
    known: Known
    states: list[Picked] = field(init=False)

    def __post_init__(self) -> None:
        image, device = self.image, self.image.features.device
        resized = image.features.shape[0] < image.count
        whole = torch.arange(image.features.shape[0], device=device)
        if self.shown is not None:
            whole = whole[self.shown.to(device)[image.slots]]
        origin = torch.full_like(whole, -1) if image.made else whole
        self.states = [Picked(origin, image.slots[whole], image.features[whole] if resized else None)]
        self.known.fate = Fate(_beginning(image, self.states[0].slots))

    def asked(self, number: int) -> ImageView | None:
        """What the act of this number is to choose from; None where everything stays. Methods that observe do so."""
        act, now = self.acts[number], self.states[-1]
        so_far = self.known.so_far[act.stage]
        so_far.reached = so_far.reached or len(now.slots)
        act = act.of(so_far.reached, self.image.grid, self.image.video)
        keep = due_of(act, self.image, now.slots, so_far.reached)
        acted, stays = changes_encoding(act.method), keep >= len(now.slots)
        if acted or (stays and not isinstance(act.method, Observes)):
            return None
        view = view_of(act, self.image, now, min(keep, len(now.slots)), self.known)
        observe(view)
        return None if stays else view

    def go_on(self, choice: Choice | None) -> None:
        """With what an act chose, or with everything."""
        now = self.states[-1]
        self.states.append(now if choice is None else _apply(choice.selection, now, self.image))
        self.known.note(None if choice is None else choice.step(now.slots, self.states[-1].slots))


def run_vision_acts(images: Sequence[Entering]) -> None:
    """Let the acts before the LLM choose, one after another, each of all images that have the same acts."""
    for number in range(len(images[0].acts) if images else 0):
        for image, choice in zip(images, choices_of(image.asked(number) for image in images), strict=True):
            image.go_on(choice)


def _beginning(image: ImageTokens, slots: Tensor) -> Tensor:
    """The slot of the token that each of an image's slots is part of before any act (`Fate.start`)."""
    own = torch.full((image.count,), DROPPED, device=slots.device)
    own[slots] = slots
    if image.members is None:
        return own
    into = image.slots[image.members.to(slots.device)]  # merged inside the encoder
    return torch.where(own[into] >= 0, into, DROPPED)


def _apply(chosen: Selection, now: Picked, image: ImageTokens) -> Picked:
    if not isinstance(chosen, Merged):
        features = None if now.features is None else now.features[chosen]
        return Picked(now.origin[chosen], now.slots[chosen], features)
    features = image.adapter.project(chosen.features) if chosen.space == "tower" else chosen.features
    anchors = chosen.anchors.to(now.slots.device)
    slots = torch.where(anchors >= 0, now.slots[anchors.clamp(min=0)], -1)
    return Picked(torch.full_like(slots, -1), slots, features.to(image.features))

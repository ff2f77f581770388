"""A stage inside the LLM: what a method chooses among the tokens that reach a decoder layer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlmprune.core.act import Act
from vlmprune.core.needs import DecoderNeed
from vlmprune.core.roles import Fusing, Observes
from vlmprune.core.view import ImageView, Merged
from vlmprune.models.base import Adapter
from vlmprune.runtime.decoder_reading import DecoderReader
from vlmprune.runtime.flow import Layout, Prompt
from vlmprune.runtime.prompt_reading import Picked, prompt_signals
from vlmprune.runtime.prompt_text import ImageText
from vlmprune.runtime.select import SoFar, choose, fusion_candidates, observe
from vlmprune.runtime.vision import ImageTokens


@dataclass
class Chosen:
    """What goes on of one image, in order.

    Attributes:
        index: [m] physical index of the token that each one is, or that lends it its place.
        slots: [m] slot, -1 for none.
        origin: [m] row of the image's encoder signals, -1 for a merged token.
        features: [m, D] hidden states of those that are `new`; None where all are tokens as they were.
        new: [m] which ones are new.
    """

    index: Tensor
    slots: Tensor
    origin: Tensor
    features: Tensor | None = None
    new: Tensor | None = None


def view_of(
    adapter: Adapter,
    act: Act,
    data: ImageTokens,
    text: ImageText,
    now: Picked,
    keep: int,
    seed: int,
    so_far: SoFar,
) -> ImageView:
    """What a method inside the LLM sees of an image, without the signals of decoder layers."""
    signals, cells = prompt_signals(act, data, text, now), data.cells(now.slots)
    return ImageView(keep, now.slots, data.grid, adapter.info, signals, seed, cells, data.count, so_far.memory, act)


def candidates_of(
    adapter: Adapter, act: Act, layout: Layout, prompt: Prompt, row: int, image: int, text: ImageText, seed: int,
    so_far: SoFar,
) -> Tensor:  # fmt: skip
    """Physical indices of the tokens of one image to which fusion draws attention, of those that are there now."""
    data = prompt.rows[row][image].tokens
    tokens = (layout.image[row] == image).nonzero().squeeze(1)
    act = act.at(prompt.samples[row], image)
    keep = act.budget(len(tokens), so_far.reached or len(tokens))
    if keep >= len(tokens) or not isinstance(act.method, Fusing):
        return tokens[:0]
    now = Picked(layout.origin[row, tokens], layout.slot[row, tokens])
    view = view_of(adapter, act, data, text, now, keep, seed, so_far)
    return tokens[fusion_candidates(act.method, view)]


@dataclass
class Inside:
    """One act on all images of a prompt.

    Attributes:
        number: the decoder layer before which it acts.
        rows: for each row what is chosen of each image.
        cut: whether anything was.
    """

    act: Act
    number: int
    prompt: Prompt
    reader: DecoderReader
    rows: list[list[Chosen]] = field(default_factory=list)
    cut: bool = False

    def choose(self, row: int, image: int, text: ImageText, seed: int, so_far: SoFar) -> Chosen:
        """Let the method choose among the tokens of one image that reach this layer."""
        layout, data = self.reader.layout, self.prompt.rows[row][image].tokens
        tokens = (layout.image[row] == image).nonzero().squeeze(1)
        slots, origin = layout.slot[row, tokens], layout.origin[row, tokens]
        so_far.reached = so_far.reached or len(tokens)
        act = self.act.at(self.prompt.samples[row], image)
        keep = act.budget(len(tokens), so_far.reached)
        stays = keep >= len(tokens)
        if stays and not isinstance(act.method, Observes):
            return Chosen(tokens, slots, origin)
        keep = min(keep, len(tokens))
        view = view_of(self.reader.adapter, act, data, text, Picked(origin, slots), keep, seed, so_far)
        reading = self.reader.at(row, tokens)
        inner = {name: need.read(reading) for name, need in act.needs.items() if isinstance(need, DecoderNeed)}
        view = replace(view, signals={**view.signals, **inner})
        observe(view)
        if stays:
            return Chosen(tokens, slots, origin)
        self.cut = True
        chosen = choose(view)
        if not isinstance(chosen, Merged):
            return Chosen(tokens[chosen], slots[chosen], origin[chosen])
        anchors = chosen.anchors.to(tokens.device)
        new = torch.ones_like(anchors, dtype=torch.bool) if chosen.unchanged is None else ~chosen.unchanged
        new = new.to(tokens.device)
        at = anchors.clamp(min=0)
        own = torch.where(anchors >= 0, slots[at], -1)
        return Chosen(tokens[at], own, torch.where(new, -1, origin[at]), chosen.features, new)

    def order(self, row: int) -> Tensor:
        """Physical indices of all tokens of a row that go on, new ones together where their image's stretch begins."""
        layout = self.reader.layout
        text = layout.valid[row] & (layout.image[row] < 0)
        indices = [text.nonzero().squeeze(1)]
        places = [indices[0]]
        for image, chosen in enumerate(self.rows[row]):
            indices.append(chosen.index)
            if chosen.features is None:
                places.append(chosen.index)
            else:
                places.append(self._stretch(layout, row, image, chosen.index))
        return torch.cat(indices)[torch.sort(torch.cat(places), stable=True).indices]

    @staticmethod
    def _stretch(layout: Layout, row: int, image: int, index: Tensor) -> Tensor:
        """Where the stretch of an image's tokens begins that each of these tokens stands in."""
        own = (layout.image[row] == image).nonzero().squeeze(1)
        starts = torch.cat([own[:1], own[1:][own.diff() > 1]])
        return starts[torch.searchsorted(starts, index, right=True) - 1]

    def write(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Put new tokens into the shortened hidden states, and into the layout where they came from."""
        for row, images in enumerate(self.rows):
            for image, chosen in enumerate(images):
                if chosen.features is None or chosen.new is None:
                    continue
                here = (layout.image[row] == image).nonzero().squeeze(1)
                layout.slot[row, here], layout.origin[row, here] = chosen.slots, chosen.origin
                made = here[chosen.new].to(hidden.device)
                hidden[row, made] = chosen.features[chosen.new.to(chosen.features.device)].to(hidden)
        return hidden

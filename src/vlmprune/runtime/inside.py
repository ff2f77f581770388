"""A stage inside the LLM: what a method chooses among the tokens that reach a decoder layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlmprune.core.act import Act
from vlmprune.core.needs import DecoderNeed
from vlmprune.core.roles import Fusing, Observes
from vlmprune.core.view import Merged, Selection
from vlmprune.runtime.decoder_reading import DecoderReader
from vlmprune.runtime.flow import ImageAt, Layout, Prompt
from vlmprune.runtime.prompt_reading import Picked
from vlmprune.runtime.select import Known, choice_of, due_of, fusion_candidates, observe, view_of


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


def candidates_of(act: Act, layout: Layout, prompt: Prompt, at: ImageAt, known: Known) -> Tensor:
    """Physical indices of the tokens of one image to which fusion draws attention, of those that are there now."""
    tokens = layout.tokens_of(at)
    reached = known.so_far[act.stage].reached or len(tokens)
    image = prompt[at].tokens
    act = act.at(prompt.samples[at.row], at.number, len(prompt.rows[at.row])).of(reached, image.grid, image.video)
    now = Picked(layout.origin[at.row, tokens], layout.slot[at.row, tokens])
    keep = due_of(act, image, now.slots, reached)
    if keep >= len(tokens) or not isinstance(act.method, Fusing):
        return tokens[:0]
    return tokens[fusion_candidates(act.method, view_of(act, image, now, keep, known))]


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

    def choose(self, at: ImageAt, known: Known) -> Chosen:
        """Let the method choose among the tokens of one image that reach this layer."""
        layout, so_far = self.reader.layout, known.so_far[self.act.stage]
        tokens = layout.tokens_of(at)
        slots, origin = layout.slot[at.row, tokens], layout.origin[at.row, tokens]
        so_far.reached = so_far.reached or len(tokens)
        image, images = self.prompt[at].tokens, len(self.prompt.rows[at.row])
        act = self.act.at(self.prompt.samples[at.row], at.number, images).of(so_far.reached, image.grid, image.video)
        keep = due_of(act, image, slots, so_far.reached)
        stays = keep >= len(tokens)
        if stays and not isinstance(act.method, Observes):
            known.note(None)
            return Chosen(tokens, slots, origin)
        view = view_of(act, image, Picked(origin, slots), min(keep, len(tokens)), known)
        reading = self.reader.at(at.row, tokens, self.prompt[at].columns[-1])
        inner = {name: need.read(reading) for name, need in act.needs.items() if isinstance(need, DecoderNeed)}
        view = replace(view, signals={**view.signals, **inner})
        observe(view)
        if stays:
            known.note(None)
            return Chosen(tokens, slots, origin)
        self.cut = True
        choice = choice_of(view)
        found = self._of_all(choice.selection, tokens, slots, origin)
        known.note(choice.step(slots, found.slots))
        return found

    @staticmethod
    def _of_all(chosen: Selection, tokens: Tensor, slots: Tensor, origin: Tensor) -> Chosen:
        """A selection among tokens that have these physical indices, slots and origins."""
        if not isinstance(chosen, Merged):
            return Chosen(tokens[chosen], slots[chosen], origin[chosen])
        anchors = chosen.anchors.to(tokens.device)
        new = torch.ones_like(anchors, dtype=torch.bool) if chosen.unchanged is None else ~chosen.unchanged
        new = new.to(tokens.device)
        lenders = anchors.clamp(min=0)
        own = torch.where(anchors >= 0, slots[lenders], -1)
        return Chosen(tokens[lenders], own, torch.where(new, -1, origin[lenders]), chosen.features, new)

    def chosen_of(self, row: int) -> Iterator[tuple[ImageAt, Chosen]]:
        """What goes on of each image of a row."""
        return zip(self.prompt.images_of(row), self.rows[row], strict=True)

    def order(self, row: int) -> Tensor:
        """Physical indices of all tokens of a row that go on, new ones together where their image's stretch begins."""
        layout = self.reader.layout
        text = layout.valid[row] & (layout.image[row] < 0)
        indices = [text.nonzero().squeeze(1)]
        places = [indices[0]]
        for at, chosen in self.chosen_of(row):
            indices.append(chosen.index)
            places.append(chosen.index if chosen.features is None else self._stretch(layout, at, chosen.index))
        return torch.cat(indices)[torch.sort(torch.cat(places), stable=True).indices]

    @staticmethod
    def _stretch(layout: Layout, at: ImageAt, index: Tensor) -> Tensor:
        """Where the stretch of an image's tokens begins that each of these tokens stands in."""
        own = layout.tokens_of(at)
        starts = torch.cat([own[:1], own[1:][own.diff() > 1]])
        return starts[torch.searchsorted(starts, index, right=True) - 1]

    def write(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Put new tokens into the shortened hidden states, and into the layout where they came from."""
        for row in range(len(self.rows)):
            for at, chosen in self.chosen_of(row):
                if chosen.features is None or chosen.new is None:
                    continue
                here = layout.tokens_of(at)
                layout.slot[row, here], layout.origin[row, here] = chosen.slots, chosen.origin
                made = here[chosen.new].to(hidden.device)
                hidden[row, made] = chosen.features[chosen.new.to(chosen.features.device)].to(hidden)
        return hidden

"""A stage inside the LLM: what a method chooses among the tokens that reach a decoder layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlmprune.core.act import Act
from vlmprune.core.needs import DecoderNeed
from vlmprune.core.roles import Fusing, Observes
from vlmprune.core.view import ImageView, Merged, Selection
from vlmprune.runtime.decoder_reading import DecoderReader
from vlmprune.runtime.flow import ImageAt, Layout, Prompt
from vlmprune.runtime.prompt_reading import Picked
from vlmprune.runtime.select import Known, candidates_of, choices_of, due_of, observe, view_of


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


def fusion_candidates(act: Act, layout: Layout, prompt: Prompt, known: Mapping[ImageAt, Known]) -> list[list[Tensor]]:
    """Physical indices of the tokens of each image to which fusion draws attention, of those that are there now."""
    tokens = {at: layout.tokens_of(at) for row in prompt.by_row() for at in row}

    def asked(at: ImageAt) -> ImageView | None:
        reached = known[at].so_far[act.stage].reached or len(tokens[at])
        image = prompt[at].tokens
        own = act.at(prompt.samples[at.row], at.number, len(prompt.rows[at.row]))
        own = own.of(reached, image.grid, image.video)
        now = Picked(layout.origin[at.row, tokens[at]], layout.slot[at.row, tokens[at]])
        keep = due_of(own, image, now.slots, reached)
        if keep >= len(tokens[at]) or not isinstance(own.method, Fusing):
            return None
        return view_of(own, image, now, keep, known[at])

    found = dict(zip(tokens, candidates_of(asked(at) for at in tokens), strict=True))
    return [
        [tokens[at][:0] if (one := found[at]) is None else tokens[at][one] for at in row] for row in prompt.by_row()
    ]


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

    def choose(self, known: Mapping[ImageAt, Known]) -> None:
        """Let the method choose among the tokens of each image that reach this layer."""
        whole = {at: self._whole(at) for row in self.prompt.by_row() for at in row}
        choices = choices_of(self._asked(at, now, known[at]) for at, now in whole.items())
        self.rows = [[] for _ in self.prompt.rows]
        for (at, now), choice in zip(whole.items(), choices, strict=True):
            found = now if choice is None else self._of_all(choice.selection, now.index, now.slots, now.origin)
            known[at].note(None if choice is None else choice.step(now.slots, found.slots))
            self.cut = self.cut or choice is not None
            self.rows[at.row].append(found)

    def _whole(self, at: ImageAt) -> Chosen:
        """All tokens of an image that reach this layer."""
        layout = self.reader.layout
        tokens = layout.tokens_of(at)
        return Chosen(tokens, layout.slot[at.row, tokens], layout.origin[at.row, tokens])

    def _asked(self, at: ImageAt, now: Chosen, known: Known) -> ImageView | None:
        """What the method is to choose from of one image; None where everything stays. Methods that observe do so."""
        so_far, tokens = known.so_far[self.act.stage], now.index
        so_far.reached = so_far.reached or len(tokens)
        image, images = self.prompt[at].tokens, len(self.prompt.rows[at.row])
        act = self.act.at(self.prompt.samples[at.row], at.number, images).of(so_far.reached, image.grid, image.video)
        keep = due_of(act, image, now.slots, so_far.reached)
        stays = keep >= len(tokens)
        if stays and not isinstance(act.method, Observes):
            return None
        view = view_of(act, image, Picked(now.origin, now.slots), min(keep, len(tokens)), known)
        reading = self.reader.at(at.row, tokens, self.prompt[at].columns[-1])
        inner = {name: need.read(reading) for name, need in act.needs.items() if isinstance(need, DecoderNeed)}
        view = replace(view, signals={**view.signals, **inner})
        observe(view)
        return None if stays else view

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

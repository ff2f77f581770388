"""What a method is shown, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlmprune.core.act import Act
from vlmprune.core.errors import UserError


class Grid(NamedTuple):
    """Cells of a picture in raster order: `frames` of rows x cols each, one after another.

    `frames` counts the frames of a video, or the tiles of an image that the processor cut into tiles.
    """

    rows: int
    cols: int
    frames: int = 1

    @property
    def size(self) -> int:
        return self.rows * self.cols * self.frames


def frames_of(cells: Tensor, grid: Grid) -> Tensor:
    """[n] the frame (or tile) of tokens that show these cells [n]; one without goes with the next that has one."""
    shown = (cells >= 0).nonzero().squeeze(1)
    if grid.frames == 1 or not len(shown):
        return torch.zeros_like(cells)
    places = torch.arange(len(cells), device=shown.device)
    following = shown[torch.searchsorted(shown, places).clamp(max=len(shown) - 1)]
    return cells[following] // (grid.rows * grid.cols)


class Whole(NamedTuple):
    """Slots that together cover the whole picture, for drawing: an image cut into tiles may show it twice.

    Attributes:
        name: "image", or which of its slots these are ("base tile", "tiles", "thumbnail").
        grid: laid over the picture, one frame.
        cells: [count] the cell of that grid that each slot of the image covers, -1 for the others.
    """

    name: str
    grid: Grid
    cells: Tensor


class TowerRows(NamedTuple):
    """One row per token [n, ...], and the CLS tokens' [frames, ...], one per tile or frame, if the tower has them."""

    rows: Tensor
    cls: Tensor | None


class Tokens(NamedTuple):
    """Decoder-side rows of an image's tokens and of the text tokens that follow it."""

    visual: Tensor
    text: Tensor


class Aligned(NamedTuple):
    """Visual tokens and the instruction as vectors that can be compared by their cosine.

    Attributes:
        visual: [n, C].
        text: [M, C]: one row per segment of the instruction that a text tower takes at once, or one per token.
        clip: whether these come from CLIP's two towers; else from the LLM's own embeddings.
        sign: of the cosine with a text that describes a token, where the towers say it; None where they do not.
    """

    visual: Tensor
    text: Tensor
    clip: bool
    sign: int | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What a method may know of a model when it declares its needs and defaults."""

    family: str
    encoder_layers: int
    decoder_layers: int
    has_cls: bool
    attention_layers: tuple[int, ...] | None = None  # decoder layers with an attention map; None: all

    @property
    def llava(self) -> bool:
        """LLaVA and its kin: pruning code written for them hands the LLM a shorter prompt, which it renumbers."""
        return "llava" in self.family


@dataclass
class ImageView:
    """One image (or video) of one sample, as a method sees it.

    Attributes:
        keep: tokens to keep, 1 <= keep < n.
        slots: [n] slot numbers of the tokens still present, counted from the image's first slot; -1 for a merged
            token that has no slot of its own.
        grid: the image's slot grid, or None where it has none.
        info: the model.
        signals: what the method declared in `needs`, by name (see core.signals for shapes).
        seed: derived from the run's seed and the prompt, so that a result does not depend on batch or device.
        cells: [n] the cell of `grid` that each token shows, -1 for a token that shows none (image_newline, CLS, a
            merged token without a slot). The slots themselves where each slot is the cell of its number.
        total: tokens of the image before anything was pruned.
        memory: what a method keeps of this image from one of its acts to the next, by keys of its own, in one prefill;
            all frames of an image share it.
        act: which of the method's acts it is.
        ratings: [n] the importance by which the method chose, higher is better, where it says so; see `rated`.
    """

    keep: int
    slots: Tensor
    grid: Grid | None
    info: ModelInfo
    signals: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    cells: Tensor = None  # type: ignore[assignment]  # filled in at once
    total: int = 0
    memory: dict[str, Any] = field(default_factory=dict)
    act: Act = None  # type: ignore[assignment]  # filled in at once: in a view made by hand, of a method that acts once
    ratings: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.cells is None:
            self.cells = self.slots
        self.total = self.total or self.n
        if self.act is None:
            self.act = Act(None, self.info)  # type: ignore[arg-type]

    @property
    def n(self) -> int:
        return int(self.slots.shape[0])

    @property
    def frames(self) -> Tensor:
        """[n] the frame (or tile) of each token; a token without a cell goes with the next one that has one."""
        return torch.zeros_like(self.cells) if self.grid is None else frames_of(self.cells, self.grid)

    @property
    def blank(self) -> Tensor:
        """[n] slots of the prompt that show no patch: image_newline, a CLS slot. Merged tokens are not among them."""
        return (self.cells < 0) & (self.slots >= 0)

    def __getitem__(self, name: str) -> Any:
        return self.signals[name]

    def generator(self) -> torch.Generator:
        """A CPU generator, fresh at every call: the same numbers on every device and in every batch.

        Raises:
            UserError: the method does not say that it `draws`.
        """
        method = self.act.method
        if method is not None and not method.draws:
            raise UserError(f"{method.name} draws random numbers and does not say so: let its `draws` return True.")
        return torch.Generator().manual_seed(self.seed)

    def rated(self, scores: Tensor) -> Tensor:
        """Note the importance of each token [n] by which the method chooses, so that people can see it; returns it."""
        self.ratings = scores
        return scores

    def part(self, tokens: Tensor, keep: int, signals: Mapping[str, Any]) -> ImageView:
        """The same image with only some of its tokens."""
        return replace(self, keep=keep, slots=self.slots[tokens], cells=self.cells[tokens], signals=signals)

    def only(self, tokens: Tensor, keep: int, frame: int | None = None) -> ImageView:
        """The same image with only some of its tokens, and of each signal what its need takes for them.

        Args:
            tokens: [m] indices.
            keep: how many of these to keep.
            frame: the frame (or tile) that all of them are of, where they are of one.
        """
        needs = self.act.needs
        signals = {name: needs[name].take(value, tokens, frame) for name, value in self.signals.items()}
        return self.part(tokens, keep, signals)


@dataclass
class Merged:
    """New tokens in the order the LLM shall read them.

    Attributes:
        features: [m, C].
        anchors: [m] index (0..n-1) of the token that lends each one its position and slot; -1 for a token that has
            none (VisionZip's CLS), which takes the position of the image's first slot.
        space: "tower" when `features` are rows the projector reads (it is applied by the runtime), "llm" when they
            are ready for the LLM: embeddings before it, hidden states of the layer inside it.
        unchanged: [m] True where a token is its anchor as it was: its row of `features` is not read, and it keeps its
            encoder signals. Inside the LLM only.
        members: [n] for each token that the method saw the new token (0..m-1) that it went into, -1 where it was
            dropped; of several new tokens the one that takes most of it. Overlays draw it; None if the method does not
            say.
    """

    features: Tensor
    anchors: Tensor
    space: str = "llm"
    unchanged: Tensor | None = None
    members: Tensor | None = None

    def ordered(self, order: Tensor) -> Merged:
        """The same tokens in another order, a permutation of them."""
        unchanged = None if self.unchanged is None else self.unchanged[order]
        members = self.members
        if members is not None:
            places = torch.argsort(order).to(members)
            members = torch.where(members >= 0, places[members.clamp(min=0)], -1)
        return Merged(self.features[order], self.anchors[order], self.space, unchanged, members)


Selection = Tensor | Merged

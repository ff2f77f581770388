"""One act of a method on one model: where it takes place, with which budget, and what it reads there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from vlmprune.core.budget import ByFrame
from vlmprune.core.errors import UserError

if TYPE_CHECKING:
    from vlmprune.core.aim import Aim
    from vlmprune.core.budget import Keep, Keeps
    from vlmprune.core.fusion import Fusion
    from vlmprune.core.method import Method
    from vlmprune.core.needs import Need
    from vlmprune.core.view import Grid, ModelInfo


UNTOLD = math.nan  # the `keep` of an act whose budget is for each frame: whoever takes it for a number fails


class At(NamedTuple):
    """Where a method acts, and what is special there: what `Method.acts` may give instead of a layer's number.

    Attributes:
        layer: the decoder layer before which it acts, None for before the LLM.
        needs: the signals that it reads there, if they are not those that its `needs` declares for every act.
        fuses: for a `Fusing` method, whether attention is edited before this act.
        pool: which tokens compete there, if not those that the method's `pool` names. The user's `per` overrides both.
        sees_every_slot: whether slots that show no patch compete there, if that is not as the method's function of this
            name says. A method that reads the encoder only before the LLM says so for its acts inside it.
    """

    layer: int | None
    needs: Mapping[str, Need] | None = None
    fuses: bool = True
    pool: str | None = None
    sees_every_slot: bool | None = None


@dataclass(frozen=True)
class Act:
    """One act of a method on one model.

    Attributes:
        method: one object for all its acts; what differs from act to act is in the other attributes.
        info: the model.
        keep: the budget, 1.0 where the method takes none.
        layer: the decoder layer before which it takes place, None for before the LLM.
        number: which of the method's acts it is (0, 1, ...).
        layers: the layers of all the method's acts, in order.
        needs: the signals that it reads, by name.
        positions: the method's policy, "original" or "compact"; the user's choice overrides it.
        fusion: how attention is edited before it, or None if it is not edited.
        pool: which tokens compete, those of the "image" or of each "frame".
        sees_every_slot: whether slots that show no patch compete.
        keeps_blanks: whether these all stay instead, outside of the budget; the method does not see them.
        stage: which of the recipe's stages it belongs to.
        keeps: the budget of each image, if the user gave a list; then take the act `at` an image to ask its budget.
        variants: the same act under each of these budgets.
        aim: what the user's budget asks of all the method's acts, where that is not the method's own meaning; then take
            the act `of` an image's tokens, whose number decides on the `keep` that meets it.
        by_frame: the budget of each frame, if the user gave such; then `keep` is not a number, and the runtime lets the
            method select in each frame by itself, under an act with the frame's own `keep`.
        grid: the slot grid of the image or video, once the act is taken `of` it; None where it has none.
        video: whether that is a video.
    """

    method: Method
    info: ModelInfo
    keep: Keep = 1.0
    layer: int | None = None
    number: int = 0
    layers: tuple[int | None, ...] = ()
    needs: Mapping[str, Need] = field(default_factory=dict)
    positions: str = "original"
    fusion: Fusion | None = None
    stage: int = 0
    pool: str = "image"
    sees_every_slot: bool = True
    keeps_blanks: bool = False
    keeps: Keeps | None = None
    variants: tuple[Act, ...] = ()
    aim: Aim | None = None
    by_frame: ByFrame | None = None
    grid: Grid | None = None
    video: bool = False

    def __str__(self) -> str:
        return self.method.name if self.layer is None else f"{self.method.name} before decoder layer {self.layer}"

    @property
    def decoder_layers(self) -> tuple[int, ...]:
        """The layers of all the method's acts inside the LLM, in order."""
        return tuple(layer for layer in self.layers if layer is not None)

    def at(self, sample: int, image: int, images: int) -> Act:
        """The same act with the budget of one of a sample's `images`."""
        if self.keeps is None:
            return self
        keep = self.keeps.at(sample, image, images)
        for act in self.variants:
            own = act.keep if act.by_frame is None else act.by_frame
            if (type(own), own) == (type(keep), keep):
                return act
        assert isinstance(keep, ByFrame)  # one list for the frames of a video
        return replace(act, keep=UNTOLD, by_frame=keep)

    @property
    def frames(self) -> int:
        """Frames of the video that it was taken `of`; 1 for an image, whose tiles are not frames.

        Raises:
            UserError: nobody knows how a video of this model is divided into frames.
        """
        if not self.video:
            return 1
        if self.grid is None:
            raise UserError(
                f"{self.method.name} chooses frame by frame, but vlmprune does not know the frames of a video of "
                f"{self.info.family}: choose a method that does without them, such as divprune."
            )
        return self.grid.frames

    def of(self, total: int, grid: Grid | None = None, video: bool = False) -> Act:
        """The same act for one image or video, with the method's own budget.

        Args:
            total: how many of its tokens reached the method's first act.
            grid: its slot grid, None where it has none.
            video: whether it is a video.
        """
        keep = self.keep if self.aim is None else self.aim.own_keep(self, total)
        own = replace(self, keep=keep, aim=None, grid=grid, video=video)
        if self.by_frame is None:
            return own
        by_frame = self.by_frame.of(own.frames)
        if not video:
            return own.in_frame(by_frame.keeps[0])
        return replace(own, by_frame=by_frame, pool="frame", sees_every_slot=False)  # a newline is in no frame

    def in_frame(self, keep: Keep) -> Act:
        """The same act for one frame, which has this budget."""
        return replace(self, keep=keep, by_frame=None)

    def budget(self, n: int, total: int) -> int:
        """Tokens to keep of the `n` of an image that reach this act (see `Method.budget`)."""
        if self.aim is not None:
            raise RuntimeError(f"{self} has a budget that depends on the image: take it `of` the image's tokens")
        if self.keeps is not None:
            raise RuntimeError(f"{self} has a budget for each image: take it `at` one")
        if self.by_frame is not None:
            raise RuntimeError(f"{self} has a budget for each frame: take it `in_frame` one")
        return self.method.budget(self, n, total)

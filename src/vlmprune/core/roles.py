"""Roles that only some methods play, each with a base class of its own: `Method` holds only what every author needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from vlmprune.core.fusion import Fusion
from vlmprune.core.method import Method, PixelMethod
from vlmprune.core.view import ImageView, ModelInfo, Selection

if TYPE_CHECKING:
    from vlmprune.core.act import Act


class Fusing(Method, ABC):
    """A method that makes other tokens attend to those that it will remove, in the two decoder layers before its cut.

    Where it does so, `select` and `candidates` read no decoder layer: their results are needed before it runs.
    """

    @abstractmethod
    def fusion(self, info: ModelInfo) -> Fusion | None:
        """How attention is edited before the method acts; None if it is not edited."""

    @abstractmethod
    def candidates(self, view: ImageView) -> Tensor:
        """Indices of tokens that `select` drops from this view, and that fusion makes the other tokens attend to."""

    def candidates_together(self, views: Sequence[ImageView]) -> Sequence[Tensor]:
        """`candidates` of each of these views, several of which are given only to a method that `SelectsTogether`."""
        return [self.candidates(view) for view in views]

    def candidate_count(self, act: Act, keep: int, n: int) -> int:
        """The most of an image's `n` tokens that `candidates` can name; used to count operations."""
        return n - keep

    @abstractmethod
    def unfused(self) -> Method:
        """The same method without fusion (itself, if its options turn fusion off). Benchmarks show both."""


class Merging(Protocol):
    """One step of merging tokens.

    `merge` turns the rows [t, C] of t tokens, and their sizes [t] (how many tokens each stands for), into those of
    t - r tokens.
    """

    @property
    def stay(self) -> Tensor:
        """[t - r] tokens that stay, in the order of the result."""

    @property
    def leave(self) -> Tensor:
        """[r] tokens that are merged."""

    @property
    def joined(self) -> Tensor:
        """[r] index into `stay` of the token that each merged token joins."""

    def merge(self, rows: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]: ...


class MergesInside(Method, ABC):
    """A method that can merge tokens between attention and MLP of the encoder's layers.

    Where `inside_encoder` is true, it must come first in a recipe, `select` is not called, and images must be encoded
    for it alone.
    """

    @property
    @abstractmethod
    def inside_encoder(self) -> bool:
        """Whether its options ask for merging inside the encoder."""

    @property
    def proportional(self) -> bool:
        """Whether a merged token counts in later attention once for each token it stands for (logits + log size)."""
        return False

    @property
    def restores_order(self) -> bool:
        """Whether merged tokens are put back in order of position before the LLM reads them."""
        return True

    @abstractmethod
    def merging(self, keys: Tensor, count: int, cls: bool) -> Merging:
        """Which `count` tokens of an image are merged in an encoder layer.

        Args:
            keys: [t, head_dim] attention keys of the layer, mean over heads.
            count: tokens to merge, at most half of the tokens without CLS.
            cls: whether token 0 is a CLS token, which must stay where it is.
        """


class OrdersParts(Method, ABC):
    """A method that says in which order the LLM reads tokens that were merged frame by frame (or tile by tile)."""

    @abstractmethod
    def reading_order(self, view: ImageView, parts: Mapping[int, Tensor]) -> Tensor | None:
        """The order of the new tokens.

        Args:
            parts: for each frame number, the anchors (indices into `view`) of the tokens made from that frame, in the
                order in which they were made.

        Returns:
            A permutation of all new tokens, counted one frame after another; None to keep that order.
        """


class NamesParts(Method, ABC):
    """A method that keeps tokens for different reasons and names them, as HiPrune its anchors, buffers and registers.

    It implements `named` instead of `select`. Overlays draw each kind in a colour of its own.
    """

    @abstractmethod
    def named(self, view: ImageView) -> Mapping[str, Tensor]:
        """The kept tokens (indices into the view) by the name of their kind, a plural; one of two kinds counts once."""

    def select(self, view: ImageView) -> Tensor:
        return all_kinds(self.named(view))


def all_kinds(parts: Mapping[str, Tensor]) -> Tensor:
    """The tokens of all kinds, in increasing order, each once."""
    return torch.unique(torch.cat([*parts.values()]))


class SelectsTogether(Method, ABC):
    """A method that selects from many images at once, so that 32 of them need no more rounds of a loop than one does.

    It implements `select_together` instead of `select`. Worth it where a loop over picks takes its time, as on a GPU,
    where each operation has to be started. It cannot be one that `NamesParts`.
    """

    @abstractmethod
    def select_together(self, views: Sequence[ImageView]) -> Sequence[Selection]:
        """For each view exactly what would be selected if it came alone.

        A sum may be rounded otherwise in a product of many matrices than in one of two, and may then decide a near tie
        otherwise: compute such things view by view, and let the loop be common.

        Args:
            views: one or more images (or frames, or tiles) of any samples, at one act, each with as many tokens and as
                high a budget as any other. They need not have the same grid, text or memory.
        """

    def select(self, view: ImageView) -> Selection:
        return self.select_together([view])[0]


class Observes(Method, ABC):
    """A method that looks at every image at each of its acts, before `select` and even if the act cuts nothing."""

    @abstractmethod
    def observe(self, view: ImageView) -> None:
        """Note in `view.memory` what later acts need. The view holds all tokens that are still present."""


def goes_to(step: Merging, tokens: int) -> Tensor:
    """[tokens] the token after a step of merging that each token before it is part of."""
    found = torch.empty(tokens, dtype=torch.long, device=step.stay.device)
    found[step.stay] = torch.arange(len(step.stay), device=found.device)
    found[step.leave] = step.joined
    return found


def merges_inside(method: object) -> bool:
    """Whether a method merges inside the encoder."""
    return isinstance(method, MergesInside) and method.inside_encoder


def changes_encoding(method: object) -> bool:
    """Whether a method changes the encoder's input or work, so that images must be encoded for it alone."""
    return isinstance(method, PixelMethod) or merges_inside(method)

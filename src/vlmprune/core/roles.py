"""What only some methods do, each a base beside `Method`, which so stays what every author needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from vlmprune.core.fusion import Fusion
from vlmprune.core.method import Method, PixelMethod
from vlmprune.core.view import ImageView, ModelInfo

if TYPE_CHECKING:
    from vlmprune.core.act import Act


class Fusing(Method, ABC):
    """Draws attention, in the two decoder layers before it acts, to tokens that it is about to remove.

    Where it does, `select` and `candidates` read no decoder layer, since both must be known before it runs.
    """

    @abstractmethod
    def fusion(self, info: ModelInfo) -> Fusion | None:
        """How attention is edited before it acts; None for not at all."""

    @abstractmethod
    def candidates(self, view: ImageView) -> Tensor:
        """Indices of tokens that `select` of this view gives up, and that fusion makes the others look at first."""

    def candidate_count(self, act: Act, keep: int, n: int) -> int:
        """How many of an image's `n` tokens `candidates` names at most; for counting operations."""
        return n - keep

    @abstractmethod
    def unfused(self) -> Method:
        """The same method without fusion, itself where its options turn it off: benchmarks show both."""


class Merging(Protocol):
    """One step of merging tokens: `merge` takes rows [t, C] and the sizes [t] of what they stand for to [t - r]."""

    @property
    def stay(self) -> Tensor:
        """[t - r] tokens that stay, in the order of the result."""

    @property
    def leave(self) -> Tensor:
        """[r] tokens that are merged."""

    @property
    def joined(self) -> Tensor:
        """[r] place in `stay` of the token that each of them joins."""

    def merge(self, rows: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]: ...


class MergesInside(Method, ABC):
    """Merges tokens between attention and MLP of the encoder's layers, where `inside_encoder`; first in a recipe.

    Then `select` is not called, and images must be encoded for it alone.
    """

    @property
    @abstractmethod
    def inside_encoder(self) -> bool:
        """Whether its options ask for that."""

    @property
    def proportional(self) -> bool:
        """Whether tokens then count in later attention as often as what they stand for (log size added to logits)."""
        return False

    @property
    def restores_order(self) -> bool:
        """Whether what it merged is put back in order of position before the LLM reads it."""
        return True

    @abstractmethod
    def merging(self, keys: Tensor, count: int, cls: bool) -> Merging:
        """Which `count` tokens of an image are merged in an encoder layer.

        Args:
            keys: [t, head_dim] of the layer's attention, mean over heads.
            count: at most half of the tokens, CLS apart.
            cls: whether token 0 is a CLS token, which must stay where it is.
        """


class OrdersParts(Method, ABC):
    """Says in which order the LLM reads tokens that were merged frame by frame (or tile by tile)."""

    @abstractmethod
    def reading_order(self, view: ImageView, parts: Mapping[int, Tensor]) -> Tensor | None:
        """The order of the new tokens.

        Args:
            parts: by the number of the frame, anchors among the tokens of `view` of those made from it, as made.

        Returns:
            A permutation of all of them, one frame after another; None for that order itself.
        """


class Observes(Method, ABC):
    """Looks at every image at each of its acts, also at those that cut nothing, before `select`."""

    @abstractmethod
    def observe(self, view: ImageView) -> None:
        """Note in `view.memory` what later acts need. All tokens that are there are in the view."""


def merges_inside(method: object) -> bool:
    """Whether a method merges inside the encoder."""
    return isinstance(method, MergesInside) and method.inside_encoder


def changes_encoding(method: object) -> bool:
    """Whether a method changes what the encoder gets or does, so that images must be encoded for it alone."""
    return isinstance(method, PixelMethod) or merges_inside(method)

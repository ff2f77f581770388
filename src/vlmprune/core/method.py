"""The contract of a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

from torch import Tensor

from vlmprune.core.budget import Keep, resolve_keep
from vlmprune.core.errors import UserError
from vlmprune.core.fusion import Fusion
from vlmprune.core.needs import Need
from vlmprune.core.selectors import ascending, top_k
from vlmprune.core.view import Grid, ImageView, ModelInfo, Selection

POSITIONS = ("original", "compact")
POOLS = ("image", "frame")


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


@dataclass
class Method:
    """Base of all methods: a dataclass of hyperparameters, declared needs and one function.

    A subclass sets `name`, `stage` ("pixels", "vision", "decoder") and a one-line `summary`, declares `needs`, and
    implements `select`.
    It never touches a model, a cache, a mask or text. The runtime calls `select` once an image (or once a frame, see
    `per`), only when the budget is below the number of tokens present, and checks the result: `view.keep` distinct
    token indices, or `Merged`.

    Args:
        per: "image": all tokens of an image or video compete for its budget. "frame": the budget is spread evenly over
            the frames of a video, or the tiles of an image cut into tiles, and the method acts on each by itself. By
            default what the method's authors do for this family (`pool`).
    """

    name: ClassVar[str]
    stage: ClassVar[str]  # where it acts, for people; the runtime goes by `decoder_layer`
    summary: ClassVar[str] = ""

    wraps: ClassVar[str | None] = None  # the option that holds another method, whose budget is this one's
    budget_means: ClassVar[str] = ""  # where it is not what is left when the method has acted
    least: ClassVar[int] = 1  # tokens that `select` may come down to, where it is not `exact`

    per: str | None = field(default=None, kw_only=True)

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        """Signals by the name under which `select` reads them from the view."""
        return {}

    def positions(self, info: ModelInfo) -> str:
        """Position policy the authors use for this family: "original" or "compact"."""
        return "original"

    def pool(self, info: ModelInfo) -> str:
        """Who competes for the budget on this family where the user does not say: "image" or "frame"."""
        return "image"

    def sees_every_slot(self, info: ModelInfo) -> bool:
        """Whether slots that show no patch (image_newline, a CLS slot) compete like any other token.

        Where not, they are dropped before any other token. By default they compete unless the method reads the vision
        encoder, which knows nothing of them.
        """
        return not any(need.of_patches for need in self.needs(info).values())

    def decoder_layer(self, info: ModelInfo) -> int | None:
        """The decoder layer before which it acts (0-based), or None for a method that acts before the LLM."""
        return None

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[Method]:
        """The methods that act once of which this one is made, in acting order: itself, unless it acts repeatedly.

        Args:
            keep: the budget, for methods that it tells where to act.
        """
        return (self,)

    @property
    def budgeted(self) -> bool:
        """Whether it takes a budget; not where its options already say what is kept."""
        return True

    def budget(self, keep: Keep, n: int, total: int) -> int:
        """Tokens to keep of the `n` that reach it; `n` for leaving the image alone.

        Args:
            total: the image's tokens that reached this stage of the recipe, at the first of its acts.
        """
        return resolve_keep(keep, n)

    def select(self, view: ImageView) -> Selection:
        """Indices (0..view.n-1) of the tokens to keep, `view.keep` of them, or the merged tokens."""
        raise NotImplementedError

    def reading_order(self, view: ImageView, parts: Mapping[int, Tensor]) -> Tensor | None:
        """In which order the LLM reads tokens that were merged frame by frame (or tile by tile).

        Args:
            parts: by the number of the frame, anchors among the tokens of `view` of those made from it, as made.

        Returns:
            A permutation of all of them, one frame after another; None for that order itself.
        """
        return None

    def fusion(self, info: ModelInfo) -> Fusion | None:
        """How attention is edited in the two decoder layers before it acts; None for not at all.

        Then `select` and `candidates` read no decoder layer, since both must be known before it runs.
        """
        return None

    def unfused(self) -> Method:
        """The same method without fusion, itself where it has none: benchmarks show both."""
        return self

    def candidates(self, view: ImageView) -> Tensor:
        """Indices of tokens that `select` of this view gives up, and that fusion makes the others look at first."""
        raise NotImplementedError

    def candidate_count(self, info: ModelInfo, keep: int, n: int) -> int:
        """How many of an image's `n` tokens `candidates` names at most; for counting operations."""
        return n - keep

    @property
    def inside_encoder(self) -> bool:
        """Whether it merges tokens between attention and MLP of the encoder's layers, by `merging`; first in a recipe.

        Then `select` is not called, and images must be encoded for it alone.
        """
        return False

    @property
    def proportional(self) -> bool:
        """Whether tokens then count in later attention as often as what they stand for (log size added to logits)."""
        return False

    @property
    def restores_order(self) -> bool:
        """Whether what it merged inside the encoder is put back in order of position before the LLM reads it."""
        return True

    def merging(self, keys: Tensor, count: int, cls: bool) -> Merging:
        """Which `count` tokens of an image are merged in an encoder layer.

        Args:
            keys: [t, head_dim] of the layer's attention, mean over heads.
            count: at most half of the tokens, CLS apart.
            cls: whether token 0 is a CLS token, which must stay where it is.
        """
        raise NotImplementedError

    @property
    def exact(self) -> bool:
        """Whether `select` returns exactly `view.keep` tokens.

        Always, except under an option `compat="official"`, which repeats the authors' code including its miscounts.
        """
        return getattr(self, "compat", None) != "official"

    @property
    def trims_cache(self) -> bool:
        """Whether decoding sees less than the prefill did: inside the LLM only.

        After the prefill the caches of decoder layers K-1 (K: its first act) up to its last act keep only the tokens
        that the last act kept.
        """
        return False

    def options(self) -> dict[str, Any]:
        """Hyperparameters by name, for reports and recipe strings."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass
class Scorer(Method):
    """A method that is "score, then top-k": subclasses implement `score` alone."""

    def score(self, view: ImageView) -> Tensor:
        """Importance of each token, [n]; higher is kept."""
        raise NotImplementedError

    def select(self, view: ImageView) -> Selection:
        return ascending(top_k(self.score(view), view.keep))


@dataclass
class DecoderMethod(Method):
    """A method inside the LLM: acts before decoder layer `layer` (K), after layers 0..K-1 saw every token."""

    stage: ClassVar[str] = "decoder"
    layer: int = 2

    def __post_init__(self) -> None:
        check_layer(self.name, self.layer)

    def decoder_layer(self, info: ModelInfo) -> int:
        return layer_within(self.name, self.layer, info)


def check_layer(name: str, layer: object) -> None:
    """Raise UserError unless `layer` can be a decoder layer before which the method `name` acts, on some model."""
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 1:
        raise UserError(f"{name}: layer={layer!r} must be a whole number of at least 1.")


def layer_within(name: str, layer: int, info: ModelInfo) -> int:
    """`layer`, or UserError where this model's decoder is not that deep."""
    if layer >= info.decoder_layers:
        raise UserError(
            f"{name} cannot act before decoder layer {layer}: this model has layers 0 to {info.decoder_layers - 1}."
        )
    return layer


@dataclass
class PixelMethod(Method):
    """A method before the encoder: it names the slot grid to which the image is resized."""

    stage: ClassVar[str] = "pixels"

    def positions(self, info: ModelInfo) -> str:
        """A smaller image is numbered as a smaller image is."""
        return "compact"

    def resize(self, grid: Grid, keep: int) -> Grid:
        """The slot grid to resize to: as many frames as before, at most `keep` cells in all, at least one a frame."""
        raise NotImplementedError

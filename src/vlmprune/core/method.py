"""The contract of a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from torch import Tensor

from vlmprune.core.budget import Keep, resolve_keep
from vlmprune.core.errors import UserError
from vlmprune.core.needs import Need
from vlmprune.core.options import AtLeast, check_options
from vlmprune.core.selectors import ascending, top_k
from vlmprune.core.view import Grid, ImageView, ModelInfo, Selection

if TYPE_CHECKING:
    from vlmprune.core.act import Act, At

POSITIONS = ("original", "compact")
POOLS = ("image", "frame")
EVERY_METHODS = ("per", "blanks")  # options that all methods have


@dataclass
class Method:
    """Base of all methods: a dataclass of hyperparameters, declared needs and one function.

    A subclass sets `name`, `stage` ("pixels", "vision", "decoder") and a one-line `summary`, declares `needs`, and
    implements `select`. Annotations of its hyperparameters say what values these may have, and are checked:
    `Literal["paper", "official"]`, `Annotated[float, Share]`, `Annotated[int, AtLeast(1)]`, `bool`, each with `| None`.
    Names in them are imported or defined at the top of the file, not under `if TYPE_CHECKING:`.
    It never touches a model, a cache, a mask or text. The runtime calls `select` once per image (or once per frame, see
    `per`; for many images at once see `core.roles.SelectsTogether`), only when the budget is below the number of tokens
    present, and checks the result: `view.keep` distinct token indices, or `Merged`.

    Args:
        per: "image": all tokens of an image or video compete for its budget. "frame": the budget is spread evenly over
            the frames of a video, or the tiles of an image cut into tiles, and the method acts on each by itself. The
            default is what the method's authors do for this family (`pool`).
        blanks: what becomes of slots that show no patch (image_newline, a CLS slot). "keep": they all stay, outside of
            the budget. "drop": they go before any other token. The default is what the method does
            (`sees_every_slot`): there they compete, or are dropped.
    """

    name: ClassVar[str]
    stage: ClassVar[str]  # where it acts, for people; the runtime goes by `acts`
    summary: ClassVar[str] = ""

    wraps: ClassVar[str | None] = None  # the option that holds another method, which shares this one's budget
    budget_means: ClassVar[str] = ""  # what the budget is, where it is not the number of tokens left in the end
    least: ClassVar[int] = 1  # the fewest tokens that `select` may return, where it is not `exact`

    per: str | None = field(default=None, kw_only=True)
    blanks: Literal[None, "drop", "keep"] = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check each hyperparameter by its annotation; a subclass that checks several together calls this first."""
        check_options(self)

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        """Signals by the name under which `select` reads them from the view."""
        return {}

    def positions(self, info: ModelInfo) -> str:
        """Position policy the authors use for this family: "original" or "compact".

        The default is what most authors do: "compact" on LLaVA before the LLM, "original" inside the LLM and on other
        families.
        """
        # A method that acts at several layers names them in `acts`, so `decoder_layer` alone does not tell.
        before = self.stage != "decoder" and self.decoder_layer(info) is None
        return "compact" if info.llava and before else "original"

    def pool(self, info: ModelInfo) -> str:
        """The default of `per` on this family: tokens of the whole "image" compete, or those of each "frame"."""
        return "image"

    def sees_every_slot(self, info: ModelInfo) -> bool:
        """Whether slots that show no patch (image_newline, a CLS slot) compete like any other token.

        If not, they are dropped before any other token. By default they compete, unless the method reads the vision
        encoder, which has no signal for them.
        """
        return not any(need.of_patches for need in self.needs(info).values())

    def decoder_layer(self, info: ModelInfo) -> int | None:
        """The decoder layer before which it acts (0-based), or None for a method that acts before the LLM."""
        return None

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[int | At | None]:
        """The decoder layers before which it acts, in order, each once; by default its one `decoder_layer`.

        Give an `At` instead of a number to say what is special about an act. With no act the image stays as it is.

        Args:
            keep: the budget, for methods whose layers depend on it.
        """
        return (self.decoder_layer(info),)

    @property
    def budgeted(self) -> bool:
        """Whether it takes a budget. It does not if its options already decide what is kept."""
        return True

    def budget(self, act: Act, n: int, total: int) -> int:
        """How many of the `n` tokens that reach an act it keeps; `n` keeps them all.

        Args:
            act: the act, with the user's budget as `act.keep`.
            total: how many of the image's tokens reached the method's first act.
        """
        return resolve_keep(act.keep, n)

    def left(self, act: Act, n: int, total: int) -> int | None:
        """How many tokens an act leaves of the `n` that reach it; None if only the image can tell.

        By default its `budget` if the method is `exact`. Arguments as for `budget`.
        """
        return min(n, self.budget(act, n, total)) if self.exact else None

    def select(self, view: ImageView) -> Selection:
        """Indices (0..view.n-1) of the tokens to keep, `view.keep` of them, or the merged tokens."""
        raise NotImplementedError

    @property
    def merges(self) -> bool:
        """Whether `select` may return `Merged`."""
        return False

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers (`view.generator()`), so that `vlmprune bench` repeats it over seeds."""
        return False

    @property
    def exact(self) -> bool:
        """Whether `select` returns exactly `view.keep` tokens.

        By default it does, except with the option `compat="official"`, which repeats the authors' code and its
        miscounts.
        """
        return getattr(self, "compat", None) != "official"

    @property
    def trims_cache(self) -> bool:
        """Whether decoding sees fewer tokens than the prefill did. Only for methods inside the LLM.

        After the prefill, the caches of decoder layers K-1 (K: its first act) up to its last act keep only the tokens
        that the last act kept. By default an option `kv_prune` decides, if the method has one.
        """
        return getattr(self, "kv_prune", False)

    @property
    def trims_first_layers(self) -> bool:
        """Whether a method that `trims_cache` cuts the caches of layers 0 to K-2 too."""
        return False


@dataclass
class Scorer(Method):
    """A method that is "score, then top-k": subclasses implement `score` alone."""

    def score(self, view: ImageView) -> Tensor:
        """Importance of each token, [n]; higher is kept."""
        raise NotImplementedError

    def select(self, view: ImageView) -> Selection:
        return ascending(top_k(view.rated(self.score(view)), view.keep))


@dataclass
class DecoderMethod(Method):
    """A method inside the LLM: acts before decoder layer `layer` (K), after layers 0..K-1 saw every token."""

    stage: ClassVar[str] = "decoder"
    layer: Annotated[int, AtLeast(1)] = 2

    def decoder_layer(self, info: ModelInfo) -> int:
        return layer_within(self.name, self.layer, info)


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
        """Always "compact": a resized image is numbered like any image of that size."""
        return "compact"

    def resize(self, grid: Grid, keep: int) -> Grid:
        """The slot grid to resize to: as many frames as before, at most `keep` cells in all, at least one per frame."""
        raise NotImplementedError

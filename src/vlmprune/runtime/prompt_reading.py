"""What needs read of a prompt before the LLM runs: an image's tokens, the text around it, and the encoder's signals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from vlmprune.core.act import Act
from vlmprune.core.errors import UserError
from vlmprune.core.needs import DecoderNeed, EncoderNeed, PromptNeed
from vlmprune.core.view import Aligned, TowerRows
from vlmprune.runtime.encoder_reading import resolved
from vlmprune.runtime.prompt_text import ImageText
from vlmprune.runtime.vision import ImageTokens


@dataclass
class Picked:
    """Tokens of one image on their way through the stages before the LLM.

    Attributes:
        origin: [m] row of the image's signals, -1 for a merged token.
        slots: [m] slot, -1 for none.
        features: [m, D] when they are not simply the prompt's embeddings at `slots`.
    """

    origin: Tensor
    slots: Tensor
    features: Tensor | None = None


def prompt_signals(act: Act, image: ImageTokens, text: ImageText, now: Picked) -> dict[str, Any]:
    """The signals that need no decoder layer, as rows of the tokens still there."""
    at, signals = PromptReader(act.method.name, image, text, now), dict[str, Any]()
    for name, need in act.needs.items():
        if isinstance(need, PromptNeed):
            signals[name] = need.read(at)
        elif isinstance(need, EncoderNeed):
            signals[name] = _float(at.encoder(need))
        elif not isinstance(need, DecoderNeed):
            raise TypeError(f"{act.method.name}: {need!r} must be a PromptNeed, EncoderNeed or DecoderNeed")
        elif act.layer is None:
            raise TypeError(f"{act.method.name} acts before the LLM and cannot read {need!r}")
    return signals


@dataclass
class PromptReader:
    """One image in a prompt (`core.needs.PromptReading`).

    Attributes:
        reader: the name of the method that reads it.
    """

    reader: str
    image: ImageTokens
    text_around: ImageText
    now: Picked

    @property
    def features(self) -> Tensor:
        if self.now.features is not None:
            return self.now.features
        return self.image.features[self._origin]

    def text(self, after_image: bool = False) -> Tensor:
        return self.text_around.embeddings(after_image)

    def words(self, pick: Callable[[str], Sequence[str]]) -> Tensor | None:
        return self.text_around.words(pick)

    def encoder(self, need: EncoderNeed) -> Any:
        origin, key = self._origin, resolved(self.image.adapter, need)
        if key not in self.image.signals:
            raise UserError(f"These images were encoded without what {self.reader} reads: name it in encode_images.")
        return need.take(self.image.signals[key], origin)

    def aligned(self, rows: TowerRows, truncate: bool) -> Aligned:
        return self.text_around.aligned(self.image.features[self._origin], rows, truncate)

    def clip_gradient(self, collected: Tensor, state: Tensor) -> Tensor | None:
        return self.text_around.gradient(collected, state)

    @cached_property
    def _origin(self) -> Tensor:
        """The row of the image's signals that each token is."""
        if bool((self.now.origin < 0).any()):
            raise UserError(
                f"{self.reader} reads what the vision side made of each token, so it cannot follow a method that "
                "merges tokens: put one before it that only drops them, such as divprune."
            )
        return self.now.origin


def _float(signal: Any) -> Any:
    if isinstance(signal, TowerRows):  # rows, and the CLS tokens' where there are any
        return TowerRows(signal.rows.float(), None if signal.cls is None else signal.cls.float())
    return signal.float()

"""What an encoder did with one picture: the attention that each patch got in each layer, and the patches' features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from vlmprune.core.errors import UserError
from vlmprune.core.view import Grid
from vlmprune.drawing.window import Window

TOP = 0.1  # the share of tokens that counts as high attention, as in HiPrune
FEWEST = 4  # tokens along which nothing can be said about where attention lies


@dataclass(frozen=True)
class Reading:
    """The attention statistics of all layers for one picture.

    A token is a patch, or a visual slot of a language model that several patches make (their mean).

    Attributes:
        grid: the tokens over the picture, one frame, in raster order.
        window: the part of the picture that the encoder saw, in its pixels.
        received: [layers, n] attention that each token receives, mean over heads and over all queries.
        cls: [layers, n] attention that the CLS token pays, mean over heads; None for an encoder without one.
        features: [n, D] the tokens as they leave the encoder, projected where a language model reads them.
    """

    grid: Grid
    window: Window
    received: np.ndarray
    cls: np.ndarray | None
    features: np.ndarray

    def __post_init__(self) -> None:
        for name, values in (("received", self.received), ("cls", self.cls)):
            if values is not None and (values.shape[1:] != (self.grid.size,) or not np.isfinite(values).all()):
                raise UserError(
                    f"The attention of this encoder cannot be laid over the picture: {name} has {values.shape[1:]} "
                    f"finite values for a grid of {self.grid.rows} x {self.grid.cols} tokens."
                )
        if self.grid.size < FEWEST:
            raise UserError(f"The encoder makes {self.grid.size} tokens of the picture: give a larger picture.")

    @property
    def layers(self) -> int:
        return len(self.received)

    def top(self, layer: int, share: float = TOP) -> np.ndarray:
        """Indices of the tokens with the highest received attention in a layer; ties go to the lower index."""
        return top_of(self.received[layer], share)

    def save(self, path: Path) -> None:
        """Write it, so that no later study has to run the encoder on this picture again."""
        arrays = {"received": self.received, "features": self.features, "window": np.array(self.window)}
        arrays["grid"] = np.array([self.grid.rows, self.grid.cols])
        if self.cls is not None:
            arrays["cls"] = self.cls
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Reading:
        """What `save` wrote.

        Raises:
            UserError: the file is broken.
        """
        try:
            with np.load(path, allow_pickle=False) as found:
                rows, cols = found["grid"].tolist()
                paid = found["cls"] if "cls" in found.files else None
                window = Window(*found["window"].tolist())
                return cls(Grid(rows, cols), window, found["received"], paid, found["features"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise UserError(f"The file {str(path)!r} is broken: delete it, and run the command again.") from error


def top_of(scores: np.ndarray, share: float = TOP) -> np.ndarray:
    """Indices of the highest scores [n], at least two of them; ties go to the lower index."""
    return np.argsort(-scores, kind="stable")[: max(2, round(share * len(scores)))]

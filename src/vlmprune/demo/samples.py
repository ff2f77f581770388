"""Pictures to start with: photographs, and scenes of the kind that the embedded models were trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import vlmprune
from vlmprune.ask.examples import example_samples
from vlmprune.ask.media import open_image
from vlmprune.assets import embedded_names
from vlmprune.bench.load import Loaded
from vlmprune.tasks.canvas import canvas_for

_PHOTOS = Path(vlmprune.__file__).parent / "assets" / "photos" / "held_out"
_SCENES = ("a plate", "things to count", "a colour")  # what the example scenes ask about, in their order


@dataclass(frozen=True)
class Sample:
    """A picture with a question that the model can be asked about it."""

    name: str
    question: str
    image: Image.Image


def samples_for(loaded: Loaded) -> dict[str, Sample]:
    """The samples by name: generated scenes, drawn to suit the model, and photographs."""
    drawn = zip(_SCENES, example_samples(canvas_for(loaded.model.config)), strict=True)
    found = [Sample(f"scene: {name}", one.question, one.images[0]) for name, one in drawn]
    small = loaded.name in embedded_names()  # their vocabulary has no words for what photographs show
    question = "Is there a red circle?" if small else "What is in the picture?"
    found += [Sample(f"photo: {path.stem}", question, open_image(path)) for path in sorted(_PHOTOS.glob("*.jpg"))]
    return {one.name: one for one in found}

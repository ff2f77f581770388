"""`vlmprune doctor MODEL`: where visual tokens are, which methods work, and a proof that pruning is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import vlmprune
from vlmprune.ask.run import chat_inputs
from vlmprune.bench.load import load_model
from vlmprune.core.errors import UserError
from vlmprune.core.outputs import check_picture
from vlmprune.doctor.anatomy import describe_model
from vlmprune.doctor.layout import Layout, describe_layout
from vlmprune.doctor.methods import BREAKS, Tried, describe_methods, in_words, try_methods
from vlmprune.doctor.picture import save_layout
from vlmprune.doctor.prompts import ask, one_prompt, padded_batch
from vlmprune.doctor.proof import prove
from vlmprune.models import adapter_for

QUESTION = "What color is the circle?"
SHOWN = "random:0.5"  # what the layout is drawn with


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        model: as the user named it.
        sections: the lines of the report by what they are about: model, layout, drawing, failure, methods, proof.
        methods: what became of each method.
        sound: whether every proof held and no method broke.
    """

    model: str
    sections: Mapping[str, Sequence[str]]
    methods: Sequence[Tried]
    sound: bool

    @property
    def text(self) -> str:
        """The report, in lines."""
        return "\n\n".join("\n".join(lines) for lines in self.sections.values())

    def facts(self) -> dict[str, Any]:
        """All of it as plain values."""
        methods = {one.spec: {"status": one.status, "says": one.says} for one in self.methods}
        lines = {name: list(lines) for name, lines in self.sections.items() if name != "methods"}
        return {
            "model": self.model,
            "sound": self.sound,
            "methods": methods,
            **{f"{k}_lines": v for k, v in lines.items()},
        }


def diagnose(name: str, picture: Path | None = None, *, force: bool = False) -> Diagnosis:
    """Load a model, look at one generated picture, and report.

    Args:
        name: an embedded model, a folder or a hub id.
        picture: where to draw the token layout of the sample picture: a .png, .jpg or .webp file.
        force: overwrite a file there that vlmprune has not written.

    Raises:
        UserError: the model cannot be loaded or pruned, or `picture` cannot be written.
    """
    target = None if picture is None else check_picture(picture, "picture", force=force)
    loaded = load_model(name)
    sample = sample_picture()
    inputs = sample_inputs(loaded.processor, sample).to(loaded.model.device, loaded.model.dtype)
    inputs.pop("labels", None)  # PaliGemma's processor makes some for training
    return examine(name, loaded.model, inputs, sample, target)


def examine(
    name: str, model: Any, inputs: Any, sample: Image.Image | None = None, target: Path | None = None
) -> Diagnosis:
    """The same for a model and what its processor made of one picture and a question."""
    adapter = adapter_for(model)
    parts, shown = {"model": describe_model(name, adapter, inputs)}, True
    try:
        with vlmprune.prune(model, SHOWN) as session, torch.no_grad():
            model(**inputs)
        layout = Layout.of(adapter, inputs, session.last)
        parts["layout"] = describe_layout(layout, SHOWN)
        if target is not None:
            save_layout(layout, sample, f"The visual tokens of {name}", SHOWN, target)
            parts["drawing"] = [f"The layout is drawn in {target}."]
    except Exception as error:  # doctor is there for models on which this fails: the rest of the report says more
        parts["failure"] = [f"a sample picture: pruning it with {SHOWN} FAILS: {in_words(error)}"]
        shown = False
    asked = [ask(adapter, prompts(adapter, inputs)) for prompts in (one_prompt, padded_batch)]
    able = [one.prompts for one in asked if one.unpruned]
    prompts_tried = able[-1] if able else asked[0].prompts
    tried = try_methods(adapter, prompts_tried)
    parts["methods"] = describe_methods(adapter, prompts_tried, tried)
    parts["proof"], proven = prove(adapter, asked)
    unbroken = all(one.status != BREAKS for one in tried)
    return Diagnosis(name, parts, tried, shown and unbroken and proven)


def sample_picture() -> Image.Image:
    """A picture with one bright disc, wider than it is high, so that a transposed grid would show."""
    rows, cols = torch.meshgrid(torch.arange(168), torch.arange(224), indexing="ij")
    disc = (rows - 60) ** 2 + (cols - 150) ** 2 < 30**2
    picture = torch.full((168, 224, 3), 90, dtype=torch.uint8)
    picture[disc] = torch.tensor([230, 60, 40], dtype=torch.uint8)
    return Image.fromarray(picture.numpy())


def sample_inputs(processor: Any, sample: Image.Image) -> Any:
    """The sample picture and a question as the processor words them; without a template where it has none."""
    token = getattr(processor, "image_token", None)
    if getattr(processor, "chat_template", None) or token is None:
        return chat_inputs(processor, sample, QUESTION)
    try:
        return processor(images=[sample], text=[f"{token}{QUESTION}"], return_tensors="pt")
    except ValueError as error:
        raise UserError(f"The processor refuses the sample picture: {str(error).strip().splitlines()[0]}") from error

"""One question about one picture: `vlmprune run`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

import vlmprune
from vlmprune.ask.overlay import draw_run
from vlmprune.ask.sheet import shorten
from vlmprune.bench.load import load_model
from vlmprune.bench.marks import recorded
from vlmprune.bench.protocol import chat_prompt, generation_kwargs
from vlmprune.core.budget import Keep
from vlmprune.core.errors import Option, UserError
from vlmprune.core.method import PixelMethod
from vlmprune.core.outputs import check_picture, save_picture
from vlmprune.core.recipe import Recipe, recipe
from vlmprune.core.report import WORDS
from vlmprune.models.weights import first_sentence

MAX_NEW_TOKENS = 128


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def run_image(
    image_path: str | Path,
    question: str,
    model: str = "llava",
    method: str | None = None,
    keep: Keep | None = None,
    overlay: str | Path | None = None,
    text_tower: str | None = None,
    *,
    force: bool = False,
    note: Callable[[str], None] = _to_stderr,
) -> str:
    """Answer a question about a picture, pruned or not, and draw what was kept.

    Args:
        image_path: any picture Pillow reads; its EXIF orientation is respected, transparency is laid on white.
        question: put to the model through its chat template.
        model: an embedded model's name, a local folder, or a hub id.
        method: a method's name, one in a file (scope.py:Scope), or a recipe; the unpruned model without it.
        keep: the budget of a method that carries none.
        overlay: where to draw kept and dropped patches: a .png, .jpg or .webp file.
        text_tower: the CLIP model (folder or hub id) whose vision tower the model has, for methods that compare the
            picture with the question.
        force: overwrite a file at `overlay` that vlmprune has not written; never the picture that is asked about.
        note: told in one sentence what the user should know beside the answer.

    Raises:
        UserError: anything above cannot be used, in one sentence.
    """
    if not question.strip():
        raise UserError("There is no question: give one, such as ", Option("question", "What is this?"), ".")
    asked = _recipe(method, keep, overlay)
    target = None
    if overlay is not None:
        target = check_picture(Path(overlay), "overlay", reads=[Path(image_path)], force=force)
    image = open_image(Path(image_path))
    loaded = load_model(model)
    tower = None if text_tower is None else vlmprune.TextTower.from_pretrained(text_tower, loaded.processor.tokenizer)
    read = {"text_tower": tower, "tokenizer": loaded.processor}
    session = None if asked is None else vlmprune.prune(loaded.model, asked, **read)
    inputs = chat_inputs(loaded.processor, image, question)
    if unknown := _unknown_words(loaded.processor, question):
        note(f"{model} does not know the words {', '.join(unknown)}: it was trained on a small vocabulary.")
    if session is None:
        return generate(loaded.model, loaded.processor, inputs)
    session.question = question
    if said := what_is_read(session.text, text_tower):
        note(said)
    with session:
        answer = generate(loaded.model, loaded.processor, inputs)
    if target is not None:
        try:
            sheet = draw_run(
                session.last,
                [image],
                title=f"{recorded(session.recipe)} on {model}",
                lines=[f"“{question}” {shorten(answer, 300)}"],
                processor=loaded.processor,
                resized=resizes(session.recipe),
            )
            _save(sheet, target)
        except UserError as error:
            raise UserError(*error.parts, f" The answer was: {answer}") from error
    return answer


def _recipe(method: str | None, keep: Keep | None, overlay: object) -> Recipe | None:
    if method is not None:
        return recipe(method, keep)
    if keep is not None:
        example = Option("method", "hiprune")
        raise UserError(Option("keep", keep), " prunes nothing without a method: add one, such as ", example, ".")
    if overlay is not None:
        added = Option("method", "hiprune"), " and ", Option("keep", 0.222)
        raise UserError("Without a method every token is kept and there is nothing to draw: add ", *added, ".")
    return None


def _save(sheet: Image.Image, target: Path) -> None:
    try:
        save_picture(sheet, target)
    except OSError as error:
        raise UserError(f"The overlay cannot be written to {str(target)!r}: {error.strerror or error}.") from error


def open_image(path: Path) -> Image.Image:
    """The picture as RGB, upright, transparent parts on white.

    Raises:
        UserError: there is no such file, or it is not a picture that can be read to its end.
    """
    if not path.exists():
        raise UserError(f"There is no picture {str(path)!r}.")
    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder, not a picture.")
    try:
        with Image.open(path) as opened:
            opened.load()
            return _as_rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise UserError(f"{str(path)!r} is not a picture in a format that Pillow reads.") from None
    except Image.DecompressionBombError:
        raise UserError(f"The picture {str(path)!r} has too many pixels to be opened safely.") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise UserError(f"The picture {str(path)!r} cannot be read: {error}.") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 bits per pixel and more: `convert` would clip instead of scaling
        values = np.asarray(image, np.float32)
        scale = 255 / 65535 if image.mode.startswith("I") and values.max() > 255 else 1.0
        return Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        solid = Image.new("RGBA", image.size, "white")
        solid.alpha_composite(image.convert("RGBA"))
        return solid.convert("RGB")
    return image.convert("RGB")


def resizes(asked: Recipe) -> bool:
    """Whether a recipe starts by resizing the image."""
    return isinstance(asked.stages[0].method, PixelMethod)


def chat_inputs(processor: Any, image: Image.Image, question: str) -> Any:
    """Model inputs for one picture and one question.

    Raises:
        UserError: the processor has no chat template, or refuses the picture.
    """
    prompt = chat_prompt(processor, question)
    try:
        return processor(images=[image], text=[prompt], return_tensors="pt")
    except ValueError as error:
        width, height = image.size
        raise UserError(
            f"The processor refuses a picture of {width}x{height} pixels: {first_sentence(error)}"
        ) from error


@torch.no_grad()
def generate(model: Any, processor: Any, inputs: Any, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
    """The greedy reply to one prompt, as text."""
    tokenizer = processor.tokenizer
    moved = inputs.to(model.device, model.dtype)
    settings = generation_kwargs(max_new_tokens)
    ids = model.generate(**moved, **settings, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(ids[0, moved["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def what_is_read(text: str | None, text_tower: str | None) -> str | None:
    """What a method compares the picture with, in a sentence; None where there is nothing to say.

    Args:
        text: as `Session.text`.
        text_tower: the CLIP model that was given.
    """
    if text is None:
        return None if text_tower is None else f"No method here reads the question: {text_tower} is not used."
    if text == WORDS:
        unused = "" if text_tower is None else f"; {text_tower} is not used"
        return f"The picture is compared with the language model's embeddings of the question's words{unused}."
    if text_tower is None:
        return (
            "The picture is compared with the language model's embeddings of the question; with a CLIP vision tower, "
            "--text-tower gives its text tower."
        )
    return f"The picture is compared with the question by the text tower of {text_tower}."


def _unknown_words(processor: Any, question: str) -> list[str]:
    """Words of the question that the tokenizer maps to its unknown token."""
    tokenizer = processor.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return []
    words = dict.fromkeys(question.split())
    return [word for word in words if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]

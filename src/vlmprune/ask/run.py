"""One question about one picture or video: `vlmprune run`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import vlmprune
from vlmprune.ask.media import open_media
from vlmprune.ask.overlay import draw_run
from vlmprune.ask.sheet import shorten
from vlmprune.ask.strip import draw_frames
from vlmprune.bench.load import Loaded, load_model
from vlmprune.bench.marks import recorded
from vlmprune.bench.protocol import chat_prompt, generation_kwargs, places_videos, video_arguments
from vlmprune.core.budget import Budget
from vlmprune.core.errors import Option, UserError
from vlmprune.core.method import PixelMethod
from vlmprune.core.outputs import check_picture, save_picture
from vlmprune.core.recipe import Recipe, recipe
from vlmprune.core.report import WORDS, RunReport
from vlmprune.data.video import Frames
from vlmprune.models.processors import takes_videos
from vlmprune.models.weights import first_sentence

MAX_NEW_TOKENS = 128


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: the reply.
        recipe: by which it was pruned, as results name it; None for the unpruned model.
        seconds: of generation, the encoder included.
        report: `session.last`; None for the unpruned model.
        of_video: whether it was asked about a video.
    """

    text: str
    recipe: str | None
    seconds: float
    report: RunReport | None = None
    of_video: bool = False

    def facts(self) -> dict[str, Any]:
        """All of it as plain values, the visual tokens of each frame included."""
        found: dict[str, Any] = {"answer": self.text, "recipe": self.recipe, "seconds": round(self.seconds, 4)}
        if self.report is None or not self.report.tokens:
            return found
        before, after = self.report.tokens[0]
        found["visual_tokens"] = {"before": before, "after": after, "entering": round(self.report.entering[0], 2)}
        found["selecting_seconds"] = round(self.report.seconds, 4)
        if self.of_video and self.report.grids[0][0] is not None:
            found["kept_by_frame"] = [len(kept) for kept in self.report.by_frame()]
        return found


def answer(
    path: str | Path,
    question: str,
    model: str = "llava",
    method: str | None = None,
    keep: Budget | None = None,
    overlay: str | Path | None = None,
    text_tower: str | None = None,
    *,
    frames: int | None = None,
    fps: float | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    device: str | None = None,
    positions: str | None = None,
    seed: int = 0,
    force: bool = False,
    note: Callable[[str], None] = _to_stderr,
) -> Answer:
    """Answer a question about a picture or a video, pruned or not, and draw what was kept.

    Args:
        path: any picture Pillow reads (its EXIF orientation is respected, transparency is laid on white); or a video,
            an animated picture, or a folder of frames.
        question: put to the model through its chat template.
        model: an embedded model's name, a local folder, or a hub id.
        method: a method's name, one in a file (scope.py:Scope), or a recipe; the unpruned model without it.
        keep: the budget of a method that carries none.
        overlay: where to draw kept and dropped patches: a .png, .jpg or .webp file.
        text_tower: the CLIP model (folder or hub id) whose vision tower the model has, for methods that compare the
            picture with the question.
        frames, fps: which frames of a video (`ask.media.open_media`).
        max_new_tokens: length of the reply at most.
        device: "cpu", "cuda", ...; the GPU when there is one.
        positions, seed: as `vlmprune.prune` takes them.
        force: overwrite a file at `overlay` that vlmprune has not written; never the picture that is asked about.
        note: told in one sentence what the user should know beside the answer.

    Raises:
        UserError: anything above cannot be used, in one sentence.
    """
    if not question.strip():
        raise UserError("There is no question: give one, such as ", Option("question", "What is this?"), ".")
    if max_new_tokens < 1:
        raise UserError(Option("max_new_tokens", max_new_tokens), " must be at least 1.")
    asked = _recipe(method, keep, overlay)
    target = None
    if overlay is not None:
        target = check_picture(Path(overlay), "overlay", reads=[Path(path)], force=force)
    media = open_media(Path(path), frames, fps)
    loaded = load_model(model, device, text_tower)
    session = None
    if asked is not None:
        read: dict[str, Any] = {"text_tower": loaded.text_tower, "tokenizer": loaded.processor}
        session = vlmprune.prune(loaded.model, asked, **read, positions=positions, seed=seed)
    inputs = chat_inputs(loaded.processor, media, question)
    if unknown := _unknown_words(loaded.processor, question):
        note(f"{model} does not know the words {', '.join(unknown)}: it was trained on a small vocabulary.")
    if session is None:
        return _timed(loaded, inputs, max_new_tokens)
    session.question = question
    if said := what_is_read(session.text, text_tower, loaded.text_tower is not None):
        note(said)
    with session:
        found = _timed(loaded, inputs, max_new_tokens, session)
    found = replace(found, of_video=isinstance(media, Frames))
    if target is not None:
        about: dict[str, Any] = {"title": f"{found.recipe} on {model}", "processor": loaded.processor}
        about["lines"] = [f"“{question}” {shorten(found.text, 300)}"]
        try:
            if isinstance(media, Frames):
                sheet = draw_frames(session.last, media, **about)
            else:
                sheet = draw_run(session.last, [media], **about, resized=resizes(session.recipe))
            _save(sheet, target)
        except UserError as error:
            raise UserError(*error.parts, f" The answer was: {found.text}") from error
    return found


def _timed(loaded: Loaded, inputs: Any, max_new_tokens: int, session: Any = None) -> Answer:
    start = time.perf_counter()
    text = generate(loaded.model, loaded.processor, inputs, max_new_tokens)
    seconds = time.perf_counter() - start
    if session is None:
        return Answer(text, None, seconds)
    return Answer(text, recorded(session.recipe), seconds, session.last)


def _recipe(method: str | None, keep: Budget | None, overlay: object) -> Recipe | None:
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


def resizes(asked: Recipe) -> bool:
    """Whether a recipe starts by resizing the image."""
    return isinstance(asked.stages[0].method, PixelMethod)


def chat_inputs(processor: Any, media: Image.Image | Frames, question: str) -> Any:
    """Model inputs for one picture or video and one question.

    Raises:
        UserError: the processor has no chat template, takes no videos, or refuses the picture.
    """
    video = isinstance(media, Frames)
    if video and not takes_videos(processor):
        raise UserError(
            f"{type(processor).__name__} prepares no videos here: ask about a picture, or choose another model "
            "(docs/models.md); for some models the torchvision that fits your torch has to be installed."
        )
    prompt = chat_prompt(processor, [{"type": "video" if video else "image"}, {"type": "text", "text": question}])
    if video and not places_videos(processor):
        raise UserError(
            "This model's chat template has no place for a video: ask about a picture, or choose another model."
        )
    given = video_arguments([media]) if isinstance(media, Frames) else {"images": [media]}
    try:
        return processor(text=[prompt], return_tensors="pt", **given)
    except ValueError as error:
        height, width = media.pixels.shape[1:3] if isinstance(media, Frames) else media.size[::-1]
        what = "frames" if video else "a picture"
        raise UserError(f"The processor refuses {what} of {width}x{height} pixels: {first_sentence(error)}") from error


@torch.no_grad()
def generate(model: Any, processor: Any, inputs: Any, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
    """The greedy reply to one prompt, as text."""
    tokenizer = processor.tokenizer
    moved = inputs.to(model.device, model.dtype)
    settings = generation_kwargs(max_new_tokens)
    ids = model.generate(**moved, **settings, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(ids[0, moved["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def what_is_read(text: str | None, text_tower: str | None, has_tower: bool) -> str | None:
    """What a method compares the picture with, in a sentence; None where there is nothing to say.

    Args:
        text: as `Session.text`.
        text_tower: the CLIP model that was given.
        has_tower: whether there is one, given or the model's own.
    """
    if text is None:
        return None if text_tower is None else f"No method here reads the question: {text_tower} is not used."
    if text == WORDS:
        unused = "" if text_tower is None else f"; {text_tower} is not used"
        return f"The picture is compared with the language model's embeddings of the question's words{unused}."
    if not has_tower:
        return (
            "The picture is compared with the language model's embeddings of the question; with a CLIP vision tower, "
            "--text-tower gives its text tower."
        )
    return f"The picture is compared with the question by the text tower of {text_tower or 'its CLIP'}."


def _unknown_words(processor: Any, question: str) -> list[str]:
    """Words of the question that the tokenizer maps to its unknown token."""
    tokenizer = processor.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return []
    words = dict.fromkeys(question.split())
    return [word for word in words if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]

"""A question about pictures or videos, under one or several recipes: `vlmprune run`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlmprune.ask.media import open_media
from vlmprune.bench.load import Loaded, load_model
from vlmprune.bench.marks import recorded
from vlmprune.bench.protocol import chat_prompt, generation_kwargs, places_videos, video_arguments
from vlmprune.bench.timing import Clock, Ticks
from vlmprune.core.budget import Budget
from vlmprune.core.errors import Option, UserError
from vlmprune.core.outputs import check_picture, save_picture
from vlmprune.core.recipe import Recipe, recipe
from vlmprune.core.report import WORDS, RunReport
from vlmprune.data.video import Frames
from vlmprune.drawing.compare import Comparison, Side
from vlmprune.drawing.overlay import is_flip, side_of, unpruned_panel
from vlmprune.drawing.run import draw_run
from vlmprune.drawing.sheet import below, shorten
from vlmprune.drawing.strip import draw_frames
from vlmprune.drawing.window import seen_window
from vlmprune.models.processors import takes_videos
from vlmprune.models.weights import first_sentence

MAX_NEW_TOKENS = 128


def to_stderr(sentence: str) -> None:
    """Where notes go that are not part of an answer."""
    print(sentence, file=sys.stderr)


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: the reply.
        recipe: by which it was pruned, as results name it; None for the unpruned model.
        seconds: of generation, the encoder included.
        first: seconds of these up to the first new token: the encoder, the method and the prefill.
        report: `session.last`; None for the unpruned model.
        of_video: whether it was asked about a video.
    """

    text: str
    recipe: str | None
    seconds: float
    first: float
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


@dataclass(frozen=True)
class Question:
    """What is asked, of each picture and under each recipe in the same way.

    Attributes:
        text: put to the model through its chat template.
        frames, fps: which frames of a video (`ask.media.open_media`).
        max_new_tokens: length of the reply at most.
        positions, seed: as `vlmprune.prune` takes them.
    """

    text: str
    frames: int | None = None
    fps: float | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    positions: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise UserError where it cannot be asked."""
        if not self.text.strip():
            raise UserError("There is no question: give one, such as ", Option("question", "What is this?"), ".")
        if self.max_new_tokens < 1:
            raise UserError(Option("max_new_tokens", self.max_new_tokens), " must be at least 1.")


def answer(
    path: str | Path,
    question: str,
    model: str = "llava",
    method: str | None = None,
    keep: Budget | None = None,
    overlay: str | Path | None = None,
    text_tower: str | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    note: Callable[[str], None] = to_stderr,
    **asked: Any,
) -> Answer:
    """Answer a question about a picture or a video, pruned or not, and draw what was kept.

    Args:
        path: any picture Pillow reads (its EXIF orientation is respected, transparency is laid on white); or a video,
            an animated picture, or a folder of frames.
        model: an embedded model's name, a local folder, or a hub id.
        method: a method's name, one in a file (scope.py:Scope), or a recipe; the unpruned model without it.
        keep: the budget of a method that carries none.
        overlay: where to draw kept and dropped patches: a .png, .jpg or .webp file.
        text_tower: the CLIP model (folder or hub id) whose vision tower the model has, for methods that compare the
            picture with the question.
        device, dtype: see `bench.load.load_model`.
        force: overwrite a file at `overlay` that vlmprune has not written; never the picture that is asked about.
        note: told in one sentence what the user should know beside the answer.
        asked: further fields of `Question`.

    Raises:
        UserError: anything above cannot be used, in one sentence.
    """
    whole = Question(question, **asked)
    whole.check()
    recipes = recipes_of(() if method is None else (method,), () if keep is None else (keep,), overlay)
    target = None if overlay is None else check_picture(Path(overlay), "overlay", reads=[Path(path)], force=force)
    media = open_media(Path(path), whole.frames, whole.fps)
    loaded = load_model(model, device, text_tower, dtype)
    [found] = Asking(loaded, whole, recipes, text_tower=text_tower, note=note).of(media)
    if target is not None:
        save_sheet(media, [found], whole, loaded, target)
    return found


def recipes_of(methods: Sequence[str], keeps: Sequence[Budget], overlay: object = None) -> list[Recipe | None]:
    """The recipes of methods under budgets; a method that carries its own is there once. None: the unpruned model.

    Raises:
        UserError: a method or budget is not one, or there is a budget or a file to draw into without a method.
    """
    found: dict[str, Recipe | None] = {}
    for method in methods:
        carries = len(methods) > 1 and carries_budget(method)
        for keep in (None,) if carries or not keeps else keeps:
            one = recipe(method, keep)
            found[recorded(one)] = one
    if found:
        return list(found.values())
    if keeps:
        example = Option("method", "hiprune")
        raise UserError(Option("keep", keeps[0]), " prunes nothing without a method: add one, such as ", example, ".")
    if overlay is not None:
        added = Option("method", "hiprune"), " and ", Option("keep", 0.222)
        raise UserError("Without a method every token is kept and there is nothing to draw: add ", *added, ".")
    return [None]


def carries_budget(method: str) -> bool:
    """Whether a method or recipe needs no budget beside it."""
    try:
        recipe(method)
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class Asking:
    """A model that is asked a question, under some recipes.

    Attributes:
        recipes: in the order of the answers; None for the unpruned model.
        text_tower: as the user named it.
        note: told in one sentence what the user should know beside the answers.
    """

    loaded: Loaded
    question: Question
    recipes: Sequence[Recipe | None]
    text_tower: str | None = None
    note: Callable[[str], None] = to_stderr

    def of(self, media: Image.Image | Frames) -> list[Answer]:
        """The answers about a picture or a video, one for each recipe."""
        inputs = chat_inputs(self.loaded.processor, media, self.question.text)
        if unknown := _unknown_words(self.loaded.processor, self.question.text):
            name = self.loaded.name
            self.note(f"{name} does not know the words {', '.join(unknown)}: it was trained on a small vocabulary.")
        sessions = [self._session(one) for one in self.recipes]  # all checked before any runs
        said = dict.fromkeys(what_is_read(one.text, self.text_tower, self._has_tower) for one in sessions if one)
        for sentence in said:
            if sentence:
                self.note(sentence)
        of_video = isinstance(media, Frames)
        return [replace(self._answer(inputs, session), of_video=of_video) for session in sessions]

    @property
    def _has_tower(self) -> bool:
        return self.loaded.text_tower is not None

    def _session(self, asked: Recipe | None) -> Any:
        if asked is None:
            return None
        session = self.loaded.session(asked, self.question.positions, self.question.seed)
        session.question = self.question.text
        return session

    def _answer(self, inputs: Any, session: Any) -> Answer:
        if session is None:
            return _timed(self.loaded, inputs, self.question.max_new_tokens)
        with session:
            return _timed(self.loaded, inputs, self.question.max_new_tokens, session)


def save_sheet(
    media: Image.Image | Frames, answers: Sequence[Answer], question: Question, loaded: Loaded, target: Path
) -> None:
    """Draw what became of a picture's patches under each recipe, and write it to `target`.

    Raises:
        UserError: it cannot be drawn or written; the sentence holds the answers, which took their time.
    """
    try:
        _save(_sheet(media, answers, question, loaded), target)
    except UserError as error:
        said = "; ".join(one.text for one in answers)
        raise UserError(*error.parts, f" The answer was: {said}") from error


def _sheet(media: Image.Image | Frames, answers: Sequence[Answer], question: Question, loaded: Loaded) -> Image.Image:
    plain = next((one.text for one in answers if one.report is None), None)
    pruned = [(one.recipe or "", one, one.report) for one in answers if one.report is not None]
    asked = f"“{question.text}”"
    unpruned = [] if plain is None else [f"unpruned: {shorten(plain, 300)}"]
    if isinstance(media, Frames):
        strips = []
        for name, one, report in pruned:
            changed = " (changed)" if plain is not None and is_flip(one.text, plain) else ""
            lines = [f"{asked} {shorten(one.text, 300)}{changed}", *unpruned]
            title = f"{name} on {loaded.name}"
            strips.append(draw_frames(report, media, title=title, lines=lines, processor=loaded.processor))
        return below(strips)
    if len(pruned) == 1:
        [(name, one, report)] = pruned
        changed = " (changed)" if plain is not None and is_flip(one.text, plain) else ""
        about: dict[str, Any] = {"title": f"{name} on {loaded.name}", "processor": loaded.processor}
        first = None if plain is None else unpruned_panel(media, report, shorten(plain, 120))
        return draw_run(report, [media], **about, lines=[f"{asked} {shorten(one.text, 300)}{changed}"], first=first)
    sides = [] if plain is None else [Side("unpruned", None, pruned[0][2].tokens[0][0], answer=plain)]
    sides += [side_of(name, report, one.text, plain) for name, one, report in pruned]
    return Comparison(media, seen_window(loaded.processor, media.size), sides).sheet([f"{asked} on {loaded.name}"])


def _timed(loaded: Loaded, inputs: Any, max_new_tokens: int, session: Any = None) -> Answer:
    clock = Clock(loaded.model.device)
    ticks = Ticks(clock)
    start = clock.mark()
    text = generate(loaded.model, loaded.processor, inputs, max_new_tokens, ticks)
    end = clock.mark()
    clock.wait()
    seconds, first = clock.seconds(start, end), clock.seconds(start, ticks.marks[0])
    if session is None:
        return Answer(text, None, seconds, first)
    return Answer(text, recorded(session.recipe), seconds, first, session.last)


def _save(sheet: Image.Image, target: Path) -> None:
    try:
        save_picture(sheet, target)
    except OSError as error:
        raise UserError(f"The overlay cannot be written to {str(target)!r}: {error.strerror or error}.") from error


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
def generate(
    model: Any, processor: Any, inputs: Any, max_new_tokens: int = MAX_NEW_TOKENS, ticks: Ticks | None = None
) -> str:
    """The greedy reply to one prompt, as text; `ticks` marks each new token."""
    tokenizer = processor.tokenizer
    moved = inputs.to(model.device, model.dtype)
    settings = generation_kwargs(max_new_tokens)
    watching = {} if ticks is None else {"stopping_criteria": [ticks]}
    ids = model.generate(**moved, **settings, **watching, pad_token_id=tokenizer.pad_token_id)
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

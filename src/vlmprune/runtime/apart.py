"""Images pruned apart from their prompt, for engines that count the tokens of an image before they encode it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from vlmprune.core.act import Act
from vlmprune.core.budget import ByAge, Keeps, resolve_keep
from vlmprune.core.errors import Option, UserError
from vlmprune.core.method import PixelMethod
from vlmprune.core.needs import Need, PromptNeed
from vlmprune.core.recipe import Recipe
from vlmprune.core.roles import merges_inside
from vlmprune.core.view import ModelInfo
from vlmprune.models import adapter_for
from vlmprune.models.base import Adapter, Slots
from vlmprune.models.llava_next import LlavaNextAdapter
from vlmprune.runtime.before import Entering, run_vision_acts
from vlmprune.runtime.encoder_reading import WholeCall, encoder_needs
from vlmprune.runtime.flow import standing
from vlmprune.runtime.prompt_reading import Picked
from vlmprune.runtime.prompt_text import ImageText, Vocabulary
from vlmprune.runtime.select import Known, due_of
from vlmprune.runtime.text_tower import TextTower
from vlmprune.runtime.vision import ImageTokens, VisionWrapper, check_merges_inside, current_names, joined, own_encoding

One = TypeVar("One")
OTHERWISE = (", or serve with ", Option("engine", "transformers"), ".")
TRIED = 64  # tokens of an image of which a method is asked how many it would leave


class Count(NamedTuple):
    """Tokens of one image or video: all that it has, and how many of them are kept."""

    whole: int
    kept: int


@dataclass(frozen=True)
class Kept:
    """What is left of one image or video.

    Attributes:
        features: [m, D] what the LLM reads.
        slots: [m] the slot of each token, counted from the image's first slot; -1 for none.
        columns: [m] the column that lends each token its position, counted from the image's first placeholder.
        places: [m] the column at which each token stands; those at one column follow one another in this order.
        levels: [m, D] each, what the first decoder layers add to their outputs (DeepStack); none on most models.
    """

    features: Tensor
    slots: Tensor
    columns: Tensor
    places: Tensor
    levels: tuple[Tensor, ...] = ()


class Apart:
    """A recipe on one model, image by image, without a prompt.

    Args:
        model: of transformers; its weights may be on the device "meta" where nothing is encoded.

    Attributes:
        seconds: time spent on reading the encoder and on selecting, in all.
        whole: for an engine that shares attention out over GPUs, see `EncoderReader`.
        text_tower, vocabulary: what reads the question, see `ImageText`.

    Raises:
        UserError: `check_apart` refuses the recipe on this model.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, scores: str = "auto") -> None:
        self.adapter, self.recipe, self._scores = adapter_for(model), recipe, scores
        check_apart(recipe, self.adapter.info)
        check_merges_inside(self.adapter, recipe)
        encoder_needs(self.adapter, [recipe])  # a method that cannot read this encoder says so
        check_resizes(self.adapter, recipe)
        self.acts = tuple(act.at(0, 0, 1) for act in recipe.on(self.adapter.info).acts)
        self.seconds = 0.0
        self.whole: WholeCall | None = None
        self.text_tower: TextTower | None = None
        self.vocabulary: Vocabulary | None = None

    @property
    def draws(self) -> bool:
        """Whether a method draws random numbers, so that an image needs a seed."""
        return any(act.method.draws for act in self.acts)

    @property
    def reads(self) -> bool:
        """Whether a method compares an image with the question, so that it is encoded for one question."""
        return any(need.of_text for act in self.acts for need in act.needs.values())

    @property
    def needs_tower(self) -> bool:
        """Whether a method does so by a text tower, if there is one."""
        needs = [need for act in self.acts for need in act.needs.values()]
        return any(isinstance(need, PromptNeed) and need.compares_text for need in needs)

    def policy(self, forced: str | None = None) -> str:
        """How kept tokens are numbered: "original" or "compact" (see `Plan.policies`)."""
        return self.recipe.on(self.adapter.info).policies(forced).get(0, "original")

    def counts(self, modality: str, call: dict[str, Any], parts: Sequence[int]) -> list[Count]:
        """How many tokens each image of a call has, and keeps, before anything is encoded.

        Args:
            modality: "image" or "video".
            call: arguments of the model's `get_*_features`, as the processor made them.
            parts: for each image how many rows of the processor's pixels are its own.

        Raises:
            UserError: a method cannot run on such an image.
        """
        places = self.adapter.slots(modality, current_names(self.adapter, call))
        pieces = [self._empty(place, modality) for place in places]
        images = [joined(own) for own in grouped(pieces, parts)]
        return [Count(image.count, self._kept(image)) for image in images]

    def encode(
        self, modality: str, call: dict[str, Any], parts: Sequence[int], seeds: Sequence[int],
        columns: Sequence[Tensor] | None = None, question: str | None = None,
    ) -> list[Kept]:  # fmt: skip
        """Encode the images of a call and prune each one; arguments as for `counts`.

        Args:
            seeds: one for each image, for methods that draw.
            columns: of the placeholders of each image, counted from its first one; one after another by default.
            question: what methods that read it compare the images with.

        Raises:
            UserError: a method reads the question, and there is none, or nothing that reads it.
        """
        if self.reads and question is None:
            raise UserError(f"{self.recipe} compares images with a question, and there is none.")
        stage = own_encoding(self.recipe)
        wrapper = VisionWrapper(self.adapter, modality, [self.recipe], stage, lambda *_: None, self._scores, self.whole)
        output = wrapper.run(current_names(self.adapter, call))
        record, start = output["vlmprune_record"], time.perf_counter()
        images = [joined(own) for own in grouped(record.images, parts)]
        entering = [
            Entering(image, self.acts, None, Known(self._text(image, question), seed))
            for image, seed in zip(images, seeds, strict=True)
        ]
        run_vision_acts(entering)
        self.seconds += record.seconds + time.perf_counter() - start
        deep = getattr(output, "deepstack_features", None)
        levels = zip(*deep, strict=True) if deep else [()] * len(images)
        where = [torch.arange(image.count) for image in images] if columns is None else columns
        return [
            _kept_of(one.image, one.states[-1], own, its) for one, own, its in zip(entering, levels, where, strict=True)
        ]

    def _text(self, image: ImageTokens, question: str | None) -> ImageText:
        """A prompt of nothing but the question: `check_apart` has refused methods that read more of it."""
        nothing = torch.zeros(0, dtype=torch.long, device=image.features.device)
        return ImageText(
            image.features[:0], nothing.bool(), nothing, 0, nothing, None, self.text_tower, question, self.vocabulary
        )

    def tiles(self, call: dict[str, Any]) -> list[int] | None:
        """How many tiles each image of a call has of those that its pixels have room for; None where they fill it."""
        return self.adapter.tiles(call) if isinstance(self.adapter, LlavaNextAdapter) else None

    def _empty(self, places: Slots, modality: str) -> ImageTokens:
        count = len(places.cells)
        rows, slots = torch.empty(count, 0), torch.arange(count)
        return ImageTokens(rows, slots, places, self.adapter, video=modality == "video")

    def _kept(self, image: ImageTokens) -> int:
        left, reached = image.count, dict[int, int]()
        for act in self.acts:
            first = reached.setdefault(act.stage, left)
            left = _left(act.of(first, image.grid, image.video), image, left, first)
        return left


def _kept_of(image: ImageTokens, picked: Picked, levels: Sequence[Tensor], columns: Tensor) -> Kept:
    if len(columns) != image.count:
        raise RuntimeError(f"{len(columns)} columns are not those of {image.count} placeholders")
    features = image.features[picked.origin] if picked.features is None else picked.features
    columns = columns.to(picked.slots.device)
    lent, places = standing(columns, picked.slots, made=picked.features is not None)
    slots = torch.searchsorted(columns, lent)
    return Kept(features, picked.slots, lent, places, tuple(level[slots] for level in levels))


def check_apart(recipe: Recipe, info: ModelInfo) -> None:
    """Raise UserError where images cannot be pruned by this recipe before their prompt is read."""
    for stage in recipe.stages:
        if isinstance(stage.keep, ByAge):
            raise UserError(
                f"A budget by age ({stage.keep}) is for a single method in this engine: give all images one budget",
                *OTHERWISE,
            )
        if isinstance(stage.keep, Keeps):
            raise UserError(f"The engine prunes each image by itself: give one budget instead of {stage.keep}.")
    for act in recipe.on(info).acts:
        name = act.method.name
        if act.layer is not None:
            raise UserError(
                f"{name} prunes inside the LLM, where the engine has a fixed number of tokens in all layers: choose a "
                "method that acts before the LLM, such as divprune",
                *OTHERWISE,
            )
        if not all(_known_apart(need) for need in act.needs.values()):
            raise UserError(
                f"{name} reads the words of the prompt as they stand, and the engine encodes images apart from their "
                "prompt: choose a method that reads the image and the question alone, such as divprune or trim",
                *OTHERWISE,
            )
        if not act.method.exact and act.method.left(act.of(TRIED), TRIED, TRIED) is None:
            raise UserError(
                f"{name} decides from the image how many tokens it keeps, and the engine must know that before: choose "
                "a method with an exact budget, such as divprune",
                *OTHERWISE,
            )


def check_resizes(adapter: Adapter, recipe: Recipe) -> None:
    """Raise UserError where a method shrinks pictures and the encoder takes one size alone."""
    for stage in recipe.stages:
        if isinstance(stage.method, PixelMethod) and not adapter.resizes:
            raise UserError(
                f"{stage.method.name} shrinks pictures, and those of {adapter.family} have one size: "
                "choose a method that drops tokens, such as divprune."
            )


def grouped(pieces: Sequence[One], parts: Sequence[int]) -> list[list[One]]:
    """The pieces of each image: one, or one for each of its rows of pixels."""
    if len(pieces) == len(parts):
        return [[piece] for piece in pieces]
    if len(pieces) != sum(parts):
        raise RuntimeError(f"{len(pieces)} pieces cannot be told apart as {len(parts)} images of {list(parts)} parts")
    found, begin = [], 0
    for size in parts:
        found.append(list(pieces[begin : begin + size]))
        begin += size
    return found


def _left(act: Act, image: ImageTokens, left: int, first: int) -> int:
    """How many of the `left` tokens of an image an act leaves.

    Args:
        act: taken `of` the image.
        first: how many reached the first act of its method.
    """
    method = act.method
    if isinstance(method, PixelMethod):
        if image.grid is None or not image.places.plain:
            raise UserError(f"{method.name} needs a model whose slots form a grid: this one has slots outside it.")
        budget = resolve_keep(act.keep, image.grid.size)
        return left if budget >= image.grid.size else method.resize(image.grid, budget).size
    if merges_inside(method):
        return min(left, act.budget(left, left))
    if not method.exact:
        known = method.left(act, left, first)
        assert known is not None  # `check_apart` has refused it
        return known
    if left == image.count:
        return min(left, due_of(act, image, torch.arange(left), first))
    if act.keeps_blanks or act.by_frame is not None:
        raise UserError(f"{method.name} with such a budget can only come first: put no other method before it.")
    return min(left, act.budget(left, first))


def _known_apart(need: Need) -> bool:
    """Whether a signal is known without a prompt: it is none of its text, or of the question alone."""
    return not need.of_text or (isinstance(need, PromptNeed) and (need.compares_text or need.reads_words))

"""`prune`: the context manager that users see."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlmprune.core.budget import Keep
from vlmprune.core.errors import UserError
from vlmprune.core.method import POSITIONS, Method
from vlmprune.core.recipe import Recipe, recipe
from vlmprune.core.report import RunReport
from vlmprune.models import adapter_for
from vlmprune.runtime.attributes import put
from vlmprune.runtime.cache import session_closed, session_opened
from vlmprune.runtime.flow import Prompt, PromptImage
from vlmprune.runtime.head import Head, can_generate
from vlmprune.runtime.text import TextHooks
from vlmprune.runtime.vision import (
    ImageTokens,
    VisionRecord,
    VisionWrapper,
    current_names,
    encoder_keys,
    joined,
    own_encoding,
)

if TYPE_CHECKING:
    from vlmprune.runtime.text_tower import TextTower

IGNORED = -100  # label of a token that no loss is asked for; PaliGemma's processor gives nothing but these


def prune(
    model: nn.Module,
    method: str | Method | Recipe,
    keep: Keep | None = None,
    *,
    positions: str | None = None,
    seed: int = 0,
    text_tower: TextTower | None = None,
    **options: Any,
) -> Session:
    """Prune the visual tokens of an unmodified transformers model inside a `with` block.

    Args:
        model: a vision-language model such as `LlavaForConditionalGeneration`, one with another head (ColPali) or none
            (`AutoModel`); also inside PEFT's, torch.compile's or DDP's wrapper, or a pipeline. Pass what you call.
        method: a name (`"hiprune"`), a recipe (`"divprune:0.333 > fastv@2:0.333"`), or such an object.
        keep: share of each image's visual tokens in (0, 1], or a number of tokens an image. A recipe may carry its own.
        positions: "original" keeps the position ids that the kept tokens had, "compact" re-numbers them; by default
            what the method's authors do for this family.
        seed: for methods that draw random numbers.
        text_tower: for methods that compare the image with the question (`vlmprune.TextTower`): CLIP's, where the model
            has CLIP's vision tower. Without it they compare the LLM's own embeddings; `session.last.text` says which.
        options: the method's hyperparameters.

    Returns:
        A session to use as a context manager; `session.last` reports the last run. Everything is undone on exit.

    Raises:
        UserError: unsupported model, unknown method or option, a budget out of range, a text tower of another vision
            tower, a session already open.
    """
    if positions is not None and positions not in POSITIONS:
        raise UserError(f"positions={positions!r}: choose from {' and '.join(POSITIONS)}.")
    if not isinstance(seed, Integral):
        raise UserError(f"seed={seed!r} must be a whole number.")
    if text_tower is not None and not hasattr(text_tower, "text"):
        raise UserError("text_tower takes a tower, not its name: vlmprune.TextTower.from_pretrained(name, tokenizer).")
    return Session(model, recipe(method, keep, **options), positions, int(seed), text_tower)


class Session:
    """An open (or not yet opened) pruning of one model."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        positions: str | None = None,
        seed: int = 0,
        text_tower: TextTower | None = None,
    ) -> None:
        self.recipe, self.adapter = recipe, adapter_for(model)
        self.model = self.adapter.model
        self._called = [self.model]
        if isinstance(model, nn.Module) and model is not self.model:  # what is wrapped around it; not a pipeline
            self._called.append(model)
        recipe.check(self.adapter.info)
        self._text = TextHooks(self.adapter, recipe, positions, seed)
        self._text.text_tower = text_tower
        if text_tower is not None and self.text is not None:
            clip = self.adapter.tower_rows and self.adapter.has_cls
            text_tower.check(self.adapter.family, self.adapter.config.vision_config if clip else None)
        self._vision: list[VisionWrapper] = []
        self._records: dict[str, VisionRecord] = {}
        self._handles: list[Any] = []
        self._undo: list[Callable[[], None]] = []
        self._tail = 0

    @property
    def last(self) -> RunReport:
        """What the last prefill with images did."""
        return self._text.report

    @property
    def text(self) -> str | None:
        """What text-guided methods compare the image with, as `RunReport.text`; None where no method reads text."""
        return self._text.text_read

    @property
    def question(self) -> str | list[str] | None:
        """What the prompts ask, one for all samples or one for each: for a text tower, instead of reading the prompt.

        Set it where the prompt says more after the image than the question (options, "answer with one word").
        """
        return self._text.question

    @question.setter
    def question(self, question: str | list[str] | None) -> None:
        self._text.question = question

    def __enter__(self) -> Session:
        if "_vlmprune_session" in self.model.__dict__:
            raise UserError(
                "This model is being pruned already: chain methods in one recipe, as in 'divprune:0.5 > fastv:0.5'."
            )
        self.model.__dict__["_vlmprune_session"] = self
        session_opened(self.adapter.text_model)
        try:
            self._install()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _install(self) -> None:
        keys, first = encoder_keys(self.adapter, [self.recipe]), own_encoding(self.recipe)
        for modality in self.adapter.feature_functions:
            wrapper = VisionWrapper(self.adapter, modality, keys, first, self._records.__setitem__)
            wrapper.install()
            self._vision.append(wrapper)
        # PEFT's wrapper calls forward, past the hooks of the model inside
        self._handles = [m.register_forward_pre_hook(self._before_model, with_kwargs=True) for m in self._called]
        if not can_generate(self.model) and self.adapter.inner is not self.model:
            self._handles += Head(self.adapter, lambda: self.last).install()  # before the hook that reads the images
        self._handles.append(self.adapter.inner.register_forward_pre_hook(self._before_inner, with_kwargs=True))
        if can_generate(self.model):
            self._watch_generate()
        self._text.install()

    def _watch_generate(self) -> None:
        self._refuse_chunks()
        self._watch_generate_mask()
        if any(stage.method.trims_cache for stage in self._text.at_layer.values()):
            self._hold_candidates_back()

    def _remove(self) -> None:
        self._text.remove()
        for handle in self._handles:
            handle.remove()
        for wrapper in self._vision:
            wrapper.remove()
        while self._undo:
            self._undo.pop()()
        self.model.__dict__.pop("_vlmprune_session", None)
        session_closed(self.adapter.text_model)

    def _refuse_chunks(self) -> None:
        """With `prefill_chunk_size` an image would reach the language model in pieces, and pass it unpruned."""
        original: Any = self.model.generate

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            config = kwargs.get("generation_config") or self.model.generation_config
            if kwargs.get("prefill_chunk_size") or getattr(config, "prefill_chunk_size", None):
                raise UserError(
                    "prefill_chunk_size cuts images into pieces: prefill in one piece under vlmprune.prune()."
                )
            return original(*args, **kwargs)

        self._undo.append(put(self.model, "generate", wrapper))

    def _watch_generate_mask(self) -> None:
        """`generate` turns its 2-D mask into a 4-D one for static caches; remember the 2-D one."""
        original: Any = self.model.prepare_inputs_for_generation

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            mask = kwargs.get("attention_mask")
            self._text.prompt_mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
            return original(*args, **kwargs)

        self._undo.append(put(self.model, "prepare_inputs_for_generation", wrapper))

    def _hold_candidates_back(self) -> None:
        """Prefill without the candidates of assisted decoding where caches are cut after it.

        In one forward with the prompt they would see all that the prompt sees, and their logits would be others than
        those of decoding step by step.
        """
        original: Any = self.model._get_candidate_generator

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            generator = original(*args, **kwargs)
            candidates = generator.get_candidates

            def none_at_first(input_ids: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, None]:
                generator.get_candidates = candidates
                return input_ids, None

            generator.get_candidates = none_at_first
            return generator

        self._undo.append(put(self.model, "_get_candidate_generator", wrapper))

    def _before_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        labels = kwargs.get("labels")
        if labels is not None and bool((labels != IGNORED).any()):
            raise UserError(
                "A pruned model has fewer logits than labels: pass no labels, or run outside vlmprune.prune()."
            )
        logits = kwargs.get("logits_to_keep", 0)
        self._tail = max(0, logits - 1) if isinstance(logits, int) else 0
        return args, {**kwargs, "labels": None} if labels is not None else kwargs

    def _before_inner(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note which images this forward carries; they may be encoded only inside it, so the prompt is read later."""
        self._records.clear()
        self._text.read_prompt = None
        tail, self._tail = self._tail, 0
        kwargs = current_names(self.adapter, kwargs)
        encoded = {name: out for name, out in (kwargs.get("mm_encoder_outputs") or {}).items() if out is not None}
        if encoded or any(kwargs.get(name) is not None for name in self.adapter.pixels.values()):
            ids = kwargs.get("input_ids", args[0] if args else None)
            embeds = kwargs.get("inputs_embeds")
            masks = self._placeholders(ids, embeds)
            blocks = self.adapter.blocks(kwargs)
            self._text.read_prompt = functools.partial(self._prompt, ids, embeds, masks, encoded, tail, blocks)
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:  # the model may hand the text model another one
            self._text.prompt_mask = mask

    def _placeholders(self, ids: Tensor | None, embeds: Tensor | None) -> dict[str, Tensor]:
        """[B, S] where the visual slots are, by modality."""
        masks = {}
        for modality, token in self.adapter.placeholder_ids.items():
            if ids is not None:
                masks[modality] = ids == token
            elif embeds is not None:
                table: Any = self.model.get_input_embeddings()  # type: ignore[operator]
                masks[modality] = (embeds == table(torch.tensor(token, device=embeds.device))).all(-1)
        return masks

    def _prompt(
        self,
        ids: Tensor | None,
        embeds: Tensor | None,
        masks: dict[str, Tensor],
        encoded: dict[str, Any],
        tail: int,
        blocks: Tensor | None,
    ) -> Prompt | None:
        records = dict(self._records)
        for modality, output in encoded.items():
            record = getattr(output, "vlmprune_record", None)
            if record is None:
                raise UserError(
                    "These images were encoded elsewhere: pass pixel_values, or use vlmprune.encode_images."
                )
            records[modality] = record
        wanted = own_encoding(self.recipe)
        if wanted is not None and any(record.shared for record in records.values()):
            raise UserError(f"{wanted} acts before or inside the encoder: pass pixel_values, not encoded images.")
        rows: list[list[PromptImage]] = [[] for _ in next(iter(masks.values()))]
        names = _numbered(embeds) if ids is None and embeds is not None else ids
        copies = 1
        for modality, record in records.items():
            counts, features = masks[modality].sum(1).tolist(), sum(image.count for image in record.images)
            copies = max(1, sum(counts) // max(1, features))
            if sum(counts) != copies * features:
                raise UserError(
                    f"The prompt has {sum(counts)} {modality} placeholder tokens (id "
                    f"{self.adapter.placeholder_ids[modality]}) for {features} {modality} features."
                )
            images = iter(record.images)
            taken: list[Any] = []
            for row, count in enumerate(counts):
                if row % copies == 0:  # beams repeat a sample's row, not its images
                    taken = _take(images, count)
                columns = masks[modality][row].nonzero().squeeze(1).split([image.count for image in taken])
                rows[row] += self._images(taken, columns, None if names is None else names[row])
        for row_images in rows:
            row_images.sort(key=lambda image: int(image.columns[0]))
        self._text.vision_seconds = sum(record.seconds for record in records.values() if not record.shared)
        return Prompt(rows, [row // copies for row in range(len(rows))], ids, tail, blocks)

    def _images(self, pieces: list[ImageTokens], columns: Sequence[Tensor], ids: Tensor | None) -> list[PromptImage]:
        """Put pieces that make one image together, as the adapter says."""
        images, at = [], 0
        for count in self.adapter.images(ids, columns) if pieces else []:
            part = slice(at, at + count)
            images.append(PromptImage(joined(pieces[part]), torch.cat(list(columns[part]))))
            at += count
        return images


def _numbered(embeds: Tensor) -> Tensor:
    """[B, S] numbers, equal where the embeddings [B, S, D] of a row are: in place of ids, to tell markers apart."""
    return torch.stack([torch.unique(row, dim=0, return_inverse=True)[1] for row in embeds])


def _take(images: Iterator[ImageTokens], count: int) -> list[ImageTokens]:
    taken: list[ImageTokens] = []
    while sum(image.count for image in taken) < count:
        taken.append(next(images))
    return taken


@dataclass
class EncodedInputs:
    """A model's inputs with the images already encoded, for any number of runs."""

    _inputs: dict[str, Any]
    _outputs: dict[str, Any]

    def inputs(self) -> dict[str, Any]:
        """Fresh keyword arguments for `model(...)` or `model.generate(...)`, which change what they are given."""
        copies = {}
        for modality, output in self._outputs.items():
            light = {name: value for name, value in output.items() if name not in ("hidden_states", "attentions")}
            pooled = output.pooler_output
            light["pooler_output"] = pooled if isinstance(pooled, Tensor) else list(pooled)
            copies[modality] = type(output)(light)  # from a mapping, as the record is no field of the class
        return {**self._inputs, "mm_encoder_outputs": copies}


@torch.no_grad()
def encode_images(
    model: nn.Module, inputs: Mapping[str, Any], methods: Iterable[str | Method | Recipe] | str | Method | Recipe
) -> EncodedInputs:
    """Run the vision tower once for several methods: features, and every statistic that any of them reads.

    For accuracy runs, where many methods see the same images. A method that acts on pixels (downsample) needs the
    plain inputs instead.

    Args:
        inputs: what the processor returned.
        methods: names, method objects or recipes that will be run on these images; also a single one.
    """
    adapter = adapter_for(model)
    several = [methods] if isinstance(methods, str | Method | Recipe) else methods
    recipes = [_with_any_keep(method) for method in several]
    keys = encoder_keys(adapter, [r for r in recipes if own_encoding(r) is None])
    outputs, rest = {}, current_names(adapter, inputs)
    for modality, name in adapter.feature_functions.items():
        if rest.get(adapter.pixels[modality]) is None:
            continue
        wrapper = VisionWrapper(adapter, modality, keys, None, lambda modality, record: None)
        known = inspect.signature(getattr(adapter.inner, name)).parameters
        outputs[modality] = wrapper.run({key: rest[key] for key in known if rest.get(key) is not None})
        outputs[modality].vlmprune_record.shared = True
        del rest[adapter.pixels[modality]]
    return EncodedInputs(rest, outputs)


def _with_any_keep(method: str | Method | Recipe) -> Recipe:
    try:
        return recipe(method)
    except UserError:
        return recipe(method, 1.0)

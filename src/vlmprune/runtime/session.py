"""`prune`: the context manager that users see."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlmprune.core.budget import Budget
from vlmprune.core.errors import UserError
from vlmprune.core.method import POSITIONS, Method
from vlmprune.core.recipe import Recipe, recipe
from vlmprune.core.report import RunReport
from vlmprune.core.window import warn_outside
from vlmprune.models import adapter_for
from vlmprune.runtime.attributes import Attachments
from vlmprune.runtime.cache import session_closed, session_opened, state_of
from vlmprune.runtime.candidates import watch_candidates
from vlmprune.runtime.compiled import CompiledSteps, passed, passes
from vlmprune.runtime.expected import EMBEDS, MASK, cache_in, interface, interface_of
from vlmprune.runtime.expected import POSITIONS as POSITION_IDS
from vlmprune.runtime.flow import Prompt, PromptImage
from vlmprune.runtime.growing import place_new_images
from vlmprune.runtime.head import Head, can_generate
from vlmprune.runtime.prefill import SharedPrefill, untouched
from vlmprune.runtime.repeated import check_encoded, check_order
from vlmprune.runtime.select import check_budgets
from vlmprune.runtime.text import Call, TextHooks
from vlmprune.runtime.vision import (
    ImageTokens,
    VisionRecord,
    VisionWrapper,
    check_merges_inside,
    current_names,
    joined,
    own_encoding,
)
from vlmprune.scores import WAYS, has_kernels

if TYPE_CHECKING:
    from vlmprune.runtime.text_tower import TextTower

CONTINUOUS = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")
IGNORED = -100  # label of a token that no loss is asked for; PaliGemma's processor gives nothing but these


def prune(
    model: nn.Module,
    method: str | Method | Recipe,
    keep: Budget | None = None,
    *,
    budget: str | None = None,
    positions: str | None = None,
    seed: int = 0,
    text_tower: TextTower | None = None,
    tokenizer: Any = None,
    scores: str = "auto",
    **options: Any,
) -> Session:
    """Prune the visual tokens of an unmodified transformers model inside a `with` block.

    Args:
        model: a vision-language model such as `LlavaForConditionalGeneration`, one with another head (ColPali) or none
            (`AutoModel`); also inside PEFT's, torch.compile's or DDP's wrapper, or a pipeline. Pass what you call.
        method: a name (`"hiprune"`), a recipe (`"divprune:0.333 > fastv@2:0.333"`), or such an object.
        keep: share of each image's visual tokens in (0, 1], or a number of tokens per image. A list has one for each
            image or video of a prompt, in prompt order, `[0.5, 0.1]` for every sample or `[[0.5, 0.1], [64]]` sample by
            sample. "16/frame" is a budget for each frame of a video; `[128, 64, 32]`, where the prompt has one video of
            three frames, or "[128, 64, 32]/frame" in any case, frame by frame. "0.5/latest+0.1/older" is a budget for
            the last image of a prompt and one for those before it. A recipe may carry its own.
        budget: what `keep` counts. "own", the default, is what the method's authors count (the mean over the layers in
            some methods, what the cut leaves in others). "mean" is the visual tokens that enter a decoder layer, mean
            over the layers (`session.last.entering`); "final" those left at the end. Both are solved for each image.
        positions: "original" keeps the position ids that the kept tokens had, "compact" re-numbers them; by default
            what the method's authors do for this family.
        seed: for methods that draw random numbers.
        text_tower: for methods that compare the image with the question (`vlmprune.TextTower`): CLIP's, where the model
            has CLIP's vision tower. Without it they compare the LLM's own embeddings; `session.last.text` says which.
        tokenizer: the model's tokenizer or processor, for methods that read the question word by word, and for
            `Session.question`. Without it they read the instruction's tokens as they stand in the prompt;
            `session.last.text` says which.
        scores: how attention statistics are computed: by "triton" (kernels, on a GPU), by "torch" (in chunks), or
            "auto", the former where they work; `session.last.scores` says which ran.
        options: the method's hyperparameters.

    Returns:
        A session to use as a context manager; `session.last` reports the last run. Everything is undone on exit.

    Raises:
        UserError: unsupported model, unknown method or option, a budget out of range or out of reach, a text tower of
            another vision tower, a session already open.
    """
    warn_outside()
    if positions is not None and positions not in POSITIONS:
        raise UserError(f"positions={positions!r}: choose from {' and '.join(POSITIONS)}.")
    if not isinstance(seed, Integral):
        raise UserError(f"seed={seed!r} must be a whole number.")
    if text_tower is not None and not hasattr(text_tower, "text"):
        raise UserError("text_tower takes a tower, not its name: vlmprune.TextTower.from_pretrained(name, tokenizer).")
    processor, tokenizer = tokenizer, getattr(tokenizer, "tokenizer", tokenizer)
    if tokenizer is not None and not (callable(tokenizer) and hasattr(tokenizer, "decode")):
        raise UserError(
            "tokenizer takes the model's tokenizer or processor, not its name: AutoProcessor.from_pretrained(name)."
        )
    if scores not in WAYS:
        raise UserError(f"scores={scores!r}: choose from {', '.join(WAYS)}.")
    if scores == "triton" and not has_kernels():
        raise UserError('scores="triton" needs the package triton, which is not installed: use "auto".')
    asked = recipe(method, keep, budget=budget, **options)
    session = Session(model, asked, positions, int(seed), text_tower, tokenizer, scores)
    session.processor = processor if hasattr(processor, "image_processor") else None
    return session


class Session:
    """An open (or not yet opened) pruning of one model.

    Attributes:
        recipe: what is done.
        processor: the model's processor, where `prune` was given one; overlays ask it what its crop cuts off.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        positions: str | None = None,
        seed: int = 0,
        text_tower: TextTower | None = None,
        tokenizer: Any = None,
        scores: str = "auto",
    ) -> None:
        self.recipe, self.adapter = recipe, adapter_for(model)
        self.processor: Any = None
        self.model = self.adapter.model
        self._called = [self.model]
        if isinstance(model, nn.Module) and model is not self.model:  # what is wrapped around it; not a pipeline
            self._called.append(model)
        recipe.check(self.adapter.info)
        check_merges_inside(self.adapter, recipe)
        self._text = TextHooks(self.adapter, recipe, positions, seed, text_tower, tokenizer, scores)
        if text_tower is not None and self._text.needs_tower:
            text_tower.check(self.adapter)
        self._attached = Attachments()

    def __repr__(self) -> str:
        state = "open" if self.model.__dict__.get("_vlmprune_session") is self else "closed"
        return f"<Session: {self.recipe} on {type(self.model).__name__}, {state}>"

    @property
    def budget(self) -> str:
        """What the budget counts: "own", "mean" or "final"; in a chain that of each stage, as in "own > mean"."""
        return " > ".join(stage.budget for stage in self.recipe.stages)

    @property
    def last(self) -> RunReport:
        """What the last prefill did, of this thread, or else of any; empty where it had no images."""
        return self._text.reports.last

    @property
    def text(self) -> str | None:
        """What text-guided methods compare the image with, as `RunReport.text`; None where no method reads text."""
        return self._text.text_read

    @property
    def question(self) -> str | list[str] | None:
        """What the prompts ask, one for all samples or one for each: for methods that read the question.

        Where it is not set, they read the prompt behind the image. Where it is, a text tower reads it, and without one
        the model's tokenizer, which `prune` must then be given.

        Set it where the prompt says more after the image than the question (options, "answer with one word").
        """
        return self._text.question

    @question.setter
    def question(self, question: str | list[str] | None) -> None:
        self._text.question = question

    @property
    def untouched(self) -> int:
        """How many of the first decoder layers it leaves as they are and does not look into, whatever the prompt."""
        return untouched(self._text)

    def share(self, prefill: SharedPrefill | None) -> None:
        """Take the first decoder layers of a prompt from another session's run, or leave them there. Before `with`."""
        self._text.prefill = prefill

    def __enter__(self) -> Session:
        if "_vlmprune_session" in self.model.__dict__:
            raise UserError(
                "This model is being pruned already: chain methods in one recipe, as in 'divprune:0.5 > fastv:0.5'."
            )
        self._attached.put(self.model, "_vlmprune_session", self)
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
        first = own_encoding(self.recipe)
        for modality in self.adapter.feature_functions:
            VisionWrapper(self.adapter, modality, [self.recipe], first, self._seen, self._text.scores).install(
                self._attached
            )
        for module in self._called:  # PEFT's wrapper calls forward, past the hooks of the model inside
            self._attached.pre_hook(module, self._before_model)
            if getattr(module, "has_talker", False):
                self._refuse_speech(module)
        if not can_generate(self.model) and self.adapter.inner is not self.model:
            Head(self.adapter, lambda: self.last).install(self._attached)  # before the hook that reads the images
        self._attached.pre_hook(self.adapter.inner, self._before_inner)
        self._attached.after(self.adapter.inner, self._after_inner)
        if can_generate(self.model):
            self._watch_generate()
        self._text.install(self._attached)

    def _watch_generate(self) -> None:
        self._refuse_chunks()
        for name in CONTINUOUS:
            if hasattr(self.model, name):
                self._attached.put(self.model, name, _refuse_continuous)
        self._watch_generate_mask()
        CompiledSteps(self.model, self._text).install(self._attached)
        place_new_images(self._attached, self.adapter)
        trims = any(act.method.trims_cache for act in self._text.at_layer.values())
        watch_candidates(self._attached, self.model, hold_back=trims)

    def _remove(self) -> None:
        self._text.remove()
        self._attached.undo()
        session_closed(self.adapter.text_model)

    def _seen(self, modality: str, record: VisionRecord) -> None:
        """Images were encoded: inside a call of the model, or before it."""
        if self._text.running.call is not None:
            self._text.running.call.records[modality] = record

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
            running, ids = self._text.running, next(iter(args), kwargs.get("inputs", kwargs.get("input_ids")))
            length = ids.shape[1] if isinstance(ids, Tensor) and ids.ndim == 2 else None
            length = None if kwargs.get(EMBEDS) is not None else length  # beside embeddings, `generate` drops the ids
            with running.drafting(getattr(config, "is_assistant", False)), running.generating(length):
                return original(*args, **kwargs)

        self._attached.put(self.model, "generate", wrapper)

    def _refuse_speech(self, wrapper: Any) -> None:
        """What speaks reads the thinker's hidden states of the prompt, a token for each of its ids."""
        original: Any = wrapper.generate
        either = "return_audio" in interface(original).names  # beside the mode, which it then overrules (Qwen3-Omni)

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            audio = kwargs.get("return_audio") if either else None
            if audio or (audio is None and kwargs.get("generation_mode") != "text"):
                raise UserError(
                    "A pruned prompt cannot be spoken about, as the talker reads a state for each of its tokens: call "
                    'generate with generation_mode="text".'
                )
            return original(*args, **kwargs)

        self._attached.put(wrapper, "generate", generate)

    def _watch_generate_mask(self) -> None:
        """`generate` turns its 2-D mask into a 4-D one for static caches, and ids into embeddings that were given."""
        original: Any = self.model.prepare_inputs_for_generation

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = interface(original).named(args, kwargs)
            mask, running = given.get(MASK), self._text.running
            running.mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
            running.other_mask = mask is not None and running.mask is None
            running.ids = ids = given.get("input_ids")
            if ids is not None and running.generation is not None:
                running.grown = running.generation.written(ids.shape[1], given.get("use_cache") is not False)
            return original(*args, **kwargs)

        self._attached.put(self.model, "prepare_inputs_for_generation", wrapper)

    def _before_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if passes(kwargs):
            return args, kwargs
        labels = kwargs.get("labels")
        if labels is not None and bool((labels != IGNORED).any()):
            raise UserError(
                "A pruned model has fewer logits than labels: pass no labels, or run outside vlmprune.prune()."
            )
        if (ids := interface_of(module).named(args, kwargs).get("input_ids")) is not None:
            self._text.running.ids = ids  # a head may hand on embeddings of them
        logits = kwargs.get("logits_to_keep", 0)
        tail = max(0, logits - 1) if isinstance(logits, int) else 0
        self._text.running.tail, self._text.running.grown = max(tail, self._text.running.grown), 0
        return args, {**kwargs, "labels": None} if labels is not None else kwargs

    def _before_inner(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note which images this forward carries; they may be encoded only inside it, so the prompt is read later."""
        if passes(kwargs):
            return
        if module is not self.adapter.inner:
            self._text.expected.surprise("A copy of the model that shares its hooks was called")
        running, call = self._text.running, Call()
        running.call, tail, running.tail = call, running.tail, 0
        given = current_names(self.adapter, interface_of(module).named(args, kwargs))
        call.cache, call.positions = cache_in(given), given.get(POSITION_IDS)
        mask, ids, embeds = given.get(MASK), given.get("input_ids"), given.get(EMBEDS)
        call.mask, running.mask = running.mask, None
        known, running.ids = running.ids, None
        if isinstance(mask, Tensor) and mask.ndim == 2:  # the model may hand the text model another one
            call.mask = mask
        encoded = {name: out for name, out in (given.get("mm_encoder_outputs") or {}).items() if out is not None}
        pictures = {name for name, pixels in self.adapter.pixels.items() if given.get(pixels) is not None}
        begins = call.cache is None or (state_of(call.cache) is None and not bool(call.cache.get_seq_length()))
        if encoded or pictures or begins:
            self._text.reports.last = RunReport()
        if (encoded or pictures) and not begins and not self.adapter.images_behind_caches:
            raise UserError(
                f"What an image of {self.adapter.family} sees depends on whether it stands behind a cache: begin with "
                "a new cache."
            )
        if encoded or pictures:
            masks = self._placeholders(ids, embeds)
            check_encoded(self.adapter, encoded, masks)
            blocks = self.adapter.blocks({**given, "cache": call.cache})
            call.read = functools.partial(self._prompt, ids, embeds, masks, encoded, pictures, tail, blocks)
        elif (begins and not running.drafts) or embeds is not None:
            self._refuse_unseen(ids, embeds, known)

    def _after_inner(self, module: nn.Module, args: Any, output: Any) -> None:
        if passed(output):
            return
        call, self._text.running.call = self._text.running.call, None
        if output is not None and call is not None and call.concerned and not call.texts:
            self._text.expected.surprise("The model answered without calling its language model")

    def _refuse_unseen(self, ids: Tensor | None, embeds: Tensor | None, known: Tensor | None) -> None:
        """Images that were merged into the embeddings before: nobody sees them, and they would pass unpruned."""
        if ids is None and embeds is not None and known is not None and known.shape == embeds.shape[:2]:
            ids = known  # generate was given both
        if ids is None:
            raise UserError(
                "vlmprune cannot tell whether these inputs_embeds hold images, and would let them pass unpruned: pass "
                "input_ids and pixel_values instead, or give generate() the input_ids beside them."
            )
        counts = {name: int((ids == token).sum()) for name, token in self.adapter.placeholder_ids.items()}
        if found := [f"{count} {name} placeholders" for name, count in counts.items() if count]:
            raise UserError(
                f"The prompt has {' and '.join(found)} and no images that vlmprune sees, so they would pass unpruned: "
                "pass pixel_values, or what vlmprune.encode_images gives."
            )

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
        pictures: set[str],
        tail: int,
        blocks: Tensor | None,
        call: Call,
    ) -> Prompt:
        records = dict(call.records)
        records |= {modality: output.vlmprune_record for modality, output in encoded.items()}
        if unseen := sorted(pictures - {*records}):
            self._text.expected.surprise(f"The model encoded its {unseen[0]}s by another way than its get_*_features")
        wanted = own_encoding(self.recipe)
        if wanted is not None and any(record.shared for record in records.values()):
            raise UserError(f"{wanted} acts before or inside the encoder: pass pixel_values, not encoded images.")
        rows: list[list[PromptImage]] = [[] for _ in next(iter(masks.values()))]
        names = _numbered(embeds) if ids is None and embeds is not None else ids
        copies = self._copies(masks, records)
        for modality, record in records.items():
            mask, following = masks[modality], iter(record.images)
            number = {id(image): place for place, image in enumerate(record.images)}
            taken: list[Any] = []
            repeated: list[int] = []
            for row, count in enumerate(mask.sum(1).tolist()):
                if row % copies == 0:  # beams repeat a sample's row, not its images
                    taken = _take(following, count)
                repeated += [number[id(image)] for image in taken]
                columns = mask[row].nonzero().squeeze(1).split([image.count for image in taken])
                rows[row] += self._images(taken, columns, None if names is None else names[row])
            if copies > 1:
                check_order(self.adapter.family, modality, encoded.get(modality), record.pieces, repeated)
        if len(records) > 1:  # those of one kind stand in order
            for row_images in rows:
                row_images.sort(key=lambda image: int(image.columns[0]))
        seconds = sum(record.seconds for record in records.values() if not record.shared)
        prompt = Prompt(rows, [row // copies for row in range(len(rows))], ids, tail, blocks, seconds)
        prompt.scores = set().union(*(record.scores for record in records.values()))
        check_budgets(self.recipe, prompt, self.adapter.info)
        return prompt

    def _copies(self, masks: dict[str, Tensor], records: dict[str, VisionRecord]) -> int:
        """How many rows each sample has, as each image has one feature for each of its placeholders in each row."""
        copies = 1
        tokens = self.adapter.placeholder_ids
        seen = {tokens[modality] for modality in records}  # an id may stand for images and videos
        for modality in sorted(masks, key=lambda modality: modality not in records):
            mask = masks[modality]
            images = records[modality].images if modality in records else []
            slots, features = int(mask.sum()), sum(image.count for image in images)
            copies = max(copies, slots // max(1, features)) if features else copies
            if slots != copies * features and (images or tokens[modality] not in seen):
                raise UserError(
                    f"The prompt has {slots} {modality} placeholder tokens (id {tokens[modality]}) for {features} "
                    f"{modality} features."
                )
        return copies

    def _images(self, pieces: list[ImageTokens], columns: Sequence[Tensor], ids: Tensor | None) -> list[PromptImage]:
        """Put pieces that make one image together, as the adapter says."""
        images, at = [], 0
        for count in self.adapter.images(ids, columns) if pieces else []:
            part = slice(at, at + count)
            images.append(PromptImage(joined(pieces[part]), torch.cat(list(columns[part]))))
            at += count
        return images


def _refuse_continuous(*args: Any, **kwargs: Any) -> Any:
    raise UserError(
        "Continuous batching packs the tokens of several prompts into one row, which vlmprune cannot prune: use "
        "generate()."
    )


def _numbered(embeds: Tensor) -> Tensor:
    """[B, S] numbers, equal where the embeddings [B, S, D] of a row are: in place of ids, to tell markers apart."""
    return torch.stack([torch.unique(row, dim=0, return_inverse=True)[1] for row in embeds])


def _take(images: Iterator[ImageTokens], count: int) -> list[ImageTokens]:
    taken: list[ImageTokens] = []
    while (left := count - sum(image.count for image in taken)) > 0:
        image = next(images, None)
        if image is None or image.count > left:
            raise UserError("The placeholders of a sample are not as many as its images have features.")
        taken.append(image)
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
            if isinstance(pooled := light.get("pooler_output"), list | tuple):
                light["pooler_output"] = list(pooled)
            copies[modality] = type(output)(light)  # from a mapping, as the record is not a field of the class
        return {**self._inputs, "mm_encoder_outputs": copies}

    def images(self) -> list[ImageTokens]:
        """The tokens of the images in prompt order (of tiles: of each one), with what was read of them."""
        return list(self._outputs["image"].vlmprune_record.images) if "image" in self._outputs else []


@torch.no_grad()
def encode_images(
    model: nn.Module, inputs: Mapping[str, Any], methods: Iterable[str | Method | Recipe] | str | Method | Recipe
) -> EncodedInputs:
    """Run the vision tower once for several methods: features, and every statistic that any of them reads.

    For accuracy runs, where many methods see the same images. A method that acts on pixels (downsample) needs the
    plain inputs instead.

    Args:
        inputs: what the processor returned, and options of the encoder such as `vision_feature_layer`.
        methods: names, method objects or recipes that will be run on these images; also a single one.
    """
    adapter = adapter_for(model)
    several = [methods] if isinstance(methods, str | Method | Recipe) else methods
    recipes = [_with_any_keep(method) for method in several]
    sharing = [r for r in recipes if own_encoding(r) is None]
    outputs, rest = {}, current_names(adapter, inputs)
    for modality, name in adapter.feature_functions.items():
        if rest.get(adapter.pixels[modality]) is None:
            continue
        wrapper = VisionWrapper(adapter, modality, sharing, None, lambda modality, record: None)
        known = [adapter.renamed.get(key, key) for key in inspect.signature(getattr(adapter.inner, name)).parameters]
        outputs[modality] = wrapper.run({key: rest[key] for key in known if rest.get(key) is not None})
        outputs[modality].vlmprune_record.shared = True
        del rest[adapter.pixels[modality]]
    return EncodedInputs(rest, outputs)


def _with_any_keep(method: str | Method | Recipe) -> Recipe:
    try:
        return recipe(method)
    except UserError:
        return recipe(method, 1.0)

"""The text side: hooks on the text model, its decoder layers and their attention."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vlmprune.core.errors import UserError
from vlmprune.core.needs import PromptNeed
from vlmprune.core.recipe import Recipe
from vlmprune.core.report import CLIP, INSTRUCTION, WORDS, RunReport
from vlmprune.models.base import Adapter
from vlmprune.runtime import deepstack
from vlmprune.runtime.attributes import Attachments, Removable
from vlmprune.runtime.cache import check_unknown, is_whole, mark_whole, state_of
from vlmprune.runtime.compiled import passed, passes
from vlmprune.runtime.decoder_reading import check_readable
from vlmprune.runtime.expected import EMBEDS, POSITIONS, Expected, cache_in, cache_of, interface_of, rotary_ids, same
from vlmprune.runtime.flow import Prompt
from vlmprune.runtime.forward import Forward
from vlmprune.runtime.prefill import SharedPrefill, untouched
from vlmprune.runtime.prompt_text import Vocabulary
from vlmprune.runtime.select import fused_layers
from vlmprune.runtime.steady import Step
from vlmprune.runtime.step_hooks import StepHooks

if TYPE_CHECKING:
    from vlmprune.runtime.text_tower import TextTower
    from vlmprune.runtime.vision import VisionRecord


@dataclass
class Call:
    """One call of the multimodal model.

    Attributes:
        cache: what it was given.
        positions: the position ids that it was given.
        mask: [B, past + S] of the prompt, also where `generate` hands the model a 4-D one.
        read: finds out which images it carries, once they are encoded; None where it carries none.
        records: what was read of the images that were encoded inside it, by modality.
        texts: how often it has called the text model.
    """

    cache: Cache | None = None
    positions: Any = None
    mask: Tensor | None = None
    read: Callable[[Call], Prompt] | None = None
    records: dict[str, VisionRecord] = field(default_factory=dict)
    texts: int = 0

    @property
    def concerned(self) -> bool:
        """Whether its text model must be met by the session."""
        return self.read is not None or state_of(self.cache) is not None


@dataclass
class Generation:
    """A `generate` that runs.

    Attributes:
        begun: tokens of the prompt that it was given; None until they are known.
        fed: whether the model was called with the prompt.
    """

    begun: int | None
    fed: bool = False

    def written(self, length: int, cached: bool) -> int:
        """How many tokens at the end of the next call are not of the prompt, if it is fed in that call.

        Args:
            length: of the ids that `generate` has by then, candidates among them.
            cached: whether a cache holds the prompt from the first call on.
        """
        self.begun = length if self.begun is None else self.begun
        prompt, self.fed = not (self.fed and cached), True
        return length - self.begun if prompt else 0


@dataclass
class Running:
    """What is going on in one thread: a model may answer in several at once.

    Attributes:
        call: of the multimodal model.
        forward: of the text model, where it concerns the session and is watched.
        step: instead, a step of decoding that needs no hooks inside the text model.
        ids, mask: [B, S] and [B, past + S] that `generate` holds for the next call.
        other_mask: whether `generate` holds a mask of another shape.
        tail: how many tokens at the end of the next call are not prompt.
        generation: the `generate` that runs.
        grown: how many tokens at the end of the next call are `generate`'s own: candidates, or an answer fed again.
        drafts: whether the model runs as an assistant, which transformers gives the ids of a prompt without its images.
    """

    call: Call | None = None
    forward: Forward | None = None
    step: Step | None = None
    ids: Tensor | None = None
    mask: Tensor | None = None
    other_mask: bool = False
    tail: int = 0
    generation: Generation | None = None
    grown: int = 0
    drafts: bool = False

    @contextmanager
    def generating(self, length: int | None) -> Iterator[None]:
        before, self.generation = self.generation, Generation(length)
        try:
            yield
        finally:
            self.generation, self.grown = before, 0

    @contextmanager
    def drafting(self, drafts: bool) -> Iterator[None]:
        before, self.drafts = self.drafts, drafts
        try:
            yield
        finally:
            self.drafts = before


class Threads:
    """One `Running` for each thread."""

    def __init__(self) -> None:
        self._local = threading.local()

    def now(self) -> Running:
        if not hasattr(self._local, "running"):
            self._local.running = Running()
        return self._local.running

    # torch.compile loses what is written to a thread-local, so a forward that it traces asks outside of its graph
    traced = torch.compiler.disable(now)


class Reports:
    """The report of the last prefill: of this thread, or else of any."""

    def __init__(self) -> None:
        self._latest, self._own = RunReport(), threading.local()

    @property
    def last(self) -> RunReport:
        return getattr(self._own, "report", self._latest)

    @last.setter
    def last(self, report: RunReport) -> None:
        self._latest = self._own.report = report


class TextHooks:
    """Hooks of one session. Each forward of the text model that concerns it is a `Forward`; all others pass untouched.

    Attributes:
        expected: what is taken for granted of the model; known once installed.
        reports: by thread.
        text_tower, question, prefill: see `Session`.
        scores: see `prune`.
        vocabulary: the tokenizer that the session was given, with the model's embedding table.
    """

    expected: Expected

    def __init__(
        self,
        adapter: Adapter,
        recipe: Recipe,
        positions: str | None,
        seed: int,
        text_tower: TextTower | None,
        tokenizer: Any = None,
        scores: str = "auto",
    ) -> None:
        self.adapter, self.recipe, self.seed, self.scores = adapter, recipe, seed, scores
        self.plan = recipe.on(adapter.info)
        self.policies = self.plan.policies(positions)
        self.before_llm, self.at_layer = self.plan.before_llm, self.plan.inside
        self.fused = fused_layers(adapter, self.at_layer)
        for layer, act in self.at_layer.items():
            adapter.check_inside(layer)
            check_readable(adapter, layer, act.needs.values())
        self._threads, self.reports = Threads(), Reports()
        self.text_tower = text_tower
        self.vocabulary = None
        if tokenizer is not None:
            table = adapter.inner.get_input_embeddings()
            self.vocabulary = Vocabulary(tokenizer, table, len(table.weight))
        self.question: str | list[str] | None = None
        self.prefill: SharedPrefill | None = None

    def install(self, attached: Attachments) -> None:
        text, self.expected = self.adapter.text_model, Expected(self.adapter)
        attached.pre_hook(text, self._enter)
        attached.after(text, self._leave)
        self._inner = inner = Removable(attached)
        if self.adapter.only_before is None:
            self._add_inside(inner, text)
        inner.put_on()
        self._steps = StepHooks(attached, self.adapter, self.expected, lambda: self.running.step)
        if self.prefill is not None:
            self.prefill.install(attached, self.adapter, lambda: self.running, untouched(self))
        deepstack.wrap(attached, text, self._index_now)

    def _add_inside(self, inner: Removable, text: Any) -> None:
        inner.add(text.rotary_emb, self._rotary_hook)
        for number, layer in enumerate(self.adapter.decoder_layers):
            inner.add(layer, self._layer_hook(number))
        for number, attention in self.expected.attention.items():
            inner.add(attention, self._attention_hook(number))

    def remove(self) -> None:
        self._end()

    def _index_now(self) -> Tensor | None:
        return None if self.running.forward is None else self.running.forward.current.index

    @property
    def running(self) -> Running:
        """What is going on in this thread."""
        return self._threads.traced() if torch.compiler.is_compiling() else self._threads.now()

    @property
    def needs_tower(self) -> bool:
        """Whether a method here compares the image with the question by a text tower, if there is one."""
        return any(need.compares_text for need in self._prompt_needs)

    @property
    def text_read(self) -> str | None:
        """What text-guided methods compared the image with; several things where methods of a chain differ."""
        ways = {
            CLIP if need.compares_text and self.text_tower is not None
            else WORDS if need.reads_words and self.vocabulary is not None
            else INSTRUCTION
            for need in self._prompt_needs
            if need.compares_text or need.reads_words
        }  # fmt: skip
        return ", ".join(sorted(ways)) or None

    @property
    def _prompt_needs(self) -> list[PromptNeed]:
        needs = (need for act in self.plan.acts for need in act.needs.values())
        return [need for need in needs if isinstance(need, PromptNeed)]

    def bare(self) -> bool:
        """Take the hooks inside the text model off; False where another thread needs them."""
        self._inner.unneeded()
        return self._steps.bare() and not self._inner.on

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if passes(kwargs):
            return None
        interface = interface_of(module)
        given = interface.named(args, kwargs)
        self.expected.no_other_cache(given)
        call, cache = self.running.call or Call(), cache_in(given)
        call.texts += 1
        if call.texts > 1 and call.concerned:
            self.expected.surprise("The model called its language model more than once in one forward")
        if call.cache is not None and cache is not call.cache:
            self.expected.surprise("The language model was not given the cache that the model was given")
        prompt = call.read(call) if call.read is not None and call.texts == 1 else None
        state = state_of(cache)
        if prompt is None and state is None:
            self._check_whole(cache, given, call.mask)
            self._inner.unneeded()
            return None
        if state is not None and state.owner != id(module):
            raise UserError("This cache was pruned on another model: use it with that one, or start with a new cache.")
        if given.get(EMBEDS) is None:
            self.expected.surprise("The language model was given no inputs_embeds")
        self._check_length(cache, given[EMBEDS])
        if prompt is None and (step := self._steps.begin(cache, given, call.mask)) is not None:
            self.running.step = step
            self._inner.unneeded()
            return (), step.enter(given)
        self._inner.needed()
        if prompt is not None:
            self.adapter.check_prompt({**given, "cache": cache})
        self.running.forward = forward = Forward(self, prompt, call.mask, given)
        forward.handed_on = call.positions is not None and same(call.positions, given.get(POSITIONS))
        return (), forward.enter(given)

    def _check_whole(self, cache: Cache | None, given: dict[str, Any], mask: Tensor | None) -> None:
        """A forward without images on a cache that was never pruned: make sure of the latter."""
        if cache is not None and not is_whole(cache):
            if reason := check_unknown(cache, self.adapter.attention_layers, given, mask):
                self.expected.surprise(reason)
            mark_whole(cache)

    def _check_length(self, cache: Cache | None, embeds: Tensor) -> None:
        """Raise UserError where there are more tokens than can be pruned, cached ones and those dropped counted."""
        most = self.adapter.longest
        if most is None:
            return
        length = embeds.shape[1] + (0 if cache is None else int(cache.get_seq_length()))
        if length > most:
            raise UserError(
                f"Beyond {most} tokens, attention in {self.adapter.family} depends on how many are stored, so a pruned "
                f"prompt and its answer may have no more, those dropped and padding counted, and these are {length}: "
                "give fewer images or tiles, or run outside vlmprune.prune()."
            )

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if passed(output):
            return
        forward, step = self._end()
        if output is None:  # after an exception
            return
        if step is not None:
            step.leave(output)
        elif forward is None:
            mark_whole(cache_of(output))
        elif (report := forward.leave(output)) is not None:
            self.reports.last = report

    def _end(self) -> tuple[Forward | None, Step | None]:
        running = self.running
        forward, running.forward = running.forward, None
        step, running.step = running.step, None
        if step is not None:
            self._steps.end(step)
        if forward is not None:
            self._inner.over()
            forward.watch.stop()
            forward.stop_capture()
        return forward, step

    def _layer_hook(self, number: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
            forward = self.running.forward
            if forward is None or kwargs is None:
                return None
            given = interface_of(module).named(args, kwargs)
            changed = forward.at_layer(number, given)
            if changed is None:
                return None
            # gradient checkpointing wants hidden states without a name
            return (changed.pop("hidden_states"),), changed

        return hook

    def _attention_hook(self, number: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
            if self.running.forward is not None and kwargs is not None:
                self.running.forward.watch.at_attention(number, interface_of(module).named(args, kwargs))

        return hook

    def _rotary_hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if self.running.forward is not None and kwargs is not None:
            ids = rotary_ids(interface_of(module).named(args, kwargs))
            self.running.forward.watch.at_rotary([*ids.values()])

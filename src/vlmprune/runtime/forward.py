"""One forward of the text model under a session: a prefill with images, or any forward on a pruned cache."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, StaticLayer

from vlmprune.core.act import Act
from vlmprune.core.errors import UserError
from vlmprune.core.report import RunReport
from vlmprune.models.base import Turned, each, parts
from vlmprune.runtime import deepstack
from vlmprune.runtime.before import Entering, run_vision_acts
from vlmprune.runtime.cache import (
    Band,
    PrunedState,
    adopt,
    counts_freely,
    going_on_of,
    mark_whole,
    physical_length,
    state_of,
)
from vlmprune.runtime.continuing import Continuation, behind
from vlmprune.runtime.decoder_reading import DecoderReader, LayerTap, call_ahead, taps_of
from vlmprune.runtime.encoder_reading import layers_read
from vlmprune.runtime.expected import EMBEDS, HIDDEN, MASK, POSITIONS, ROTARY, cache_in, cache_of
from vlmprune.runtime.flow import ImageAt, Layout, Prompt, Segment, gather_rows, pad_left, standing
from vlmprune.runtime.fusion import FusedLayer
from vlmprune.runtime.inside import Inside, fusion_candidates
from vlmprune.runtime.masks import Masks
from vlmprune.runtime.outcome import Acted, Prefill, report_of
from vlmprune.runtime.prompt_reading import Picked
from vlmprune.runtime.prompt_text import ImageText, question_of
from vlmprune.runtime.select import Known, prompt_seed
from vlmprune.runtime.steady import steady_from
from vlmprune.runtime.taps import AttentionCall
from vlmprune.runtime.trimming import Cut, trim_caches
from vlmprune.runtime.watch import Watch
from vlmprune.scores import computed_by

if TYPE_CHECKING:
    from vlmprune.runtime.text import TextHooks


BY_LENGTH = ("dynamic", "longrope")  # rotary embeddings whose frequencies depend on the largest id they are given


class Forward:
    """Bookkeeping from the text model's pre-hook to its forward hook."""

    def __init__(self, hooks: TextHooks, prompt: Prompt | None, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
        self.hooks, self.adapter, self.expected, self.prompt = hooks, hooks.adapter, hooks.expected, prompt
        self.cache = cache_in(kwargs)
        self.state = state_of(self.cache)
        self.embeds: Tensor = kwargs[EMBEDS]
        self.batch, self.length = self.embeds.shape[:2]
        self.device = self.embeds.device
        if prompt is not None:  # the tower, or the ids, may be on another one
            prompt.rows = [[image.to(self.device) for image in images] for images in prompt.rows]
        self.first = next(iter(self.expected.attention))
        self.past_places = 0 if self.cache is None else int(self.cache.get_seq_length())
        self.changed = False
        self.handed_on = False  # whether the model handed on the position ids that it was given
        self.shares = False  # whether its first layers are those of a `SharedPrefill`
        self._given = kwargs
        self.seconds = 0.0
        self.scored: set[str] = set()  # what computed attention statistics of decoder layers
        self.acted = Acted()
        self.cuts: list[Cut] = []  # inside the LLM
        self.trimmed: dict[int, int] = {}  # as `RunReport.trimmed`
        self.gathered: dict[int, list[list[Tensor]]] = {}  # by cut, slots that fusion drew attention to
        self._tap: LayerTap | None = None
        self.fused: list[FusedLayer] = []  # of the layers that ran, and the one that runs
        self.masks = Masks(self.adapter, self.expected, prompt is not None and prompt.blocks is not None)
        self._read_mask(kwargs.get(MASK), mask)
        self._read_positions(kwargs.get(POSITIONS))
        self.whole = layout = self._whole_layout()
        self._check_placed()
        bands = self.state.bands if self.state else [None]
        self.segments = [self._segment(band, layout) for band in bands]
        self.ends: int | None = None  # tokens that layers get which only read the keys of others
        self.entering_embeds = self.embeds  # what enters layer 0, once the stages before the LLM have acted
        self.entered: Tensor | None = None  # [B, P] prompt column of what enters layer 0, where that is not all
        self.current = self.segments[0]  # of the decoder layer that runs
        self.alike = True  # whether every layer so far got no mask, neither of the runtime nor of the text model
        self.watch = Watch(self)

    @property
    def changing(self) -> bool:
        """Whether decoder layers get masks and positions of the runtime's making: where any may see fewer tokens."""
        return self.changed or self.state is not None or (self.prompt is not None and bool(self.hooks.at_layer))

    @cached_property
    def recorded(self) -> list[str]:
        """The outputs of decoder layers that transformers is asked to record."""
        return _asked_outputs(self.adapter.text_model.config, self._given)

    # ------------------------------------------------------------------ what came in

    def _read_mask(self, mask: Any, prompt_mask: Tensor | None) -> None:
        """Which of the new tokens are real, and which cached ones of a cache that is not ours yet."""
        past = physical_length(self.cache, self.first)
        if isinstance(mask, dict):
            mask = mask.get("full_attention", next(iter(mask.values())))
        if prompt_mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            mask = prompt_mask  # instead of a 4-D mask, or of flex attention's block mask
        elif isinstance(mask, Tensor) and mask.ndim == 4:
            row = mask[:, 0, -1, : past + self.length]  # the last query sees exactly the real tokens
            mask = (row if row.dtype == torch.bool else row == 0).expand(self.batch, -1)[:, -self.length :]
        counted = None if prompt_mask is None else prompt_mask.shape[1]
        if counted not in (None, self.length, self.past_places + self.length):
            self.expected.surprise(
                f"The attention mask counts {counted} tokens where {self.past_places + self.length} have been fed"
            )
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= self.length:
            mask = mask.to(self.device, torch.bool).expand(self.batch, -1)
            self._unmasked = False
        else:
            self._unmasked = True
            mask = torch.ones(self.batch, past + self.length, dtype=torch.bool, device=self.device)
        self.new_valid = mask[:, -self.length :]
        known = mask[:, : -self.length][:, :past]
        self.past_valid = nn.functional.pad(known, (0, past - known.shape[1]), value=True)

    @cached_property
    def new_full(self) -> bool:
        """Whether all new tokens are real: the one number that a step of decoding reads, as an unpruned one does."""
        return self._unmasked or bool(self.new_valid.all())

    def _read_positions(self, positions: Tensor | None) -> None:
        """Position ids as the model counts them, before any policy: [B, S] or [axes, B, S]."""
        if positions is None:
            positions = torch.arange(self.past_places, self.past_places + self.length, device=self.device)[None]
        self.positions = positions.to(self.device).expand(*positions.shape[:-2], self.batch, self.length)
        self.text_row = positions.ndim == 3 and positions.shape[0] == 4
        self.step: Tensor | None = None  # by how much they are ahead of those that `generate` counts, where it matters
        awaited = self.state.going_on if self.state else None
        if awaited is not None and (awaited.apart or not awaited.met or self.length > 1):
            self.step = awaited.step(self.positions, self.new_valid, self.past_places)
            if self.step is None:
                self.expected.surprise("The position ids do not go on where those of the pruned prompt ended")

    def _whole_layout(self) -> Layout:
        column = torch.arange(self.length, device=self.device).expand(self.batch, -1)
        none = torch.full_like(column, -1)
        blocks = self.prompt.blocks if self.prompt else None
        if blocks is not None and blocks.shape[1] not in (self.length, self.past_places + self.length):
            # candidates of assisted decoding stand behind what it counts
            blocks = nn.functional.pad(blocks, (0, self.past_places + self.length - blocks.shape[1]), value=-1)
        block = none if blocks is None else blocks[:, -self.length :].to(self.device).expand(self.batch, -1)
        source = column if self.new_full else column.masked_fill(~self.new_valid, -1)
        if self.prompt is None:
            return Layout(source, none, none, none, self.past_places + column, block)
        layout = Layout(source, none.clone(), none.clone(), none.clone(), self.past_places + column, block)
        for row, images in enumerate(self.prompt.rows):
            for number, image in enumerate(images):
                slots = torch.arange(len(image.columns), device=self.device)
                if not self.shows_all:
                    slots = self.new_valid[row, image.columns].nonzero().squeeze(1)
                columns = image.columns[slots]
                layout.image[row, columns] = number
                layout.slot[row, columns] = slots
                layout.origin[row, columns] = slots
        return layout

    def _check_placed(self) -> None:
        """Raise UserError where the model counted the slots of an image behind a cache like text."""
        if self.prompt is None or not self.past_places or self.positions.ndim == 2:
            return
        axes = self.positions[-3:]
        like_text = (axes == axes[:1]).all(0)
        for at in (at for images in self.prompt.by_row() for at in images):
            columns = self.prompt[at].columns
            if len(columns) > 1 and bool(like_text[at.row, columns].all()):
                raise UserError(
                    "The model does not place new images behind a cache by itself: use generate(), or pass "
                    "position_ids as its get_rope_index counts them for the whole conversation."
                )

    @cached_property
    def shows_all(self) -> bool:
        """Whether the attention mask hides no slot of any image."""
        if self.new_full or self.prompt is None:
            return True
        slots = [self.new_valid[row, one.columns] for row, images in enumerate(self.prompt.rows) for one in images]
        return not slots or bool(torch.cat(slots).all())

    def shown(self, row: int, columns: Tensor) -> Tensor | None:
        """[count] which of an image's slots, at these columns, the attention mask does not hide; None if all."""
        return None if self.shows_all else self.new_valid[row, columns]

    def _segment(self, band: Band | None, layout: Layout) -> Segment:
        """The new tokens, nothing cut yet, behind what a band of the cache holds."""
        if band is None:
            places = torch.arange(self.past_valid.shape[1], device=self.device).expand(self.batch, -1)
            alone: bool | None = (self.new_full and not places.shape[1]) or None
            return Segment(0, layout, self.positions, self.past_valid, places, full=alone)
        assert self.state is not None and self.cache is not None
        tail = self.state.tail(self.cache)
        past = nn.functional.pad(band.valid.to(self.device), (0, tail), value=True)
        written = torch.arange(self.past_places - tail, self.past_places, device=self.device).expand(self.batch, -1)
        places = torch.cat([band.place.to(self.device), written], dim=1)
        delta = None if band.delta is None else band.delta.to(self.device)
        renumbered = None if band.renumbered is None else band.renumbered.to(self.device)
        if delta is not None and renumbered is not None and self.step is not None:
            delta = delta + self.step * renumbered  # there, text goes on behind the largest id in either way
        if delta is not None and self.positions.ndim == 3 and len(delta) > len(self.positions) > 1:
            delta = delta[-len(self.positions) :]  # ids that the user counted, without the row that counts text
        positions = self.positions if delta is None else self.positions - delta.unsqueeze(-1)
        full, own = self.new_full and band.all_real, band.own_positions
        return Segment(band.start, layout, positions, past, places, None, delta, renumbered, own, full)

    # ------------------------------------------------------------------ before layer 0

    def enter(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The text model's arguments for the shorter sequence."""
        if self.prompt is not None:
            for layer in self.hooks.at_layer:
                self._split(layer)
            start = time.perf_counter()
            embeds = self._run_before_llm(self.prompt)
            self.seconds += time.perf_counter() - start
            kwargs = {**kwargs, EMBEDS: embeds}
            self.entering_embeds = embeds
            if self.entered is not None:
                kwargs = self._shorten_arguments(kwargs, self.entered)
                kwargs = deepstack.shorten(kwargs, self.entered, self.segments[0].layout)
        if not self.changed and self.state is None:
            return kwargs
        first = self.segments[0]
        mask = first.mask
        if mask is None and self.cache is None:
            # Without a cache and a mask, gaps in position ids would be read as borders between packed sequences.
            mask = torch.ones_like(first.layout.valid)
        return {**kwargs, MASK: mask, POSITIONS: first.positions}

    def _shorten_arguments(self, kwargs: dict[str, Any], index: Tensor) -> dict[str, Any]:
        """What else the text model is given for each token, for those that enter layer 0."""
        given = {name: kwargs.get(name) for name in self.adapter.text_arguments}
        return {**kwargs, **{name: gather_rows(value, index) for name, value in given.items() if value is not None}}

    def _split(self, layer: int) -> None:
        """Let a band begin at `layer`."""
        position = sum(segment.start <= layer for segment in self.segments)
        last = self.segments[position - 1]
        if last.start < layer:
            self.segments.insert(position, replace(last, start=layer, memo={}))

    def _run_before_llm(self, prompt: Prompt) -> Tensor:
        firsts = [row for row in range(self.batch) if not row or prompt.samples[row] != prompt.samples[row - 1]]
        entering = {row: [self._entering(prompt, at) for at in prompt.images_of(row)] for row in firsts}
        run_vision_acts([image for row in firsts for image in entering[row]])
        picked: list[list[list[Picked]]] = []
        for row, images in enumerate(prompt.by_row()):
            if row in entering:
                picked.append([image.states for image in entering[row]])
                continue
            picked.append(picked[-1])  # another beam of the same sample
            for at in images:
                self.known[at].so_far = copy.deepcopy(self.known[ImageAt(row - 1, at.number)].so_far)
        for step in range(len(self.hooks.before_llm)):
            self.acted.note(0, [[states[step + 1].slots for states in row] for row in picked])
        states = [states for row in picked for states in row]
        if all(len(one[-1].slots) == len(one[0].slots) and one[-1].features is None for one in states):
            return self.embeds  # whole, as they were
        return self._shorten(prompt, [[states[-1] for states in row] for row in picked])

    def _entering(self, prompt: Prompt, at: ImageAt) -> Entering:
        image, images = prompt[at], len(prompt.rows[at.row])
        acts = [act.at(prompt.samples[at.row], at.number, images) for act in self.hooks.before_llm]
        return Entering(image.tokens, acts, self.shown(at.row, image.columns), self.known[at])

    @cached_property
    def known(self) -> dict[ImageAt, Known]:
        """What the acts are told of each image beside its tokens."""
        rows = [] if self.prompt is None else self.prompt.by_row()
        return {at: Known(self._text(at), self._seed(at)) for row in rows for at in row}

    def _seed(self, at: ImageAt) -> int:
        assert self.prompt is not None
        ids, end = self.prompt.ids, self.length - self.prompt.tail
        if ids is not None:
            ids = ids[at.row, :end]
            if not self.new_full:  # padding says nothing of the prompt
                ids = ids[self.new_valid[at.row, :end].to(ids.device)]
        return prompt_seed(self.hooks.seed, ids, at.number)

    def _text(self, at: ImageAt) -> ImageText:
        prompt, row = self.prompt, at.row
        assert prompt is not None
        question = question_of(self.hooks.question, prompt.samples[row])
        ids = None if prompt.ids is None else prompt.ids[row]
        where = self.new_valid[row], self.whole.image[row], prompt.tail, prompt[at].columns[-1:]
        return ImageText(self.embeds[row], *where, ids, self.hooks.text_tower, question, self.hooks.vocabulary)

    def _shorten(self, prompt: Prompt, finals: list[list[Picked]]) -> Tensor:
        """Cut every band down to the tokens that reach layer 0, and give their embeddings."""
        orders = []
        for row, images in enumerate(prompt.rows):
            text = self.new_valid[row].clone()
            for image in images:
                text[image.columns] = False
            columns = [text.nonzero().squeeze(1)]
            places = [columns[0]]
            for now, image in zip(finals[row], images, strict=True):
                taken, place = standing(image.columns, now.slots.to(self.device), now.features is not None)
                columns.append(taken)
                places.append(place)
            orders.append(torch.cat(columns)[torch.sort(torch.cat(places), stable=True).indices])
        layout = self._cut(0, orders, self.hooks.policies[0])
        self.entered = index = self.segments[0].index
        assert index is not None
        embeds = gather_rows(self.embeds, index)
        for row, states in enumerate(finals):
            for at, now in zip(prompt.images_of(row), states, strict=True):
                here = layout.tokens_of(at)
                layout.slot[row, here] = now.slots.to(self.device)
                layout.origin[row, here] = now.origin.to(self.device)
                if now.features is not None:
                    image = prompt[at]
                    stood = image.columns[image.tokens.slots]
                    added = self.adapter.entering(image.tokens.features, self.embeds[row, stood])
                    made = now.features.to(embeds)
                    embeds[row, here] = made if added is None else made + added
        for segment in self.segments:
            segment.index = None  # from here on, counted among the tokens that enter layer 0
        return embeds

    def _cut(self, layer: int, orders: list[Tensor], policy: str) -> Layout:
        """From `layer` on, row b goes on with its tokens `orders[b]`, in that order."""
        self.changed = True
        index, valid = pad_left(orders, self.device)
        even = all(len(order) == index.shape[1] for order in orders)
        later = [segment for segment in self.segments if segment.start >= layer]
        layout = later[0].layout.take(index, valid)
        layout.in_reading_order()
        shift = layout.close_gaps() if policy == "compact" else None
        for segment in later:
            segment.cut(layout, index, policy, self.text_row, shift, even)
            segment.own_positions |= layer > 0 and policy == "compact"
        return layout

    # ------------------------------------------------------------------ decoder layers

    def at_layer(self, number: int, given: dict[str, Any]) -> dict[str, Any] | None:
        """Arguments for a decoder layer, or None to leave them as they are."""
        hidden: Tensor = given[HIDDEN]
        if number == self.adapter.first_sharing:  # from there on, the model may go on with the last tokens alone
            self.ends = min(hidden.shape[1], self.segment_of(number).layout.source.shape[1])
        self.watch.at_layer(number, hidden, given)
        if self.prompt is not None:
            self._end_fusion()
            if number in self.hooks.at_layer:
                start = time.perf_counter()
                with computed_by(self.hooks.scores) as ran:
                    hidden = self._run_at_layer(number, self.hooks.at_layer[number], hidden, given)
                self.scored |= ran
                self.seconds += time.perf_counter() - start
            self._note(number, hidden)
        segment = self.current = self.segment_of(number)
        if self.prompt is not None and number in self.hooks.fused:
            start = time.perf_counter()
            self._fuse(number, segment, self.prompt)
            self.seconds += time.perf_counter() - start
        own = self._own_arguments(segment, number, hidden, given) if self.changing else None
        if self._tap is not None:
            self._tap.rotary = given[ROTARY] if own is None else own[ROTARY]
        if own is None:
            return None
        self.watch.own, self.alike = own, self.alike and own[MASK] is None and given.get(MASK) is None
        return {**given, **own, HIDDEN: hidden}

    def _ids(self, segment: Segment) -> Tensor | None:
        """What a layer gets beside the rotary embedding: some scale their queries by it (Ministral 3).

        Flash attention would read gaps in them as borders of packed sequences; M-RoPE has no single id per token.
        """
        return None if self.masks.flash or segment.positions.ndim == 3 else segment.positions

    def asking(self, number: int, segment: Segment) -> int:
        """How many of a segment's tokens a decoder layer is given."""
        every = segment.layout.source.shape[1]
        return every if self.ends is None or number < self.adapter.first_sharing else self.ends

    def segment_of(self, layer: int) -> Segment:
        if len(self.segments) == 1:
            return self.segments[0]
        return next(segment for segment in reversed(self.segments) if segment.start <= layer)

    def _note(self, number: int, hidden: Tensor) -> None:
        """Note what a method that acts before the next layer reads of this one."""
        act = self.hooks.at_layer.get(number + 1)
        if act is not None:
            self._tap = LayerTap(self.adapter, number, act.needs.values(), hidden)

    def stop_capture(self) -> None:
        if self._tap is not None:
            self._tap.stop()
        if self.fused:
            self.fused[-1].stop()

    def _fuse(self, number: int, segment: Segment, prompt: Prompt) -> None:
        """Let the attention of this layer be edited for the tokens that a cut soon after it will remove."""
        act = self.hooks.at_layer[self.hooks.fused[number]]
        assert act.fusion is not None
        candidates = fusion_candidates(act, segment.layout, prompt, self.known)
        if any(len(tokens) for row in candidates for tokens in row):
            slots = [[segment.layout.slot[row, tokens] for tokens in found] for row, found in enumerate(candidates)]
            self.gathered[self.hooks.fused[number]] = slots
            scores = self.hooks.scores
            self.fused.append(FusedLayer(self.adapter, number, segment, candidates, prompt.tail, act.fusion, scores))
            self.fused[-1].start()

    def _end_fusion(self) -> None:
        """Once the layer that was edited has run."""
        if self.fused and self.fused[-1].running:
            self.fused[-1].stop()
            self.fused[-1].check()

    def _run_at_layer(self, number: int, act: Act, hidden: Tensor, given: dict[str, Any]) -> Tensor:
        self.stop_capture()
        prompt, before, tap = self.prompt, self.segment_of(number - 1), self._tap
        assert prompt is not None
        if tap is not None and tap.reads_attention and tap.call is None:
            raise UserError(
                f"{act.method.name} reads the attention of decoder layer {number - 1}, which does not use "
                "transformers' attention functions."
            )
        next_call = self._look_ahead(number, act, hidden, given)
        entered = self.segments[0].layout.image, self.entering_embeds
        reader = DecoderReader(self.adapter, before, hidden, tap, prompt.tail, number - 1, next_call, entered)
        self._tap = None
        inside = Inside(act, number, prompt, reader)
        inside.choose(self.known)
        self.acted.note(number, [[chosen.slots for chosen in row] for row in inside.rows])
        if not inside.cut:
            return hidden
        orders = [inside.order(row) for row in range(self.batch)]
        index, valid = pad_left(orders, self.device)
        self.cuts.append(Cut(number, index, valid))
        layout = self._cut(number, orders, self.hooks.policies[number])
        return inside.write(gather_rows(hidden, index), layout)

    def _look_ahead(
        self, number: int, act: Act, hidden: Tensor, given: dict[str, Any]
    ) -> tuple[Segment, AttentionCall] | None:
        """The call that layer `number` would make of all that reach it; it may have stored fewer than the last one."""
        if "ahead" not in taps_of(act.needs.values()):
            return None
        own = self.segment_of(number)
        if self.changing:
            given = {**given, **self._own_arguments(own, number, hidden, given)}
        with self.watch.looking_ahead():
            return own, call_ahead(self.adapter, number, given, own.past.shape[1])

    def _own_arguments(self, segment: Segment, number: int, hidden: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        """What a decoder layer is given instead of the text model's own mask and the positions of layer 0's tokens."""
        left = segment.layout.source.shape[1]
        last = hidden.shape[1] if hidden.shape[1] < left else None
        whole = hidden if last is None else hidden[:, :1].expand(-1, left, -1)
        return {
            MASK: self._last_queries(self.masks.make(segment, number, whole, cache_in(given)), last),
            ROTARY: self._rotary(segment, number, given[ROTARY], last),
            POSITIONS: self._ids(segment),
            **{name: self._own(segment, given[name], last) for name in self.adapter.layer_arguments},
        }

    def _last_queries(self, mask: Any, last: int | None) -> Any:
        """The rows of a mask for the last tokens."""
        if last is None or (mask is None and last == 1):
            return mask
        if not isinstance(mask, Tensor) or mask.ndim != 4:
            self.expected.surprise("Decoder layers that read the keys of others got some tokens and no mask for them")
        return mask[:, :, -last:]

    def _own(self, segment: Segment, value: Tensor | None, last: int | None) -> Tensor | None:
        """What a layer is given for each token beside its hidden state, [B, P, ...] or [B, last, ...]."""
        if value is None or segment.index is None:
            return value
        if last is None:
            return gather_rows(value, segment.index)
        index = segment.index[:, -last:] - (self.entering_embeds.shape[1] - last)
        if bool((index < 0).any()):
            raise UserError(
                f"{self.adapter.family} goes on with the end of the prompt in its last layers, and that is cut: let "
                "text stand behind the last image."
            )
        return gather_rows(value, index)

    def _rotary(self, segment: Segment, layer: int, incoming: Turned, last: int | None = None) -> Turned:
        if last is not None and (segment.own_positions or segment.index is not None):
            ids = (self._rotary_ids(of)[..., -last:] for of in (segment, self.segments[0]))
            with self.watch.looking_ahead():
                new, old = ids
                return self.adapter.rotary_at(layer, new, incoming, old)
        if segment.own_positions:
            key: object = ("rotary", id(parts(incoming)[0]))
            if key not in segment.memo:
                new, old = self._rotary_ids(segment), self._rotary_ids(self.segments[0])
                with self.watch.looking_ahead():
                    found = self.adapter.rotary_at(layer, new, incoming, old)
                segment.memo[key] = incoming, found  # kept, lest another one get its id
            return segment.memo[key][1]
        if segment.index is None:
            return incoming
        key, index = id(parts(incoming)[0]), segment.index
        if key not in segment.memo:  # a model may have one for each kind of layer
            segment.memo[key] = incoming, each(incoming, lambda turn: gather_rows(turn, index))  # likewise
        return segment.memo[key][1]

    def _rotary_ids(self, segment: Segment) -> Tensor:
        """Its position ids without the row that counts text."""
        # Not `text_row`: a further turn's ids come on one axis, and are spread over those that were lowered.
        text_row = segment.positions.ndim == 3 and segment.positions.shape[0] == 4
        return segment.positions[1:] if text_row else segment.positions

    # ------------------------------------------------------------------ afterwards

    def leave(self, output: Any) -> RunReport | None:
        """Store on the cache what later forwards need; returns the report of a prefill with images."""
        self._end_fusion()
        cache = cache_of(output)
        self.watch.at_end(cache)
        dirty = self.changed or (self.state is not None and not self.new_full)
        if cache is not None and (dirty or (self.prompt is not None and self.state is not None)):
            stored, self.trimmed = trim_caches(cache, self.adapter, self.segments, self.hooks.at_layer, self.cuts)
            bands = [Band(s.start, s.valid, s.places, s.delta, s.renumbered, s.own_positions, s.full) for s in stored]
            first = next(s for s in reversed(stored) if s.start <= self.first)
            removed = self.length - first.layout.source.shape[1] + (self.state.removed if self.state else 0)
            adopt(cache, PrunedState(bands, id(self.adapter.text_model), self.first, removed, self._going_on()))
            if self.prompt is not None and int(cache.get_seq_length()) != self.past_places + self.length:
                self.expected.surprise("The cache does not tell how many tokens were fed to it")
        elif self.state is not None:
            if self.state.going_on is not None and not self.state.going_on.met:
                self.state.going_on = replace(self.state.going_on, met=True)
            if cache is not None and self._is_steady(self.state, cache):
                ids = not self.masks.flash
                self.state.steady = steady_from(self.state, self.expected.here, len(self.adapter.decoder_layers), ids)
            if cache is not None and self._is_plain(self.state, cache):
                self.state.plain = steady_from(self.state, self.expected.here, len(self.adapter.decoder_layers), False)
        else:
            mark_whole(cache, self._going_on())
        return None if self.prompt is None else report_of(self._prefill(self.prompt))

    def _is_plain(self, state: PrunedState, cache: Cache) -> bool:
        """Whether the plain model, told the right position ids, would make the masks that the layers got here."""
        if not self._tells_of_later(state) or not self.handed_on or self.masks.flash or len(state.bands) > 1:
            return False
        kinds = {self.expected.kinds[layer] for layer in self.expected.attention}
        layers = [cache.layers[layer] for layer in self.expected.attention]
        return (
            kinds == {"full_attention"}
            and all(type(layer) is StaticLayer for layer in layers)
            and all(segment.mask is None for segment in self.segments)
        )

    def _tells_of_later(self, state: PrunedState) -> bool:
        """Whether this was a step of one token, watched at every layer, and its position ids go on in one way."""
        if self.adapter.only_before is not None or self.adapter.first_sharing < len(self.adapter.decoder_layers):
            return False  # no decoder layer was watched, or some store no keys
        going_on = state.going_on
        return self.length == 1 and (going_on is None or (going_on.met and not going_on.apart))

    def _is_steady(self, state: PrunedState, cache: Cache) -> bool:
        """Whether later steps of one token need nothing but the right position ids."""
        if not self._tells_of_later(state) or not self.alike:
            return False
        rotary = self.adapter.text_model.rotary_emb
        by_length = any(kind in str(getattr(rotary, "rope_type", "")) for kind in BY_LENGTH)
        if (by_length or self.watch.turns != 1) and any(band.own_positions for band in state.bands):
            return False
        return all(counts_freely(cache, layer) for layer in self.expected.attention)

    def _prefill(self, prompt: Prompt) -> Prefill:
        adapter, hooks, fused = self.adapter, self.hooks, self.fused
        # The call that encoded the images may have asked for another encoder layer than the config does.
        encoder = next((image.tokens.adapter for images in prompt.rows for image in images), adapter)
        return Prefill(
            prompt,
            self.length,
            (self.whole.image >= 0).sum(1).tolist(),
            self.segments,
            {layer: adapter.layer_kind(layer) for layer in adapter.attention_layers},
            len(adapter.decoder_layers),
            self.acted,
            layers_read(encoder, hooks.recipe),
            hooks.text_read,
            self.trimmed,
            {layer.number: layer.raised for layer in fused},
            self.gathered,
            [[self.known[at].fate for at in images] for images in prompt.by_row()],
            self.past_places > 0,
            self.scored.union(prompt.scores, *(layer.scored for layer in fused)),
            self.seconds + sum(layer.seconds for layer in fused) + prompt.seconds,
            encoder.slot_pixels,
        )

    def _going_on(self) -> Continuation | None:
        """The position ids that may follow this forward."""
        before = going_on_of(self.cache) if self.past_places else None
        if self.prompt is not None:
            columns = self.past_places + self.length
            return behind(self.positions, self.new_valid, self.text_row, columns, before, self.new_full)
        if before is None:
            return None
        return before.after(torch.zeros_like(before.ahead) if self.step is None else self.step, self.new_valid)


def _asked_outputs(config: Any, given: dict[str, Any]) -> list[str]:
    """The outputs that transformers is asked to record inside decoder layers, such as "output_attentions"."""
    outputs = {name for name in (*given, "output_attentions") if name.startswith("output_")} - {"output_hidden_states"}
    return [name for name in sorted(outputs) if given.get(name, getattr(config, name, False))]

"""The oracles: what a pruned run must equal, computed without the runtime's gathering, caching and position code.

The masking oracle removes nothing: one uncached forward of the whole sequence in which every dropped visual column is
masked in the decoder layers that no longer see it. Recurrent layers have no mask to do that with; there the cutting
oracle takes the tokens out of the hidden states of one uncached forward of a single sample. Where tokens can be cut
before the language model only, it takes them out of what that is called with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.errors import UserError
from vlmprune.core.report import RunReport
from vlmprune.models import adapter_for
from vlmprune.models.base import Adapter, parts

TYPES = "mm_token_type_ids"
# Arguments with one number for each token of the prompt, [B, S].
TOKEN_ARGUMENTS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


def with_text(adapter: Adapter, inputs: Mapping[str, Any], tokens: Tensor) -> dict[str, Any]:
    """The inputs with text `tokens` [B, T] behind every prompt, of the token types that the model writes."""
    ids, count = inputs["input_ids"], tokens.shape[1]
    later = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": adapter.later_token_type}
    return {
        **inputs,
        **{name: nn.functional.pad(inputs[name], (0, count), value=later[name]) for name in later if name in inputs},
        "input_ids": torch.cat([ids, tokens.to(ids)], dim=1),
    }


@torch.no_grad()
def uncached(adapter: Adapter, inputs: Mapping[str, Any], tokens: Tensor, positions: Tensor | None) -> Tensor:
    """Logits of generated tokens by one forward of prompt and tokens without a cache, pruned where a session is open.

    It says how many tokens stand behind the prompt (`logits_to_keep`), so that methods do not take them for a question.
    Positions are counted as `generate` did, because some scores depend on where the counting begins.

    Args:
        inputs: of the prompt, as the processor returned them.
        tokens: [B, T] generated ids.
        positions: position ids of the prompt as `generate` counted them, [..., B, S]; None where the model counts.

    Returns:
        [B, T, V].
    """
    extra = tokens.shape[1] - 1
    longer = with_text(adapter, inputs, tokens[:, :-1])
    if positions is not None:
        later = positions[..., -1:] + torch.arange(1, extra + 1, device=positions.device)
        longer["position_ids"] = torch.cat([positions, later], dim=-1)
    model: Any = adapter.model
    return model(**longer, use_cache=False, logits_to_keep=extra + 1).logits[:, -extra - 1 :]


def is_recurrent(model: nn.Module) -> bool:
    """Whether some decoder layers are recurrent."""
    adapter = adapter_for(model)
    return len(adapter.attention_layers) < len(adapter.decoder_layers)


def is_cut(model: nn.Module) -> bool:
    """Whether no mask hides a token from all decoder layers, so that the cutting oracle is the one to ask.

    So it is in recurrent layers, and in layers that choose keys by an index.
    """
    return is_recurrent(model) or adapter_for(model).only_before is not None


@torch.no_grad()
def masking_oracle(
    model: nn.Module,
    inputs: Mapping[str, Any],
    tokens: Tensor,
    report: RunReport,
    policies: Mapping[int, str] | None = None,
    image: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Logits that a pruned generation of `tokens` must have given.

    Args:
        inputs: what the processor returned: 2-D left-padded `attention_mask`, pixels, no cache.
        tokens: [B, T] generated ids.
        report: `session.last` of the pruned run (only its `stages` and `trimmed` are read).
        policies: layer -> "compact" where a stage re-numbers positions; "original" elsewhere.
        image: [B, S] number of the image in its sample that a prompt column shows, -1 for text. By default each stretch
            of placeholders is one.
        positions: [B, S + T - 1] or [axes, B, S + T - 1] ids of the prompt and of what was fed behind it, as they were
            counted; by default as `generate` counts them.

    Returns:
        [B, T, V]: the logits from which each generated token was chosen. Float32 models only.

    Raises:
        UserError: the model has recurrent layers, or M-RoPE without `mm_token_type_ids`.
    """
    if is_cut(model):
        raise UserError("The masking oracle applies to layers of full or sliding attention: use the cutting oracle.")
    run = _Reference(model, inputs, tokens, report, policies or {}, image, positions)
    text, rotary, whole = run.adapter.text_model, {}, {}

    def note_masks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("attention_mask")
        whole["full"] = given.get("full_attention") if isinstance(given, dict) else None
        run.note_positions(kwargs.get("position_ids"))

    def hook_for(number: int) -> Any:
        stage, kind = run.stage_of(number), run.adapter.layer_kind(number)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if kind == "sliding_attention" and run.compact(number):
                ahead = run.as_bool(kwargs.get("attention_mask")).triu(1)  # only a block lets a token look ahead
                sees = (run.as_bool(whole["full"]) | ahead) & run.window(stage)
                if not run.adapter.window_cuts_blocks(None):
                    sees = sees | ahead | ahead.mT
            else:
                sees = run.as_bool(kwargs.get("attention_mask"))  # the unpruned model's own
            # A query that may see nothing (padding) sees itself, lest its softmax be NaN.
            allowed = (sees & run.seen(number)) | run.itself
            given = kwargs["position_embeddings"]
            key = stage, id(parts(given)[0])  # which lives as long as the forward
            if key not in rotary:
                rotary[key] = run.adapter.rotary_at(number, run.positions[stage], given, run.given_positions)
            changed = {"attention_mask": run.as_mask(allowed, hidden), "position_embeddings": rotary[key]}
            return args, {**kwargs, **changed, "position_ids": run.ids(stage)}

        return hook

    return run.logits(hook_for, text.register_forward_pre_hook(note_masks, with_kwargs=True))


@torch.no_grad()
def cutting_oracle(
    model: nn.Module,
    inputs: Mapping[str, Any],
    tokens: Tensor,
    report: RunReport,
    policies: Mapping[int, str] | None = None,
    image: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """The same for one sample without padding of a causal model, its dropped tokens taken out of the hidden states."""
    run = _Reference(model, inputs, tokens, report, policies or {}, image, positions)
    if len(tokens) != 1 or not bool(run.real.all()):
        raise UserError("The cutting oracle takes one sample without padding.")
    if run.adapter.only_before is not None:
        return run.logits(None, run.adapter.text_model.register_forward_pre_hook(run.cut_before, with_kwargs=True))

    def hook_for(number: int) -> Any:
        stage = run.stage_of(number)
        columns = run.visible[stage][0].nonzero().squeeze(1)
        before = run.visible[run.stage_of(number - 1)][0] if number else run.real[0]
        index = before[: run.length].nonzero().squeeze(1)
        picked = torch.isin(index, columns)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = (args[0] if args else kwargs["hidden_states"])[:, picked]
            causal = run.seen(number)[:, columns][:, :, columns].tril()
            recurrent = run.adapter.layer_kind(number) == "linear_attention"
            changed = {
                "attention_mask": None if recurrent else run.as_mask(causal, hidden),
                "position_embeddings": run.adapter.rotary_at(
                    number, run.positions[stage][..., columns], kwargs["position_embeddings"], run.given_positions
                ),
                "position_ids": run.ids(stage, columns),
            }
            return (hidden, *args[1:]) if args else (), {
                **kwargs,
                **changed,
                **({} if args else {"hidden_states": hidden}),
            }

        return hook

    def note_positions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        run.note_positions(kwargs.get("position_ids"))

    return run.logits(hook_for, run.adapter.text_model.register_forward_pre_hook(note_positions, with_kwargs=True))


def oracle(
    model: nn.Module,
    inputs: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    tokens: Tensor,
    report: RunReport,
    policies: Mapping[int, str],
    image: Tensor,
    positions: Tensor | None = None,
) -> Tensor:
    """The masking oracle of a batch, or row by row the cutting oracle where that is the one to ask (`is_cut`).

    Args:
        rows: the same prompts, each by itself and without padding.
        image, positions: as the masking oracle takes them.
    """
    if not is_cut(model):
        return masking_oracle(model, inputs, tokens, report, policies, image, positions)
    found = []
    for row, own in enumerate(rows):
        alone = RunReport(stages=[(layer, [kept[row]]) for layer, kept in report.stages], trimmed=report.trimmed)
        at, start = slice(row, row + 1), image.shape[1] - own["input_ids"].shape[1]
        own_positions = None if positions is None else positions[..., at, start:]
        found.append(cutting_oracle(model, own, tokens[at], alone, policies, image[at, start:], own_positions))
    return torch.cat(found)


class _Reference:
    """The whole sequence, what each layer may see of it, and its position ids."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        tokens: Tensor,
        report: RunReport,
        policies: Mapping[int, str],
        image: Tensor | None,
        positions: Tensor | None,
    ) -> None:
        self.model, self.adapter, self.policies = model, adapter_for(model), policies
        self.trimmed, self.prompt = report.trimmed, inputs["input_ids"].shape[1]
        self.full = with_text(self.adapter, inputs, tokens[:, :-1])
        ids, extra = self.full["input_ids"], tokens.shape[1] - 1
        self.length, self.device, self.steps = ids.shape[1], ids.device, tokens.shape[1]
        self.itself = torch.eye(self.length, dtype=torch.bool, device=self.device)
        self.real = self.full["attention_mask"].bool()
        self.image = (
            _image_numbers(self.adapter, self.full) if image is None else nn.functional.pad(image, (0, extra), value=-1)
        )
        self.visible = {0: self.real}
        for layer, kept in report.stages:
            self.visible[layer] = self.real & _kept_columns(self.image, kept)
        self.positions = {0: _positions(self.adapter, self.full) if positions is None else positions}
        for layer in sorted(self.visible):
            last = max(at for at in self.positions if at <= layer)
            before, seen = self.positions[last], self.real if layer == last else self.visible[last]
            dropped = (self.visible[layer] != seen).any(1) & (policies.get(layer) == "compact")
            self.positions[layer] = _renumber(before, self.visible[layer], self.image, dropped)

    def note_positions(self, given: Tensor | None) -> None:
        """What the model itself counts: [B or 1, S] or [axes, B, S], without the row that counts text."""
        ids = torch.arange(self.length, device=self.device)[None] if given is None else given
        self.given_positions = ids[1:] if ids.ndim == 3 and ids.shape[0] == 4 else ids

    def seen(self, layer: int) -> Tensor:
        """[B, S, S] columns that are there for each query: what is decoded finds trimmed caches."""
        seen = self.visible[self.stage_of(layer)][:, None, :].repeat(1, self.length, 1)
        if layer in self.trimmed:
            seen[:, self.prompt :] = self.visible[self.stage_of(self.trimmed[layer])][:, None, :]
        return seen

    def stage_of(self, layer: int) -> int:
        return max(at for at in self.visible if at <= layer)

    def compact(self, layer: int) -> bool:
        return any(policy == "compact" and at <= layer for at, policy in self.policies.items())

    def ids(self, stage: int, columns: Any = slice(None)) -> Tensor | None:
        """Position ids as a decoder layer gets them: [B, S], or None where they have several axes."""
        positions = self.positions[stage]
        return None if positions.ndim == 3 else positions[:, columns]

    def window(self, stage: int) -> Tensor:
        """[B, S, S] what a sliding window lets each token see once the visible tokens are renumbered."""
        place = self.visible[stage].long().cumsum(1)
        return place[:, None, :] > place[:, :, None] - self.adapter.text_config.sliding_window

    def as_bool(self, mask: Any) -> Tensor:
        """[B or 1, S, S] of a mask as transformers makes it."""
        if not isinstance(mask, Tensor):
            return torch.ones(1, self.length, self.length, dtype=torch.bool, device=self.device).tril()
        if mask.ndim != 4:
            raise UserError("The oracle needs sdpa or eager attention.")
        return mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0

    def as_mask(self, allowed: Tensor, hidden: Tensor) -> Tensor:
        mask = allowed[:, None]
        if self.adapter.text_model.config._attn_implementation == "sdpa":
            return mask
        return torch.zeros(mask.shape).masked_fill(~mask.cpu(), torch.finfo(hidden.dtype).min).to(hidden)

    def cut_before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the text model is called with, without the dropped tokens of the one sample."""
        columns = self.visible[0][0].nonzero().squeeze(1)
        cut = ("inputs_embeds", "attention_mask", *self.adapter.text_arguments)
        given = {**kwargs, "attention_mask": self.real.long()}
        short = {name: given[name][:, columns] for name in cut if given.get(name) is not None}
        return args, {**kwargs, **short, "position_ids": self.positions[0][..., columns]}

    def logits(self, hook_for: Callable[[int], Any] | None, *others: Any) -> Tensor:
        """[B, T, V] under these hooks on the decoder layers."""
        handles = []
        if hook_for is not None:
            for number, layer in enumerate(self.adapter.decoder_layers):
                handles.append(layer.register_forward_pre_hook(hook_for(number), with_kwargs=True))
        try:
            return self.model(**self.full, use_cache=False).logits[:, -self.steps :]
        finally:
            for handle in [*handles, *others]:
                handle.remove()


def _image_numbers(adapter: Adapter, inputs: Mapping[str, Any]) -> Tensor:
    """[B, S] the number of the stretch of placeholders that a column belongs to in its sample, -1 for text."""
    ids = inputs["input_ids"]
    slot = torch.isin(ids, torch.tensor(list(adapter.placeholder_ids.values()), device=ids.device))
    begins = slot & ~nn.functional.pad(slot, (1, 0))[:, :-1]
    return torch.where(slot, begins.long().cumsum(1) - 1, -1)


def _kept_columns(image: Tensor, kept: list[list[Tensor]]) -> Tensor:
    columns = image < 0
    for row, slots_of in enumerate(kept):
        for number, slots in enumerate(slots_of):
            columns[row, (image[row] == number).nonzero().squeeze(1)[slots.to(image.device)]] = True
    return columns


def _positions(adapter: Adapter, inputs: Mapping[str, Any]) -> Tensor:
    """Position ids of the unpruned prompt, by the family's own rule: [B, S] or [3, B, S]."""
    mask = inputs["attention_mask"]
    if not hasattr(adapter.inner, "get_rope_index"):
        return (mask.cumsum(1) - 1).clamp(min=0)
    known = adapter.position_inputs(inputs)
    if TYPES in inspect.signature(adapter.inner.get_rope_index).parameters and TYPES not in known:
        raise UserError("The oracle needs mm_token_type_ids, as the processor returns them.")
    return adapter.inner.get_rope_index(inputs["input_ids"], attention_mask=mask, **known)[0]


def _renumber(positions: Tensor, visible: Tensor, image: Tensor, dropped: Tensor) -> Tensor:
    """Compact ids of the rows that lost tokens ([B] `dropped`), token by token: text counts on, an image's axes are
    ranked in each stretch of it, and text goes on after the largest id."""
    table = positions.clone() if positions.ndim == 3 else positions[None].clone()
    for row in dropped.nonzero().squeeze(1).tolist():
        columns = visible[row].nonzero().squeeze(1).tolist()
        cursor = int(table[:, row, columns[0]].min())
        while columns:
            number = int(image[row, columns[0]])
            size = 1
            while number >= 0 and size < len(columns) and int(image[row, columns[size]]) == number:
                size += 1
            run, columns = columns[:size], columns[size:]
            for axis in range(table.shape[0]):
                old = [int(table[axis, row, column]) for column in run]
                ranks = sorted(set(old))
                for column, value in zip(run, old, strict=True):
                    table[axis, row, column] = cursor + ranks.index(value)
            cursor = max(int(table[axis, row, column]) for axis in range(table.shape[0]) for column in run) + 1
    return table if positions.ndim == 3 else table[0]

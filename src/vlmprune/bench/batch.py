"""A batch of samples on its way through the variants. What variants share is computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

import vlmprune
from vlmprune.bench.protocol import Asker
from vlmprune.bench.store import Record
from vlmprune.core.errors import UserError
from vlmprune.data.sample import Sample
from vlmprune.scoring.replies import score_reply

if TYPE_CHECKING:
    from vlmprune.bench.plan import Variant
    from vlmprune.bench.worker import Worker

LONGER = 1.25  # a fifth of a row is padding at most, and pictures of about one size stay together
NO_TOKENS: Mapping[str, Any] = {
    "input_tokens": 0,
    "visual_before": 0,
    "visual_encoded": 0,
    "visual_kept": 0,
    "visual_entering": 0.0,
}


class Batch:
    """Samples, asked under each variant; the encoder runs once, when the first variant needs it.

    Args:
        worker: the model, and how sessions are made.
        asker: puts the questions.
        samples: those that cannot be asked get records that say why.
        variants: that will run on the batch.
    """

    def __init__(self, worker: Worker, asker: Asker, samples: Sequence[Sample], variants: Sequence[Variant]) -> None:
        self.worker, self.asker, self.samples, self.variants = worker, asker, samples, variants

    @cached_property
    def problems(self) -> dict[str, str]:
        """Why samples cannot be asked, by id."""
        found = {sample.id: sample.problem for sample in self.samples if sample.problem}
        for sample in self.samples:
            if sample.id not in found and (why := self._misfit(sample)):
                found[sample.id] = why
        return found

    def _misfit(self, sample: Sample) -> str:
        if why := self.asker.refuses(sample):
            return why
        try:
            _ = sample.images, sample.frames
        except UserError as error:
            return str(error).rstrip(".")
        longest = getattr(self.worker.model.config.get_text_config(), "max_position_embeddings", None)
        words = len(self.worker.processor.tokenizer(self.asker.prompt(sample))["input_ids"])
        if longest is not None and words > longest:
            return f"its prompt has {words:,} tokens of text, and the model takes {longest:,}"
        return ""

    @cached_property
    def asked(self) -> list[Sample]:
        """The samples that can be asked."""
        return [sample for sample in self.samples if sample.id not in self.problems]

    @cached_property
    def groups(self) -> list[Group]:
        """The samples that can be asked, those of about equal length together, so that little of a run is padding."""
        if not self.asked:
            return []
        whole = Group(self, self.asked)
        cuts = alike(whole.lengths)
        return [whole] if len(cuts) == 1 else [Group(self, [self.asked[place] for place in cut]) for cut in cuts]

    def run(self, variant: Variant) -> list[Record]:
        """The records of one variant, in the order of the samples."""
        records = {record.id: record for group in self.groups for record in group.replies(variant)}
        for sample in self.samples:
            if sample.id in self.problems:
                records[sample.id] = self.record(sample, "", **NO_TOKENS, problem=self.problems[sample.id])
        return [records[sample.id] for sample in self.samples]

    def record(self, sample: Sample, reply: str, **counts: Any) -> Record:
        return record_of(sample, reply, self.asker.kind(sample), **counts)


class Group:
    """Samples of a batch that the model sees at once; what its variants share is kept."""

    def __init__(self, batch: Batch, samples: Sequence[Sample]) -> None:
        self.batch, self.worker, self.asker, self.samples = batch, batch.worker, batch.asker, samples

    @cached_property
    def inputs(self) -> Any:
        model = self.worker.model
        return self.asker.inputs(self.samples).to(model.device, model.dtype)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return self.inputs["attention_mask"].sum(1).tolist()

    @cached_property
    def encoded(self) -> Any:
        sharing = [variant.recipe for variant in self.batch.variants if variant.recipe and not variant.encodes]
        return vlmprune.encode_images(self.worker.model, self.inputs, sharing)

    @cached_property
    def prefill(self) -> vlmprune.SharedPrefill:
        """The decoder layers that two variants or more leave as they are."""
        depths = sorted(self.worker.untouched[variant.text] for variant in self.batch.variants)
        return vlmprune.SharedPrefill(depths[-2] if len(depths) > 1 else 0)

    @torch.no_grad()
    def replies(self, variant: Variant) -> list[Record]:
        """The records of one variant."""
        model, tokenizer = self.worker.model, self.worker.processor.tokenizer
        inputs = dict(self.inputs) if variant.encodes else self.encoded.inputs()
        session = self.worker.session(variant)
        if session is not None:
            session.question = [sample.question for sample in self.samples]
            if not variant.encodes:
                session.share(self.prefill)
        with session or nullcontext():
            ids = model.generate(**inputs, **self.asker.generation(), pad_token_id=tokenizer.pad_token_id)
        prompt = self.inputs["input_ids"]
        replies = tokenizer.batch_decode(ids[:, prompt.shape[1] :], skip_special_tokens=True)
        visual, lengths = _visual(model, prompt), self.lengths
        return [
            self.batch.record(
                sample,
                reply,
                input_tokens=lengths[k],
                visual_before=visual[k],
                **_counts(session, k, visual[k], variant.resizes),
            )
            for k, (sample, reply) in enumerate(zip(self.samples, replies, strict=True))
        ]


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Places of prompts that are asked together, in their order: none more than `LONGER` times another one's length."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and lengths[place] <= LONGER * lengths[groups[-1][0]]:
            groups[-1].append(place)
        else:
            groups.append([place])
    return [sorted(group) for group in groups]


def record_of(sample: Sample, reply: str, kind: str, **counts: Any) -> Record:
    """The record of a reply, scored; `counts` are the record's token counts."""
    verdict = score_reply(kind, reply, sample.answers, sample.options, sample.facts)
    return Record(
        id=sample.id,
        question=sample.question,
        kind=kind,
        options=sample.options,
        answers=sample.answers,
        group=sample.group,
        category=sample.category,
        output=reply,
        extracted=verdict.extracted,
        score=verdict.score,
        facts=sample.facts,
        **counts,
    )


def _visual(model: Any, prompt: torch.Tensor) -> list[int]:
    """Visual tokens of each prompt, of images and videos."""
    names = ("image_token_id", "video_token_id")
    tokens = [token for name in names if isinstance(token := getattr(model.config, name, None), int)]
    return torch.isin(prompt, torch.tensor(tokens, device=prompt.device)).sum(1).tolist()


def _counts(session: Any, sample: int, visual: int, resizes: bool) -> dict[str, Any]:
    """Token counts of a sample of the last batch; `session` is None for vanilla.

    A report of a batch without a picture has no samples, so one without visual tokens is not looked up in it.
    """
    if session is None or not visual:
        return {"visual_encoded": visual, "visual_kept": visual, "visual_entering": float(visual)}
    last = session.last
    stages = [(int(layer), counts[sample]) for layer, counts in last.counts]
    return {
        "visual_encoded": stages[0][1] if resizes and stages else visual,
        "visual_kept": int(last.tokens[sample][1]),
        "visual_entering": round(float(last.entering[sample]), 4),
        "stages": tuple(stages),
    }

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

NO_TOKENS: Mapping[str, Any] = {
    "input_tokens": 0,
    "visual_before": 0,
    "visual_encoded": 0,
    "visual_kept": 0,
    "visual_entering": 0.0,
}


class Batch:
    """Samples, asked under each variant; the encoder runs when the first variant needs it.

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
    def inputs(self) -> Any:
        model = self.worker.model
        return self.asker.inputs(self.asked).to(model.device, model.dtype)

    @cached_property
    def encoded(self) -> Any:
        sharing = [variant.recipe for variant in self.variants if variant.recipe and not variant.encodes]
        return vlmprune.encode_images(self.worker.model, self.inputs, sharing)

    def run(self, variant: Variant) -> list[Record]:
        """The records of one variant, in the order of the samples."""
        records = {record.id: record for record in self._replies(variant)} if self.asked else {}
        for sample in self.samples:
            if sample.id in self.problems:
                records[sample.id] = self._record(sample, "", **NO_TOKENS, problem=self.problems[sample.id])
        return [records[sample.id] for sample in self.samples]

    @torch.no_grad()
    def _replies(self, variant: Variant) -> list[Record]:
        model, tokenizer = self.worker.model, self.worker.processor.tokenizer
        inputs = dict(self.inputs) if variant.encodes else self.encoded.inputs()
        session = self.worker.session(variant)
        if session is not None:
            session.question = [sample.question for sample in self.asked]
        with session or nullcontext():
            ids = model.generate(**inputs, **self.asker.generation(), pad_token_id=tokenizer.pad_token_id)
        prompt = self.inputs["input_ids"]
        replies = tokenizer.batch_decode(ids[:, prompt.shape[1] :], skip_special_tokens=True)
        visual = _visual(model, prompt)
        length = self.inputs["attention_mask"].sum(1).tolist()
        return [
            self._record(
                sample,
                reply,
                input_tokens=length[k],
                visual_before=visual[k],
                **_counts(session, k, visual[k], variant.resizes),
            )
            for k, (sample, reply) in enumerate(zip(self.asked, replies, strict=True))
        ]

    def _record(self, sample: Sample, reply: str, **counts: Any) -> Record:
        return record_of(sample, reply, self.asker.kind(sample), **counts)


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

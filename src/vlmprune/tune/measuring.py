"""Asks and times candidates beside the unpruned model, with the machinery of the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import torch

from vlmprune.bench.batch import Batch
from vlmprune.bench.load import Loaded
from vlmprune.bench.plan import Plan, Variant
from vlmprune.bench.protocol import Asker, protocol_for
from vlmprune.bench.questions import in_batches
from vlmprune.bench.timing import generate
from vlmprune.bench.worker import Worker
from vlmprune.core.errors import UserError
from vlmprune.data.sample import Sample
from vlmprune.tune.agreement import AGREEMENT
from vlmprune.tune.candidates import UNPRUNED
from vlmprune.tune.halving import Round
from vlmprune.tune.journal import Journal, Said
from vlmprune.tune.questions import TuneTask
from vlmprune.tune.target import Figures

BATCH = 4  # questions that are asked at once; times are of one question alone
Step = Callable[[str, str], None]  # told (what is done, with which candidate) before each step


@dataclass
class Measuring:
    """A model, the questions, and what is known so far.

    Attributes:
        loaded: the model.
        variants: the candidates.
        task: the questions.
        journal: where measurements are kept.
        agreement: a name in `tune.agreement.AGREEMENT`.
        max_new_tokens: length of an answer at most.
        timed_tokens: new tokens of a generation that is timed.
        positions, seed: as `vlmprune.prune` takes them.
        step: told before each step, those that the journal saves included.
    """

    loaded: Loaded
    variants: Sequence[Variant]
    task: TuneTask
    journal: Journal
    agreement: str
    max_new_tokens: int
    timed_tokens: int = 1
    seed: int = 0
    step: Step = lambda what, candidate: None
    _warm: set[str] = field(default_factory=set)
    _asked: int = 0
    _turned: int = 0

    def __post_init__(self) -> None:
        plan = Plan(models=(self.loaded.name,), tasks=(), batch_size=BATCH)
        self.worker = Worker(plan, self.loaded, [UNPRUNED, *self.variants])
        model_type = self.loaded.model.config.model_type
        protocol = protocol_for(self.loaded.processor)
        self.asker = Asker(protocol, self.task, self.loaded.processor, model_type, None, self.max_new_tokens)
        self.batches = list(in_batches(self.task.asked, BATCH))

    def figures(self, names: Sequence[str], round_: Round) -> Mapping[str, Figures]:
        """The figures of candidates at the end of a round; those of the unpruned model are there, too."""
        variants = [UNPRUNED, *(one for one in self.variants if one.text in set(names))]
        for number in range(self._asked, round_.batches):
            self._ask(self.batches[number], variants)
        for turn in range(self._turned, round_.turns):
            self._time(turn, variants)
        self._asked, self._turned = round_.batches, round_.turns
        asked = [sample.id for batch in self.batches[: round_.batches] for sample in batch]
        return {variant.text: self._figures(variant.text, asked, round_.turns) for variant in variants}

    def _figures(self, name: str, asked: Sequence[str], turns: int) -> Figures:
        said, plain = self.journal.answers[name], self.journal.answers[UNPRUNED.text]
        agree = AGREEMENT[self.agreement]
        loyalty = fmean(agree(said[key].text, plain[key].text) for key in asked)
        times = [self.journal.seconds[name][turn] for turn in range(turns)]
        kept = fmean(said[key].kept for key in asked)
        return Figures(loyalty, len(asked), median(times), min(times), max(times), turns, kept)

    def _ask(self, samples: Sequence[Sample], variants: Sequence[Variant]) -> None:
        """What is not known of some questions; the encoder runs once for all who can share it."""
        known = self.journal.answers
        due = [one for one in variants if any(sample.id not in known[one.text] for sample in samples)]
        batch = Batch(self.worker, self.asker, samples, due) if due else None
        for variant in variants:
            self.step("asking", variant.text)
            if batch is None or variant not in due:
                continue
            for record in batch.run(variant):
                if record.problem:
                    raise UserError(f"A question cannot be asked, {record.question!r} ({record.id}): {record.problem}.")
                self.journal.answered(variant.text, record.id, Said(record.output, record.visual_kept))

    def _time(self, turn: int, variants: Sequence[Variant]) -> None:
        """Each variant once on one question; another question each turn."""
        due = [one for one in variants if turn not in self.journal.seconds[one.text]]
        sample = self.task.asked[turn % len(self.task.asked)]
        model = self.loaded.model
        inputs = dict(self.asker.inputs([sample]).to(model.device, model.dtype)) if due else {}
        for variant in variants:
            self.step("timing", variant.text)
            if variant in due:
                self.journal.timed(variant.text, turn, self._seconds(variant, inputs))

    def _seconds(self, variant: Variant, inputs: Mapping[str, torch.Tensor]) -> float:
        """Of one generation, up to the last token that is timed; a variant's first one only warms up."""
        options = {} if variant.recipe is None else self._session_options()
        if variant.text not in self._warm:
            self._warm.add(variant.text)
            self._generate(variant, inputs, options)
        return self._generate(variant, inputs, options)

    def _generate(self, variant: Variant, inputs: Mapping[str, torch.Tensor], options: dict[str, Any]) -> float:
        try:
            turn, _ = generate(self.loaded.model, inputs, variant.recipe, self.timed_tokens, **options)
        except torch.OutOfMemoryError:
            raise UserError(f"{variant.text} ran out of memory on one picture: use smaller pictures.") from None
        return turn.total(self.timed_tokens)

    def _session_options(self) -> dict[str, Any]:
        tower, processor = self.loaded.text_tower, self.loaded.processor
        return {"seed": self.seed, "text_tower": tower, "tokenizer": processor}

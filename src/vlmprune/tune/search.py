"""The search: questions, candidates, rounds, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vlmprune.bench.load import Loaded, find_model, library_versions, load_model, machine, usable_device
from vlmprune.bench.marks import code_of
from vlmprune.bench.plan import Variant
from vlmprune.bench.runner import Progress
from vlmprune.bench.store import Store, write_json
from vlmprune.core.budget import Keep
from vlmprune.core.errors import Option, UserError
from vlmprune.tune.agreement import AGREEMENT, ANSWERS, WORDS
from vlmprune.tune.candidates import KEEPS, METHODS, UNPRUNED, asked_for, fitting
from vlmprune.tune.halving import TURNS, Round, Standing, halve, rounds_of
from vlmprune.tune.journal import FOLDER, Journal
from vlmprune.tune.measuring import BATCH, Measuring
from vlmprune.tune.questions import TuneTask, questions_of
from vlmprune.tune.target import Figures, Target

LIMIT = 64
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Wish:
    """What a search is asked for.

    Attributes:
        model: an embedded model's name, a local folder, or a hub id.
        images: the folder of pictures.
        target: what is to be met.
        questions: a file of questions; None asks for a description.
        methods, keeps: the candidates.
        limit: questions at most.
        max_new_tokens: length of an answer at most.
        timed_tokens: new tokens of a generation that is timed; 1 is the time to the first token.
        agreement: how answers are compared; None for equal answers to questions, and shared words of descriptions.
        seed: of the order of the questions and of methods that draw.
        device, text_tower, dtype: as `bench.load.load_model` takes them.
    """

    model: str
    images: Path
    target: Target
    questions: Path | None = None
    methods: tuple[str, ...] = METHODS
    keeps: tuple[Keep, ...] = KEEPS
    limit: int = LIMIT
    max_new_tokens: int = MAX_NEW_TOKENS
    timed_tokens: int = 1
    agreement: str | None = None
    seed: int = 0
    device: str | None = None
    text_tower: str | None = None
    dtype: str | None = None

    def check(self) -> None:
        """Raise UserError where something in it cannot be done."""
        for name in ("max_new_tokens", "timed_tokens"):
            if getattr(self, name) < 1:
                raise UserError(Option(name, getattr(self, name)), " must be at least 1.")
        if self.agreement is not None and self.agreement not in AGREEMENT:
            raise UserError(Option("agreement", self.agreement), f" is not known: give {' or '.join(AGREEMENT)}.")
        find_model(self.model)
        usable_device(self.device)

    @property
    def compared(self) -> str:
        return self.agreement or (WORDS if self.questions is None else ANSWERS)


@dataclass(frozen=True)
class Found:
    """What came out.

    Attributes:
        model: as the user named it.
        target: what was to be met.
        compared: how answers were compared, a name in `tune.agreement.AGREEMENT`.
        timed_tokens: as asked for.
        unpruned: the figures of the unpruned model.
        standings: the candidates, the best first.
        recipes: what each of them is called where it is used, by its name.
        refused: methods that the model does not take, with the reason.
        made: the machine.
    """

    model: str
    target: Target
    compared: str
    timed_tokens: int
    unpruned: Figures
    standings: Sequence[Standing]
    recipes: Mapping[str, str]
    refused: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Standing:
        return self.standings[0]

    @property
    def met(self) -> bool:
        """Whether the best candidate meets the target on all questions."""
        return self.target.met(self.best.figures)

    def facts(self) -> dict[str, Any]:
        """All of it as plain values."""
        values = asdict(replace(self, recipes=dict(self.recipes), refused=dict(self.refused), made=dict(self.made)))
        return {"met": self.met, "best": self.recipes[self.best.name], **values}


def tune(wish: Wish, out: Path, progress: Callable[[Progress], None] = lambda _: None, *, force: bool = False) -> Found:
    """Search, or go on with a search that was interrupted.

    Args:
        wish: what is asked for.
        out: folder for the measurements. What it holds is not measured again.
        progress: called before each step.
        force: write into `out` although it holds files that vlmprune has not written.

    Raises:
        UserError: something cannot be used; most of it is found before the model is loaded.
    """
    wish.check()
    asked = asked_for(wish.methods, wish.keeps, wish.seed)
    task = questions_of(wish.images, wish.questions, wish.limit, wish.seed)
    with Store(out, force=force) as store:
        loaded = load_model(wish.model, wish.device, wish.text_tower, wish.dtype)
        variants, refused = fitting(asked, loaded)
        made = machine(loaded.model)
        journal = Journal.open(store.folder, _setting(wish, loaded, task, variants, made))
        rounds = rounds_of(len(variants), -(-len(task.asked) // BATCH), TURNS)
        measuring = Measuring(
            loaded, variants, task, journal, wish.compared, wish.max_new_tokens, wish.timed_tokens, wish.seed
        )
        steps = _Steps(wish.model, rounds, progress)
        measuring.step = steps.step
        last: dict[str, Figures] = {}

        def measure(names: Sequence[str], step: Round) -> Mapping[str, Figures]:
            steps.begin(step)
            last.update(measuring.figures(names, step))
            return last

        standings = halve([one.text for one in variants], rounds, measure, wish.target)
        recipes = {one.text: str(one.recipe) for one in variants}
        about = {"refused": refused, "made": made}
        found = Found(
            wish.model, wish.target, wish.compared, wish.timed_tokens, last[UNPRUNED.text], standings, recipes, **about
        )
        write_json(store.folder / FOLDER / "found.json", found.facts())
    return found


def _setting(
    wish: Wish, loaded: Loaded, task: TuneTask, variants: Sequence[Variant], made: Mapping[str, Any]
) -> dict[str, Any]:
    """All that decides an answer or a time, but for the candidate and the question."""
    recipes = [variant.recipe for variant in variants if variant.recipe is not None]
    return {
        "model": [loaded.weights, loaded.dtype, loaded.attention],
        "questions": [sample.digest().hex() for sample in task.asked],
        "lengths": [wish.max_new_tokens, wish.timed_tokens],
        "seed": wish.seed,
        "code": {mark: digest for one in recipes for mark, digest in code_of(one).items()},
        "versions": library_versions(),
        "device": [made["device"], made["threads"]],
    }


class _Steps:
    """Counts the steps of all rounds, for a bar."""

    def __init__(self, model: str, rounds: Sequence[Round], progress: Callable[[Progress], None]) -> None:
        self.model, self.rounds, self.progress = model, rounds, progress
        self.sizes = [_size(rounds[k], rounds[k - 1] if k else Round(0, 0, 0)) for k in range(len(rounds))]
        self.round, self.done = 0, 0

    def begin(self, step: Round) -> None:
        self.round = self.rounds.index(step)
        self.done = 0

    def step(self, what: str, candidate: str) -> None:
        label = f"round {self.round + 1} of {len(self.rounds)}, {what}"
        before, size = sum(self.sizes[: self.round]), self.sizes[self.round]
        self.progress(Progress(self.model, label, candidate, before + self.done, sum(self.sizes), self.done, size))
        self.done += 1


def _size(step: Round, before: Round) -> int:
    """Steps of a round: each candidate and the unpruned model on what is new in it."""
    return (step.candidates + 1) * (step.batches - before.batches + step.turns - before.turns)

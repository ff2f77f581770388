"""The answers that a visitor gets: the unpruned one first, then one for each method, as soon as each is there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from PIL import Image

import vlmprune
from vlmprune.ask.run import Answer, Asking, Question, carries_budget
from vlmprune.bench.load import Loaded
from vlmprune.core.errors import UserError
from vlmprune.core.recipe import Recipe, recipe

LOG = logging.getLogger("vlmprune.demo")
_TRIED = 0.5  # the budget with which methods are tried on the model


@dataclass(frozen=True)
class Result:
    """What came of one way to ask.

    Attributes:
        name: the recipe; "unpruned".
        answer: None where there is none.
        problem: why, in a sentence.
        notes: what the visitor should know beside the answer, in sentences.
    """

    name: str
    answer: Answer | None = None
    problem: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class Desk:
    """One model for all visitors.

    Attributes:
        loaded: the model.
        options: the fields of `ask.run.Question` but its text.
        text_tower: as the user named it.
        worker: the one thread that makes answers. A model has one session at a time, so visitors take turns after each
            answer; and times can be compared only if no answer is the first of its thread, which is slower.
    """

    loaded: Loaded
    options: Question
    text_tower: str | None = None
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))

    def offered(self, named: Sequence[str] = ()) -> list[str]:
        """What visitors can choose: what the operator named, and all methods that this model can be pruned by.

        Raises:
            UserError: the model cannot be pruned by what the operator named.
        """
        for name in named:
            self._try(name)
        return list(dict.fromkeys([*named, *filter(self._works, vlmprune.METHODS)]))

    def _works(self, name: str) -> bool:
        try:
            self._try(name)
        except UserError:
            return False
        except Exception:  # a method of a third party may do anything
            LOG.warning("the method %r cannot be tried, so it is not offered", name, exc_info=True)
            return False
        return True

    def _try(self, name: str) -> None:
        self.loaded.session(at_share(name, _TRIED), self.options.positions)

    def results(
        self, image: Image.Image, question: str, methods: Sequence[str], keep: float, plain: Answer | None = None
    ) -> Iterator[Result]:
        """The unpruned answer, and one for each method.

        Args:
            plain: the unpruned answer, where it is known already.
        """
        yield self._result("unpruned", image, question, None) if plain is None else Result("unpruned", plain)
        for name in methods:
            try:
                asked = at_share(name, keep)
            except UserError as error:
                yield Result(name, problem=str(error))
            else:
                yield self._result(name, image, question, asked)

    def _result(self, name: str, image: Image.Image, question: str, asked: Recipe | None) -> Result:
        notes: list[str] = []
        asking = Asking(
            self.loaded, replace(self.options, text=question), [asked], text_tower=self.text_tower, note=notes.append
        )
        try:
            [answer] = self.worker.submit(asking.of, image).result()
        except UserError as error:
            return Result(name, problem=str(error))
        except Exception as error:
            LOG.exception("%s failed", name)
            return Result(name, problem=f"This failed ({type(error).__name__}); the server's log says more.")
        return Result(answer.recipe or name, answer, notes=tuple(notes))


def at_share(name: str, keep: float) -> Recipe:
    """The recipe of that name at a budget, which one with a budget of its own does not take.

    Raises:
        UserError: there is no such recipe, or it cannot keep this share.
    """
    return recipe(name) if carries_budget(name) else recipe(name, keep)

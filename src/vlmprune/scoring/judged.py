"""Kinds that a language model scores: what it is asked about a reply, and how its own reply is read.

The judge reads text alone: the question, the expected answer and the reply, and not the picture. The prompts are in our
own words, so figures are not exactly those of another tool's judge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from vlmprune.scoring.latex import value_of
from vlmprune.scoring.mathvision import mathvision
from vlmprune.scoring.mathvista import mathvista
from vlmprune.scoring.verdict import LETTERS, UNPARSED, Expected, Verdict

NOT_JUDGED = Verdict(None, float("nan"))


@dataclass(frozen=True)
class Judged:
    """A kind that a judge scores.

    Attributes:
        prompt: question, reply and what is expected to the words that the judge gets.
        read: the judge's reply to a verdict; None where it is not in the form that was asked for.
        rule: the verdict on a reply that no judge is needed for, else None.
    """

    prompt: Callable[[str, str, Expected], str]
    read: Callable[[str, Expected], Verdict | None]
    rule: Callable[[str, Expected], Verdict | None]

    def alone(self, reply: str, expected: Expected) -> Verdict:
        """The verdict without a judge: by rule, or none yet."""
        found = self.rule(reply, expected)
        return NOT_JUDGED if found is None else found


def _empty(reply: str, expected: Expected) -> Verdict | None:
    return None if reply.strip() else UNPARSED


# ---------------------------------------------------------------- MIA-Bench


def _instruction_prompt(question: str, reply: str, expected: Expected) -> str:
    """MIA-Bench (Qian et al., ICLR 2025): strictly, each part of the instruction for its weight, in sum 10 points.

    The answers are the parts of the instruction; the fact `component_weight` has their points as a list, in JSON.
    """
    parts = expected.answers
    weights = _listed(expected, "component_weight") or [""] * len(parts)
    points = [f"{k}. {part}" + (f" ({w} points)" if w else "") for k, (part, w) in enumerate(zip(parts, weights), 1)]
    form = ", ".join(f"score of component {k}: x/{w or 10}" for k, w in enumerate(weights, 1))
    return (
        "A model that sees a picture, which you do not see, was given this instruction:\n"
        f"{question}\n\nThe instruction has these components:\n" + "\n".join(points) + "\n\n"
        f"The model's response:\n{reply}\n\n"
        "Grade strictly how well the response follows each component. The total is between 0 and 10. Reply in one "
        f"sentence of exactly this form, with numbers for x and z: {form}, total score: z/10."
    )


def _listed(expected: Expected, fact: str) -> list[str]:
    text = expected.facts.get(fact, "")
    if not text:
        return []
    found = json.loads(text) if text.startswith("[") else [text]
    return [str(one) for one in found]


def _read_total(said: str, expected: Expected) -> Verdict | None:
    match = re.search(r"total\s+score\W*(\d+(?:\.\d+)?)\s*/\s*10\b", said, re.IGNORECASE)
    if match is None or float(match[1]) > 10:
        return None
    return Verdict(match[1], float(match[1]) / 10)


# ---------------------------------------------------------------- MathVista, MATH-Vision


def _extraction_prompt(question: str, reply: str, expected: Expected) -> str:
    """The judge only finds the final answer; whether it is right is told by rule (MathVista's procedure)."""
    options = "".join(f"\n({letter}) {text}" for letter, text in zip(LETTERS, expected.options))
    wanted = "the letter of the chosen option" if options else "the number or expression alone, without unit or words"
    return (
        f"Below are a question and a model's response to it. Copy the final answer out of the response: {wanted}. Do "
        "not solve the question, and do not correct the response. Reply with the answer alone, or with NONE where the "
        f"response has no final answer.\n\nQuestion: {question}{options}\n\nResponse: {reply}\n\nFinal answer:"
    )


def _read_extraction(said: str, expected: Expected) -> Verdict | None:
    said = said.strip().removeprefix("Final answer:").strip()
    if not said:
        return None
    return UNPARSED if said.rstrip(".").upper() == "NONE" else _by_rule(said, expected)


def _by_rule(answer: str, expected: Expected) -> Verdict:
    """MathVista's rule where the data says what type of answer it asks for, else MATH-Vision's."""
    return (mathvista if expected.facts.get("answer_type") else mathvision)(answer, expected)


def _bare(reply: str, expected: Expected) -> Verdict | None:
    """The verdict on a reply that is nothing but an option, a value or a list."""
    if not reply.strip():
        return UNPARSED
    if expected.options or expected.facts.get("answer_type"):
        found = mathvista(reply, expected)
        return None if found.extracted is None else found
    return None if value_of(reply.strip()) is None else mathvision(reply, expected)


# ---------------------------------------------------------------- questions about videos


def _video_prompt(question: str, reply: str, expected: Expected) -> str:
    """Video-ChatGPT's protocol (Maaz et al., ACL 2024): right or not, and how well it fits from 0 to 5."""
    return (
        "Compare a model's answer to a question about a video with the correct answer. It is right when it means the "
        "same, also in other words or with more detail that does not contradict it.\n\n"
        f"Question: {question}\nCorrect answer: {' or '.join(expected.answers)}\nModel's answer: {reply}\n\n"
        'Reply with one JSON object and nothing else: "pred" is "yes" when the model\'s answer is right, else '
        '"no"; "score" is an integer from 0 to 5 for how well it fits, 5 the best. '
        'For example: {"pred": "yes", "score": 4}'
    )


def _read_video(said: str, expected: Expected) -> Verdict | None:
    pred = re.search(r"[\"']pred[\"']\s*:\s*[\"'](yes|no)[\"']", said, re.IGNORECASE)
    rating = re.search(r"[\"']score[\"']\s*:\s*[\"']?([0-5](?:\.\d+)?)\b", said)
    if pred is None or rating is None or float(rating[1]) > 5:
        return None
    right = pred[1].lower()
    return Verdict(f"{right} {rating[1]}", float(right == "yes"))


JUDGED: dict[str, Judged] = {
    "judged-mia": Judged(_instruction_prompt, _read_total, _empty),
    "judged-math": Judged(_extraction_prompt, _read_extraction, _bare),
    "judged-video": Judged(_video_prompt, _read_video, _empty),
}

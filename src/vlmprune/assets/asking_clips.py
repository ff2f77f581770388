"""Questions about a clip: what moves, changes, appears, comes first; the number that is shown for a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vlmprune.assets.asking import Question, Voice, spaced
from vlmprune.assets.clips import Clip, ClipObject
from vlmprune.assets.wordings import NUMBERS

CLIP_TASKS = ("moves", "becomes", "appears", "order", "flash", "events")


def ask_clip(clip: Clip, rng: np.random.Generator, task: str, first_wording_share: float = 0.0) -> list[Question]:
    """A question of one type about a clip, none when nothing in it allows it.

    Args:
        task: one of `CLIP_TASKS`.
        first_wording_share: see `Voice`.
    """
    return _ASKERS[task](clip, Voice(rng, first_wording_share))


def _with_role(clip: Clip, role: str) -> list[tuple[int, ClipObject]]:
    """The objects of a role, each with its region id."""
    return [(k, thing) for k, thing in enumerate(clip.objects, start=1) if thing.role == role]


def _moves(clip: Clip, voice: Voice) -> list[Question]:
    if not (movers := _with_role(clip, "moves")):
        return []
    k, thing = voice.pick(movers)
    return [Question("moves", voice.say("moves", shape=thing.shape), thing.direction, None, (k,))]


def _becomes(clip: Clip, voice: Voice) -> list[Question]:
    if not (changing := _with_role(clip, "becomes")):
        return []
    k, thing = voice.pick(changing)
    return [Question("becomes", voice.say("becomes", shape=thing.shape), thing.colors[-1], None, (k,))]


def _appears(clip: Clip, voice: Voice) -> list[Question]:
    """One object appears, and at least one other was there before."""
    appearing = _with_role(clip, "appears")
    if len(appearing) != 1 or len(clip.objects) < 2:
        return []
    k, thing = appearing[0]
    return [Question("appears", voice.say("appears"), thing.shape, None, (k,))]


def _order(clip: Clip, voice: Voice) -> list[Question]:
    appearing = _with_role(clip, "appears")
    if len(appearing) < 2:
        return []
    two = [appearing[k] for k in voice.rng.permutation(len(appearing))[:2].tolist()]
    first = min(two, key=lambda found: found[1].frame)[1]
    text = voice.say("order", one=two[0][1].shape, other=two[1][1].shape)
    return [Question("order", text, first.shape, None, tuple(k for k, _ in two))]


def _flash(clip: Clip, voice: Voice) -> list[Question]:
    if clip.number is None:
        return []
    regions = tuple(region.id for region in clip.regions if region.kind == "digit")
    return [Question("flash", voice.say("flash"), spaced(clip.number), None, regions)]


def _events(clip: Clip, voice: Voice) -> list[Question]:
    appearing = _with_role(clip, "appears")
    answer = NUMBERS[len(appearing)]
    return [Question("events", voice.say("events"), answer, None, tuple(k for k, _ in appearing))]


_ASKERS: dict[str, Callable[[Clip, Voice], list[Question]]] = {
    "moves": _moves,
    "becomes": _becomes,
    "appears": _appears,
    "order": _order,
    "flash": _flash,
    "events": _events,
}

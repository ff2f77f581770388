"""A survey of every image-text type of transformers: what vlmprune does on a tiny model of it, judged by the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.doctor.methods import Wrong, in_words
from vlmprune.doctor.prompts import generate, one_prompt, padded_batch
from vlmprune.doctor.proof import POSITIONS, Case
from vlmprune.models import Misfit, adapter_for
from vlmprune.models.base import Adapter
from vlmprune.models.surveyed import PARTLY, PROVED, REFUSED, UNPROVED, Surveyed
from vlmprune.runtime.expected import Unexpected
from vlmprune.testing import prompt
from vlmprune.testing.adapter_subject import layer_after_attention
from vlmprune.testing.generic import USUAL
from vlmprune.testing.guessed import inputs_for
from vlmprune.testing.shrunk import build, on_meta

BEFORE = "random:0.5"


def survey(model_type: str) -> Surveyed:
    """What is found of a type.

    A tiny model that somebody declared is taken where there is one; otherwise one made from the family's configuration.

    Raises:
        Wrong: a pruned generation differs from the oracle, which is a defect of vlmprune.
    """
    if model_type in USUAL:
        model, failure = USUAL[model_type].build(), ""
    else:
        model, failure = _built(lambda: build(model_type))
    if model is None:
        model, _ = _built(lambda: on_meta(model_type))
        return _structure(model) or Surveyed(UNPROVED, f"no tiny model of it could be built: {failure}")
    refused = _structure(model)
    return refused or _asked(adapter_for(model), model_type)


def _built(make: Callable[[], Any]) -> tuple[Any, str]:
    """A model, or why there is none: its configuration may need what only a checkpoint says."""
    try:
        return make(), ""
    except Exception as error:  # whatever its code raises
        return None, _short(error)


def _structure(model: Any) -> Surveyed | None:
    """Why a model is refused at the start; None where it is not, or where there is none."""
    try:
        if model is not None:
            adapter_for(model)
    except Misfit as error:
        return Surveyed(REFUSED, error.reason)
    except UserError as error:
        return Surveyed(REFUSED, str(error).partition(": ")[2].rstrip(".") or str(error))
    return None


def _asked(adapter: Adapter, model_type: str) -> Surveyed:
    try:
        inputs = prompt(USUAL[model_type], [[0]]) if model_type in USUAL else inputs_for(adapter)
        prompts = [one_prompt(adapter, inputs), padded_batch(adapter, inputs)]
        for one in prompts:
            generate(adapter, one.inputs)
    except UserError as error:  # as at the first prompt of a user
        return Surveyed(REFUSED, str(error).rstrip("."))
    except Exception as error:  # transformers' own, or a picture in a form that nobody guessed
        return Surveyed(UNPROVED, f"its tiny model could not be asked: {_short(error)}")
    layer = layer_after_attention(adapter)
    before, inside = BEFORE, f"fastv@{layer}:0.5"
    for spec in (before, inside):
        try:
            if spec == inside and layer is None:
                raise UserError(adapter.only_before or "no decoder layer has an attention map")
            with vlmprune.prune(adapter.model, spec):
                generate(adapter, prompts[0].inputs)
        except UserError as error:
            if isinstance(error, Unexpected):
                raise Wrong(f"{model_type}: {spec}: {error}") from error
            words = str(error).rstrip(".")
            return Surveyed(REFUSED, words) if spec == before else Surveyed(PARTLY, words)
        try:
            for positions in POSITIONS:
                for one in prompts:
                    Case(spec, positions, one).judge(adapter)
        except Wrong as error:
            raise Wrong(f"{model_type}: {spec}: {error}") from error
        except Exception as error:  # the oracle asks more of a model than pruning does
            return Surveyed(UNPROVED, f"the oracle cannot ask its tiny model: {_short(error)}")
    return Surveyed(PROVED, f"{before} and {inside}")


def _short(error: Exception) -> str:
    said = in_words(error)
    return said if len(said) <= 120 else f"{said[:117]}..."

"""Adapters: one per model family, mostly data, found by the model types that their classes declare (`families`)."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmprune.core.declared import by_name, declared
from vlmprune.core.errors import UserError

if TYPE_CHECKING:
    from vlmprune.models.base import Adapter

FAMILIES: dict[str, str] = by_name(  # config.model_type -> adapter, as module:Class
    sorted(
        (family, adapter)
        for families, adapter in declared(Path(__file__).parent, __name__, "families")
        for family in families
    )
)


class Misfit(UserError):
    """A model that cannot be pruned.

    Attributes:
        reason: what was found, or is missing, in a clause.
    """

    def __init__(self, sentence: str, reason: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def summary(adapter: str) -> str:
    """What is special about a family, in one line: the docstring of its adapter, or else of the adapter's file.

    Args:
        adapter: module:class, as in `FAMILIES`. Its file is read, not imported, since that would import its model.
    """
    module, _, name = adapter.partition(":")
    spec: Any = find_spec(module)
    tree = ast.parse(spec.loader.get_source(module))
    [adapter_class] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return (ast.get_docstring(adapter_class) or ast.get_docstring(tree) or "").partition("\n")[0]


def adapter_for(model: Any) -> Adapter:
    """The adapter of a transformers model: its family's, or the generic one where the model has the usual layout.

    Args:
        model: with a language-model head, another head (ColPali), or none (`AutoModel`); also inside PEFT's,
            torch.compile's or DDP's wrapper, or a pipeline. `adapter_for(model).model` is the model inside these.

    Raises:
        Misfit: neither fits; the sentence says what was found, what is missing, and what to do.
        UserError: it is not a model, or holds several.
    """
    from vlmprune.models.generic import GenericAdapter
    from vlmprune.models.layout import misfit
    from vlmprune.models.unwrapping import multimodal_of, unwrapped

    model = unwrapped(model)
    inner = multimodal_of(model)
    if inner is None:
        raise _refusal(model)
    model_type = inner.config.model_type
    if model_type in FAMILIES:
        module, _, name = FAMILIES[model_type].partition(":")
        adapter = getattr(import_module(module), name).variant(inner.config)
        if adapter.knows(inner.config):
            return adapter(model, inner)
    reason = misfit(inner)
    if reason is not None:
        raise _misfit(model, model_type, reason)
    return GenericAdapter(model, inner)


def _refusal(model: Any) -> UserError:
    """One sentence on what is not a model with a vision encoder: what it is, and the next step."""
    from vlmprune.models.layout import misfit
    from vlmprune.models.unwrapping import nested

    kind = type(model).__name__
    if isinstance(model, str):
        return UserError(
            f"vlmprune prunes a model, not its name {model!r}: load it first, for instance with "
            "AutoModelForImageTextToText.from_pretrained(...)."
        )
    places = nested(model)
    if len(places) == 1:
        return UserError(
            f"vlmprune cannot prune a {kind}, but the model inside it: pass x.{places[0]} instead of x, and go on "
            "calling x."
        )
    if places:
        return UserError(
            f"vlmprune cannot prune a {kind}, which holds several models: pass one of "
            f"{', '.join(f'x.{place}' for place in places)}."
        )
    if not hasattr(model, "config"):
        return UserError(
            f"vlmprune cannot prune a {kind}, which is not a vision-language model of transformers and holds none: "
            "pass such a model, as AutoModelForImageTextToText.from_pretrained(...) returns it."
        )
    inner = getattr(model, "model", model)
    return _misfit(
        model, getattr(model.config, "model_type", None), misfit(inner) or "its parts do not belong together"
    )


def _misfit(model: Any, model_type: str | None, reason: str) -> Misfit:
    variant = ", a variant that its family's adapter does not know" if model_type in FAMILIES else ""
    return Misfit(
        f"vlmprune cannot prune a {type(model).__name__} (model_type {model_type!r}{variant}): {reason}; pass the "
        "whole vision-language model if this is a part of one, or write an adapter as docs/adding-a-family.md says.",
        reason,
    )

"""Profiles: papers' tables as plans, one file a paper; every `Profile` in a module of this folder can be named."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from vlmprune.bench.profiles.profile import Profile
from vlmprune.core.errors import Option, UserError


@cache
def profiles() -> dict[str, Profile]:
    """The profiles by name, papers in alphabetical order and tables in theirs."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    found = [one for module in modules for one in getattr(module, "TABLES", ())]
    return {profile.name: profile for profile in found}


def get_profile(name: str) -> Profile:
    """The profile of that name; a paper's name alone stands for its first table.

    Raises:
        UserError: there is none.
    """
    known = profiles()
    if name in known:
        return known[name]
    for profile in known.values():
        if profile.paper == name:
            return profile
    papers = dict.fromkeys(profile.paper for profile in known.values())
    close = difflib.get_close_matches(name, [*papers, *known], n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}."
    raise UserError(Option("profile", name), f" is not known: {hint}")


__all__ = ["Profile", "get_profile", "profiles"]

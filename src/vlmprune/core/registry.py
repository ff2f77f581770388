"""Names to methods, loaded when asked for; third parties extend it by the entry-point group `vlmprune.methods`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points

from vlmprune.core.errors import UserError
from vlmprune.core.method import Method

GROUP = "vlmprune.methods"

BUILT_IN: dict[str, str] = {
    "random": "vlmprune.methods.vision.random:Random",
    "uniform": "vlmprune.methods.vision.uniform:Uniform",
    "downsample": "vlmprune.methods.pixels.downsample:Downsample",
    "pool": "vlmprune.methods.vision.pool:Pool",
    "cdpruner": "vlmprune.methods.vision.cdpruner:CDPruner",
    "divprune": "vlmprune.methods.vision.divprune:DivPrune",
    "fastervlm": "vlmprune.methods.vision.fastervlm:FasterVLM",
    "gprune": "vlmprune.methods.vision.gprune:GPrune",
    "gridprune": "vlmprune.methods.vision.gridprune:GridPrune",
    "hiprune": "vlmprune.methods.vision.hiprune:HiPrune",
    "hiprune++": "vlmprune.methods.vision.hiprune_plus:HiPrunePlus",
    "hired": "vlmprune.methods.vision.hired:HiRED",
    "holov": "vlmprune.methods.vision.holov:HoloV",
    "prumerge": "vlmprune.methods.vision.prumerge:PruMerge",
    "prumerge+": "vlmprune.methods.vision.prumerge_plus:PruMergePlus",
    "recoverable": "vlmprune.methods.vision.recoverable:Recoverable",
    "tome": "vlmprune.methods.vision.tome:ToMe",
    "trim": "vlmprune.methods.vision.trim:Trim",
    "visionzip": "vlmprune.methods.vision.visionzip:VisionZip",
    "vispruner": "vlmprune.methods.vision.vispruner:VisPruner",
    "fastv": "vlmprune.methods.decoder.fastv:FastV",
    "dart": "vlmprune.methods.decoder.dart:Dart",
    "pyramiddrop": "vlmprune.methods.decoder.pyramiddrop:PyramidDrop",
    "sparsevlm": "vlmprune.methods.decoder.sparsevlm:SparseVLM",
    "adaptinfer": "vlmprune.methods.decoder.adaptinfer:AdaptInfer",
    "vtw": "vlmprune.methods.decoder.vtw:VTW",
    "mustdrop": "vlmprune.methods.decoder.mustdrop:MustDrop",
    "autoprune": "vlmprune.methods.decoder.autoprune:AutoPrune",
    "fitprune": "vlmprune.methods.decoder.fitprune:FitPrune",
    "topv": "vlmprune.methods.decoder.topv:TopV",
    "hilo": "vlmprune.methods.hybrid.hilo:HiLo",
    "fuse": "vlmprune.methods.hybrid.fuse:Fuse",
}


class Registry(Mapping[str, type[Method]]):
    """Method classes by name. A method is imported at the first look-up of its name, not before."""

    @cached_property
    def _targets(self) -> dict[str, str]:
        third_party = {point.name: point.value for point in entry_points(group=GROUP)}
        return {**third_party, **BUILT_IN}  # a third party cannot replace a built-in method by accident

    def __getitem__(self, name: str) -> type[Method]:
        if name not in self._targets:
            raise unknown(name, self)
        return _load(self._targets[name])

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)


class UnknownMethod(UserError, KeyError):
    """A name that no method has. A KeyError too, as a Mapping promises; its text is the sentence, unquoted."""

    __str__ = UserError.__str__


def unknown(name: str, methods: Iterable[str], presets: Iterable[str] = ()) -> UnknownMethod:
    """The error for a name that neither has, with the one that is closest."""
    close = difflib.get_close_matches(name.lower(), [*methods, *presets], n=1)
    hint = f"did you mean {close[0]!r}?" if close else "`vlmprune list methods` names all there are."
    return UnknownMethod(f"There is no method {name!r}: {hint}")


def _load(target: str) -> type[Method]:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


METHODS = Registry()

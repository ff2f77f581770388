"""The recipe of FitPrune for a model: how many visual tokens enter each decoder layer (`fitprune`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vlmprune
from vlmprune.core.act import Act, At
from vlmprune.core.budget import Keep
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.outputs import check_file
from vlmprune.core.view import ImageView, ModelInfo
from vlmprune.methods.decoder.fitprune import FitPrune, expendable


@dataclass(frozen=True)
class Fit:
    """A fitted recipe of FitPrune: `prune(model, "fitprune", keep=fit.keep, recipe=fit.shares)`.

    Attributes:
        shares: the share of an image's tokens that enters each decoder layer.
        keep: the mean of `shares`.
        alpha: the share (0 to 1) of the attention from the text, and of that from the image, that a layer may lose.
        images: the number of images that it was fitted on.
    """

    shares: tuple[float, ...]
    keep: float
    alpha: float
    images: int

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write it as a JSON file, which the method's option `recipe` reads.

        Raises:
            UserError: it would overwrite a file that is not a fitted recipe, and `force` is not given.
        """
        path = check_file(Path(path), "fitted recipe", force=force or _is_fit(Path(path)))
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Fit:
        try:
            values = json.loads(Path(path).read_text())
            return cls(**{**values, "shares": tuple(values["shares"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a recipe that Fit.save wrote: give the file of a fitted recipe.") from error


def _is_fit(path: Path) -> bool:
    try:
        Fit.load(path)
    except UserError:
        return False
    return True


@torch.no_grad()
def fitprune(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    keep: float,
    *,
    tolerance: float = 0.01,
    progress: Callable[[float, float], None] | None = None,
) -> Fit:
    """Fit FitPrune's recipe to a model: find the smallest loss of attention, equal at all layers, within the budget.

    alpha, the loss, is bisected in [0, 1]. For each alpha the prompts are run, and one layer after another deletes
    tokens that together receive at most the share alpha of the text's attention, and at most the share alpha of the
    image's, in the unpruned model (`expendable`). Once the budget can be met without further deletions, the remaining
    layers delete nothing.

    Args:
        batches: prompts with images as the processor returned them; the authors take 0.01 % of the tuning data. They
            are run once unpruned and about seven times pruned.
        keep: share of the visual tokens that may enter a layer, on average over layers and images.
        tolerance: the precision to which alpha is found.
        progress: called after each step with alpha and the average share that it left (above `keep` if it failed).

    Differences from the authors' code: the budget counts tokens that enter a layer instead of operations; the recipe is
    that of the smallest alpha that met the budget instead of the last one tried; a recipe holds shares instead of
    numbers rounded down, since images may differ in size.

    Raises:
        UserError: there are no images, or the budget is not met even if all tokens go that may go.
    """
    if not isinstance(keep, float) or not 0 < keep < 1:
        raise UserError(f"keep={keep!r} is not a share of tokens: give a number between 0 and 1.")
    prompts = list(batches)
    whole = _Log()
    _run(model, prompts, _Trial(log=whole))
    if not whole.totals:
        raise UserError("No image in these prompts has more than one token: give prompts with images to fit a recipe.")

    def tried(alpha: float) -> tuple[float, ...]:
        log = _Log(whole.depth, whole.totals, alpha)
        _run(model, prompts, _Trial(log=log))
        shares = log.shares(keep)
        if progress is not None:
            progress(alpha, sum(shares) / len(shares))
        return shares

    low, high, best = 0.0, 1.0, None
    while high - low > tolerance:
        alpha = (low + high) / 2
        shares = tried(alpha)
        if sum(shares) / len(shares) <= keep:
            high, best = alpha, shares
        else:
            low = alpha
    if best is None:
        best = tried(1.0)
    reached = sum(best) / len(best)
    if reached > keep:
        raise UserError(
            f"No recipe for this model keeps as little as {keep}: give {reached:.3f}, which keeps one token, or more."
        )
    return Fit(best, reached, high, len(whole.totals))


def _run(model: nn.Module, prompts: Sequence[Mapping[str, Any]], method: Method) -> None:
    with vlmprune.prune(model, method, 0.5):
        for prompt in prompts:
            model(**prompt, use_cache=False, logits_to_keep=1)


@dataclass
class _Log:
    """Records of one run over all prompts: for each image, in the order of the prompts, values by decoder layer.

    Attributes:
        depth: number of decoder layers of the model.
        totals: attention that the image's tokens receive from the text, and from the image, in the unpruned model.
        alpha: the allowed loss of attention; None in the unpruned run, which records `totals`.
        left: the share of the image's tokens that enters a layer.
    """

    depth: int = 0
    totals: list[dict[int, tuple[float, float]]] = field(default_factory=list)
    alpha: float | None = None
    left: list[dict[int, float]] = field(default_factory=list)

    def shares(self, keep: float) -> tuple[float, ...]:
        """The mean share that enters each layer; once the budget is met, no layer deletes any more."""
        shares, now = [1.0], [1.0] * len(self.left)
        for layer in range(1, self.depth):
            met = sum(shares) + shares[-1] * (self.depth - layer) <= keep * self.depth
            now = now if met else [left.get(layer, before) for left, before in zip(self.left, now, strict=True)]
            shares.append(sum(now) / len(now))
        return tuple(shares)


@dataclass
class _Trial(FitPrune):
    """The method of one run: before each layer, every image deletes all tokens that it may delete."""

    log: _Log = field(default_factory=_Log)

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[int | At | None]:
        self.log.depth = info.decoder_layers
        return super().acts(info, keep)

    @property
    def exact(self) -> bool:
        return False

    def budget(self, act: Act, n: int, total: int) -> int:
        return max(1, n - 1)

    def select(self, view: ImageView) -> Tensor:
        cross, own, log, layer = view["text"].sum(0), view["visual"], self.log, view.act.layer
        assert layer is not None
        noted: list[dict[int, Any]] = log.totals if log.alpha is None else log.left
        if "number" not in view.memory:
            view.memory["number"] = len(noted)
            noted.append({})
        number, everything = view.memory["number"], torch.arange(view.n, device=own.device)
        if log.alpha is None:
            noted[number][layer] = float(cross.sum()), float(own.sum())
            return everything
        _, _, gone = expendable(cross, own, log.totals[number][layer], log.alpha)
        kept = torch.isin(everything, gone, invert=True).nonzero().squeeze(1)
        if not len(kept):
            kept = self.score(view).argmax(keepdim=True)
        noted[number][layer] = len(kept) / view.total
        return kept

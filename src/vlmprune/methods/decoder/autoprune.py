"""AutoPrune: mutual information of text and image decides how fast tokens are dropped from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from vlmprune.author import (
    Act, At, ClsAttention, HiddenStates, ImageView, Keep, LastQueryAttention, Method, ModelInfo, Need, NotNegative,
    Selection, TextQueryAttention, USED, UserError, ascending, resolve_keep, top_k,
)  # fmt: skip
from vlmprune.methods.cluster import recycle
from vlmprune.methods.decoder.autoprune_curve import keep_counts, mutual_information


@dataclass
class AutoPrune(Method):
    """Drops tokens after every layer along a logistic curve; mutual information sets its steepness for each prompt.

    Paper: AutoPrune: Each Complexity Deserves a Pruning Policy (NeurIPS 2025, arXiv 2509.23931); supplement C: `flash`.

    Formula: A_l [H, T, n] = rows of the T text tokens after the image at layer l, r_l [n] their mean over heads and
    rows, I_l = the `mutual_information` of text and image under A_l in bits, summed over heads.
    After layer 0: score = lam * I_0 / T * r_0 + CLS attention of the encoder's used layer; the top V = min(2.5 *
    target, N) stay. After layer l = 1, 2, ...: the top ceil((V - 1) q_l) by r_l stay, followed by clusters of some of
    the others (`recycle`); q = `keep_shares` with the steepness max(0, k0 - gamma * I_1).
    Time O(H T n + n^2 D) per act, memory O(H T n + n^2).

    Defaults: `keep` is the target: the tokens that a layer passes on, on average, with V for layer 0. Counts vary with
    the prompt. Towers without a CLS token give the received attention, scaled to sum to 1 (ours). Positions: renumbered
    on LLaVA; kept elsewhere, where a cluster takes the position of its centre.

    Args:
        flash: r_l is the row of the last prompt token, and after layer 1 nothing else is read. There is no code for it.
        mi_rows: with `flash` (ours): "text" computes I of layers 0 and 1 as above; "none" takes both as 0.
        mi_reduce: "sum" over heads as above, or "mean": 32 times the mean, for other numbers of heads (ours).
        x0, k0, gamma, lam: the curve's; it is steepest at layer x0, 14.9 of 32 by default (scaled to fewer: ours).

    Differences from the authors' code:
        - The cut after the last layer, which saves nothing, is left out.
        - Any number of images, each with its own budget and curve. Only rows of text tokens are computed.
        - Ties between equally dense tokens are broken by their order; theirs adds noise.
    """

    name: ClassVar[str] = "autoprune"
    stage: ClassVar[str] = "decoder"
    summary: ClassVar[str] = "after every layer, along a curve set by mutual information of text and image"
    budget_means: ClassVar[str] = "an average over layers"
    merges: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    flash: bool = False
    mi_rows: Literal["text", "none"] = "text"
    mi_reduce: Literal["sum", "mean"] = "sum"
    x0: Annotated[float, NotNegative] | None = None
    k0: Annotated[float, NotNegative] = 0.4
    gamma: Annotated[float, NotNegative] = 0.2
    lam: Annotated[float, NotNegative] = 0.3
    per: Literal[None, "image"] = field(default=None, kw_only=True)  # one curve for the whole image

    def positions(self, info: ModelInfo) -> str:
        return "compact" if info.llava else "original"

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[int | At | None]:
        if info.attention_layers is not None:
            raise UserError(
                "autoprune reads attention at every decoder layer, and some here have none: use another method."
            )
        return [At(layer + 1, self.needs_after(layer)) for layer in range(info.decoder_layers - 1)]

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return self.needs_after(0)

    def needs_after(self, layer: int) -> dict[str, Need]:
        informed = layer in (0, 1) and (not self.flash or self.mi_rows == "text")
        needs: dict[str, Need] = {"last": LastQueryAttention()} if self.flash else {}
        if informed or not self.flash:
            needs["text"] = TextQueryAttention(heads="all" if informed else "mean")
        return {**needs, **({"states": HiddenStates()} if layer else {"cls": ClsAttention(USED)})}

    def budget(self, act: Act, n: int, total: int) -> int:
        target = resolve_keep(act.keep, total)
        if target == total or n == 1:
            return n
        # `min(n - 1, target)` tells the act after layer 1 the target; later acts follow the curve made from it
        return min(n, int(2.5 * target)) if act.number == 0 else min(n - 1, target)

    def select(self, view: ImageView) -> Selection:
        if view.act.number == 0:
            return ascending(top_k(self.first_score(view), view.keep))
        relation = self.relation(view)
        kept = ascending(top_k(relation, self.count(view)))
        return kept if len(kept) == view.n else recycle(view["states"].visual, kept, relation)

    def relation(self, view: ImageView) -> Tensor:
        """r [n]; zeros without text."""
        return view["last"] if self.flash else view["text"].flatten(0, -2).mean(0).nan_to_num()

    def first_score(self, view: ImageView) -> Tensor:
        """[n] after layer 0."""
        cls = view["cls"] if view.info.has_cls else view["cls"] / view["cls"].sum().clamp(min=1e-12)
        texts = view["text"].shape[-2] if "text" in view.signals else 1
        return self.lam * self.information(view) / max(1, texts) * self.relation(view) + cls

    def information(self, view: ImageView) -> float:
        """I of this layer."""
        if self.flash and self.mi_rows == "none":
            return 0.0
        heads = mutual_information(view["text"])
        return float((heads.sum() if self.mi_reduce == "sum" else 32 * heads.mean()).nan_to_num())  # NaN tells nothing

    def count(self, view: ImageView) -> int:
        """How many tokens are kept by their score, after layer 1 and each later layer."""
        if view.act.number == 1:
            steepness, depth = max(self.k0 - self.gamma * self.information(view), 0.0), view.info.decoder_layers
            view.memory["counts"] = keep_counts(steepness, view.keep, view.n, view.total, depth, self.x0)
        return max(1, min(view.memory["counts"][view.act.number - 1], view.n))

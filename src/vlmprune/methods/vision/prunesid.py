"""PruneSID: tokens grouped by principal components; within a group, those that repeat a better one are suppressed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import (
    ClsAttention, Features, ImageView, Merged, Method, ModelInfo, Need, Selection, TowerFeatures, ascending, top_k,
)  # fmt: skip
from vlmprune.methods.diversity import first_alike, unit_rows
from vlmprune.methods.members import owned
from vlmprune.methods.quotas import quotas

NOTHING = 1e-12  # share of the largest eigenvalue (a squared singular value) below which only rounding is left


@dataclass
class PruneSID(Method):
    """A group of tokens for each principal component, with a quota by the number of distinct tokens in it.

    Paper: Prune Redundancy, Preserve Essence: Vision Token Compression in VLMs via Synergistic Importance-Diversity
    (ICLR 2026, arXiv 2603.09480).

    Formula: each tile or frame by itself, K = `keep`. F [n, C] rows of the tower; A = sigmoid(F), each row less its
    mean; V [n, q] the left singular vectors of A with the q largest singular values, q = K / 4 rounded down. Token i is
    in group argmax_k |V_ik|. S = cosine similarity of F, m = mean of S over all pairs, a [n] = attention of the CLS
    token. Within a group, by falling a: a token survives unless its S with an earlier survivor is above m K / 32. A
    group keeps its survivors by falling a, then its others by falling a, up to its quota: at least 1 (if it has a
    token), and of the rest of K a share by the number of its survivors, at most its survivors and 5 ceil(K / 64) where
    that allows K in all. Time O(n^3 + n^2 C), memory O(n^2).

    Defaults: `variant` "llava" on LLaVA with a CLS token: 64 tokens on LLaVA-1.5, 64 per tile on LLaVA-NeXT; positions
    renumbered. `variant` "qwen" elsewhere, as in the authors' code for Qwen2-VL, which needs no attention: F are the
    projected features, a_i = |V_i| in its own group, q = max(K / 4, 4), m = the sum of S over pairs and over each token
    with itself, divided by n^2, and the threshold is max(18 K / n, 1) m.

    Args:
        variant: "llava" or "qwen", by default by the family.
        compat: "official" makes the CLS token's row the first of the K tokens of "llava", as in the authors' code, and
            passes them group by group instead of in order of position.

    Differences from the authors' code:
        - All K tokens are patches, in order of position (see `compat`). Theirs passes tokens of Qwen group by group
          too, if they are 150 or fewer.
        - The components are exact. Theirs come from a randomised method without a seed, so that groups differ from run
          to run where singular values are close. Components without any of the spread (equal tokens) have no group.
        - Any budget will do: theirs fails below 4 tokens, and never ends if it has to keep more than there are. On Qwen
          theirs keeps at least 16 tokens.
        - On LLaVA-NeXT features stand at their own places on the canvas; theirs fills the places in order of position
          with features in order of groups.
        - Each image, frame or tile is grouped by itself; theirs takes all images of a prompt of Qwen as one.
    """

    name: ClassVar[str] = "prunesid"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "groups by principal components, without repetitions, with quotas by what is distinct"

    variant: Literal[None, "llava", "qwen"] = None
    compat: Literal["paper", "official"] = "paper"

    @property
    def exact(self) -> bool:
        return True  # also with compat="official"

    @property
    def merges(self) -> bool:
        return self.compat == "official"

    def _attends(self, info: ModelInfo) -> bool:
        return (info.llava and info.has_cls) if self.variant is None else self.variant == "llava"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"rows": TowerFeatures(), "attention": ClsAttention()} if self._attends(info) else {"rows": Features()}

    def pool(self, info: ModelInfo) -> str:
        return "frame"

    def select(self, view: ImageView) -> Selection:
        features, cls = self.rows(view)
        picks = torch.cat(self.parts(view, self.components(features, self.groups(view))))
        if cls is None or not self.merges:
            return ascending(picks[: view.keep])
        anchors = torch.cat([picks.new_full((1,), -1), picks[: view.keep - 1]])
        rows = torch.cat([cls, features[anchors[1:]]])
        return Merged(rows, anchors, space="tower", members=owned(view.n, anchors))

    def rows(self, view: ImageView) -> tuple[Tensor, Tensor | None]:
        """F, and the CLS token's row [1, C] if there is one; finite."""
        if not self._attends(view.info):
            return torch.nan_to_num(view["rows"].float()), None
        rows, cls = view["rows"]
        return torch.nan_to_num(rows.float()), None if cls is None else torch.nan_to_num(cls.float())

    def groups(self, view: ImageView) -> int:
        """q, which is at least 1 and at most the budget."""
        return max(1, view.keep // 4) if self._attends(view.info) else max(view.keep // 4, min(4, view.keep))

    def components(self, features: Tensor, count: int) -> Tensor:
        """V of the formula for features [n, C]: [n, min(count, n)] in order of falling singular values.

        A component without any of the spread is 0: nothing but rounding would decide who is in its group.
        """
        spread = features.double().sigmoid()
        spread = spread - spread.mean(1, keepdim=True)
        found = torch.linalg.eigh(spread @ spread.T)
        vectors = found.eigenvectors * (found.eigenvalues > NOTHING * found.eigenvalues.max())
        return vectors.flip(1)[:, :count].float()[first_alike(features)]

    def threshold(self, similarity: Tensor, keep: int, attends: bool) -> float:
        """The similarity [n, n] above which a token repeats another."""
        n = len(similarity)
        if attends:
            return keep / 32 * float(similarity.triu(1).sum()) / (n * (n - 1) / 2)
        return max(18 * keep / n, 1.0) * float(similarity.triu().sum()) / n**2

    def parts(self, view: ImageView, components: Tensor) -> list[Tensor]:
        """Token indices that each group keeps, in the order in which it takes them.

        Args:
            components: [n, q].
        """
        features, cls = self.rows(view)
        attends, loadings = self._attends(view.info), components.abs()
        group = loadings.argmax(1)
        score = torch.nan_to_num(view["attention"].float()) if attends else loadings.amax(1)
        unit = unit_rows(features.double()).float()
        similarity = unit @ unit.T
        again = (similarity > self.threshold(similarity, view.keep, attends)) & (group[:, None] == group)
        order = top_k(score, view.n)
        survives = _survivors(order, again, score > 0)
        order = order[(2 * group + ~survives)[order].argsort(stable=True)]
        sizes = group.bincount(minlength=components.shape[1]).tolist()
        distinct = group[survives].bincount(minlength=components.shape[1]).tolist()
        total = view.keep - int(cls is not None and self.merges)
        given = quotas(sizes, distinct, view.keep, total)
        return [part[:count] for part, count in zip(order.split(sizes), given, strict=True)]


def _survivors(order: Tensor, again: Tensor, able: Tensor) -> Tensor:
    """[n] whether no earlier survivor in `order` suppresses a token; `again` [n, n] says which suppresses which."""
    left, survives, again = able.cpu().clone(), torch.zeros(len(order), dtype=torch.bool), again.cpu()
    for token in order.tolist():
        if left[token]:
            survives[token] = True
            left &= ~again[token]
    return survives.to(order.device)

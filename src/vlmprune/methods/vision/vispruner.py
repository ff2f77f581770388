"""VisPruner: keeps tokens that the CLS token attends to, and diverse ones of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlmprune.author import (
    ClsAttention, ImageView, ModelInfo, NamesParts, Need, Share, TowerFeatures, UserError, top_k,
)  # fmt: skip

NEAR = 64  # length of each token's list of near tokens; the result does not depend on it


@dataclass
class VisPruner(NamesParts):
    """Keeps important tokens by visual cues, then drops near duplicates from the rest, a few at a time.

    Paper: Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs (ICCV 2025,
    arXiv 2412.01818v2).

    Formula: s [n] = CLS attention of the layer that is projected, mean over heads; x [n, C] = the tower's features.
    Important: the top int(keep * important) of s. The rest, by falling s, shrinks until `keep` tokens are left:
    a, b = every second token of the rest, from the first and from the second on; sim_i = max over j of cos(x_a_i,
    x_b_j); the 8 of a with the highest sim go (fewer in the last round); rest = the others of a by falling sim, then b.
    One swap of near-equal similarities changes all later rounds: in half precision the authors' picks differ from run
    to run, so here they are made in float32. Time O(n^2 C), memory n^2 numbers.

    Defaults: important 0.5 (the README also shows 0.75 for 64 of 576 tokens); each tile or frame by itself; positions
    renumbered on LLaVA. Without a CLS token s is the attention received from all tokens, and if the projector merges
    patches, x are the merged tokens, as the authors advise for Qwen2.5-VL.

    Args:
        important: share of the budget that is chosen by attention, 0 to 1.
        compat: "official" refuses what the authors' code cannot do: a rest with an odd number of tokens, or a round
            that would drop more than half of the rest.

    Differences from the authors' code:
        - If the rest is odd, a has the extra token; if a has too few tokens to drop, more rounds follow.
        - Equal scores go by position; theirs leaves the order open.
        - On LLaVA-NeXT the model's own tiles are used, and those cut by padding get budgets in proportion to what is
          left of them; theirs are always 2 x 2 tiles and the whole image, padding included.
    """

    name: ClassVar[str] = "vispruner"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "tokens that the CLS token attends to, and the rest without near duplicates"

    important: Annotated[float, Share] = 0.5
    compat: Literal["paper", "official"] = "paper"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"attention": ClsAttention(), "rows": TowerFeatures()}

    def pool(self, info: ModelInfo) -> str:
        return "frame"

    def named(self, view: ImageView) -> dict[str, Tensor]:
        return dict(zip(("important", "diverse"), self.parts(view), strict=True))

    def parts(self, view: ImageView) -> tuple[Tensor, Tensor]:
        """Important tokens by falling score, and diverse ones in the order of the last round."""
        order = top_k(view.rated(view["attention"]), view.n)
        count = int(view.keep * self.important)
        important, rest = order[:count], order[count:]
        wanted = view.keep - count
        if wanted == 0:
            return important, rest[:0]
        unit = nn.functional.normalize(view["rows"].rows.float(), dim=-1)
        similarity = torch.nan_to_num(unit @ unit.T)
        near = similarity.topk(min(NEAR, view.n), dim=1)
        while len(rest) > wanted:
            a, b = rest[0::2], rest[1::2]
            drop = min(8, len(rest) - wanted)
            if self.compat == "official" and (len(a) > len(b) or drop > len(b)):
                raise UserError(
                    f"vispruner: the authors' code fails on {len(rest)} tokens of which {wanted} should stay."
                )
            nearest = _nearest(similarity, near.values[a], near.indices[a], a, b)
            rest = torch.cat([a[top_k(nearest, len(a))[drop:]], b])
        return important, rest


def _nearest(similarity: Tensor, values: Tensor, indices: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """max over b of similarity[a, b], [len(a)]: read from each token's list of near tokens if one of these is in b."""
    wanted = torch.zeros(len(similarity), dtype=torch.bool, device=a.device)
    wanted[b] = True
    listed = wanted[indices]
    found = values.gather(1, listed.int().argmax(dim=1, keepdim=True)).squeeze(1)
    unlisted = (~listed.any(dim=1)).nonzero().squeeze(1)
    found[unlisted] = similarity[a[unlisted]][:, b].amax(dim=1)
    return found

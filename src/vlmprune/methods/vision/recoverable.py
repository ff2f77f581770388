"""Recoverable Compression: keeps tokens that stand out to CLS or the question, and gathers the rest around a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vlmprune.author import Alignment, ImageView, Merged, ModelInfo, Need, UserError, top_k
from vlmprune.methods.members import mostly, owned
from vlmprune.methods.outliers import local_outliers
from vlmprune.methods.relevance import mean_cosine
from vlmprune.methods.vision.prumerge import NEIGHBOURS, PruMerge

TEXT_WEIGHT = 50


@dataclass
class Recoverable(PruMerge):
    """PruMerge guided by the question too: keeps what stands out, then gathers the rest around a few centres.

    Paper: Recoverable Compression: A Multimodal Vision Token Recovery Mechanism Guided by Text Information (AAAI 2025,
    arXiv 2409.01179).

    Formula: q, k [n + 1, W] = queries and keys of the encoder's last layer, all heads as one; a [n] = softmax(q_0 k^T /
    sqrt(W)) without the CLS key. t [n] = cos(v_i, question) / sqrt(C), v [n, C] = rows of the tower in CLIP's common
    space. out_m(s) = how many of s have a local outlier factor (m neighbours) above 1.5. Main: the top out_20(a) of a,
    n_a tokens; then, with t of these set to min t, the top (n - n_a) out_20(t) / n others of t. Of the R tokens left,
    the top out_10(a) of a are centres: y_i = x_i + sum of a_j x_j over the 32 of R with the highest cos(k_i, k_j) +
    50 t_j. Out: main by position, centres by falling a, and one token, the sum of a_j x_j over all other j. If there is
    no centre, only the main tokens. Time O(keep n W), memory O(keep n).

    Defaults: a budget, divided in proportion to these counts; the paper has no budget (`adaptive`): about a tenth of
    576. Each tile by itself; positions renumbered on LLaVA, kept elsewhere, with the tokens in order of position.
    Without a CLS token a is the attention received; without a text tower t is the mean cosine of the projected features
    with the LLM's embeddings of the instruction's tokens.

    Args:
        adaptive: keep as many tokens as the counts say; then it takes no budget.
        relevance_sign: 1, or -1 for features that point away from the text, as CLIP's patches do.
        compat: "official" compares keys of the wrong tokens (the image's first), and counts centres by W * out / R.

    Differences from the authors' code: partly a reconstruction, which no run of their code has confirmed.
        - The budget is ours, and at least one token is kept. R * out / R centres, each compared by its own key.
        - v are the rows that LLaVA projects, after CLIP's last LayerNorm; theirs are the last layer's, without it.
        - The question is read at its end token; theirs reads the first line of the prompt at the last padded place.
        - The last token has no position of its own; it takes that of the token with the largest weight in it.
    """

    name: ClassVar[str] = "recoverable"
    summary: ClassVar[str] = "tokens that stand out to the CLS token or the question; the rest is merged into a few"

    relevance_sign: Literal[1, -1] = 1

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {**super().needs(info), "aligned": Alignment(truncate=True)}

    def select(self, view: ImageView) -> Merged:
        attention, rows = view["attention"].float().clamp(0, 1), view["rows"].rows.float()
        aligned = view["aligned"]
        text = self.relevance_sign * mean_cosine(aligned) / aligned.visual.shape[1] ** 0.5
        seen, asked, count = self.counts(attention, text, rows.shape[1])
        if not self.adaptive:
            seen, asked, count = within(view.keep, seen, asked, count)
        main, rest = split(attention, text, seen, asked)
        if count == 0 and len(main):
            return Merged(rows[main], main, space="tower", members=owned(view.n, main))
        if count == 0 or count >= len(rest):
            raise UserError(f"{self.name}: the authors' code fails: {len(main)} main tokens, {count} centres.")
        order = rest[top_k(attention[rest], len(rest))]
        centres, others = order.tensor_split([count])
        near = self.near(view["keys"].rows.float(), text, rest, torch.searchsorted(rest, centres))
        weights = attention.new_zeros(count + 1, view.n)
        weights[:-1].scatter_(1, near, attention[near])
        weights[-1, others] = attention[others]
        gathered = weights @ rows
        gathered[:-1] += rows[centres]
        anchors, features = torch.cat([main, centres, others[:1]]), torch.cat([rows[main], gathered])
        own, largest = owned(view.n, anchors), mostly(weights, torch.cat([centres, others[:1]]))
        members = torch.where((own < 0) & (largest >= 0), len(main) + largest, own)
        made = Merged(features, anchors, space="tower", members=members)
        return made.ordered(anchors.argsort()) if self.positions(view.info) == "original" else made

    def counts(self, attention: Tensor, text: Tensor, width: int) -> tuple[int, int, int]:
        """How many tokens by attention, by text, and centres the outliers ask for."""
        n = len(attention)
        seen = max(local_outliers(attention, 20), int(self.compat != "official"))
        marked = text.index_fill(0, top_k(attention, seen), float(text.min()))
        asked = (n - seen) * local_outliers(marked, 20) // n
        rest = split(attention, text, seen, asked)[1]
        scale = width if self.compat == "official" else len(rest)
        return seen, asked, scale * local_outliers(attention[rest], 10) // max(1, len(rest))

    def near(self, keys: Tensor, text: Tensor, rest: Tensor, places: Tensor) -> Tensor:
        """The tokens that centres at these places of `rest` gather: up to 32 others of `rest` each."""
        keys = nn.functional.normalize(keys[: len(rest)] if self.compat == "official" else keys[rest], dim=-1)
        likeness = (keys[places] @ keys.T).nan_to_num() + TEXT_WEIGHT * text[rest]
        likeness.scatter_(1, places[:, None], float("-inf"))
        order = torch.sort(likeness, dim=1, descending=True, stable=True).indices
        return rest[order[:, : min(NEIGHBOURS, len(rest) - 1)]]


def within(keep: int, seen: int, asked: int, centres: int) -> tuple[int, int, int]:
    """The counts, scaled so that `keep` tokens come out; the last token exists only if there are centres."""
    centres = (keep - 1) * centres // max(1, seen + asked + centres)
    main = keep - centres - (centres > 0)
    asked = main * asked // max(1, seen + asked)
    return main - asked, asked, centres


def split(attention: Tensor, text: Tensor, seen: int, asked: int) -> tuple[Tensor, Tensor]:
    """The main tokens (top by attention, then top of the others by text score), and all other tokens, ascending."""
    main = torch.zeros(len(attention), dtype=torch.bool, device=attention.device)
    main[top_k(attention, seen)] = True
    main[top_k(text.masked_fill(main, float("-inf")), asked)] = True
    return main.nonzero().squeeze(1), (~main).nonzero().squeeze(1)

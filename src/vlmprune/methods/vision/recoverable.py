"""Recoverable Compression: tokens that stand out to the CLS token or the question; the rest gathered around a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vlmprune.author import Alignment, ImageView, Merged, ModelInfo, Need, UserError, top_k
from vlmprune.methods.outliers import local_outliers
from vlmprune.methods.relevance import mean_cosine
from vlmprune.methods.vision.prumerge import NEIGHBOURS, PruMerge

TEXT_WEIGHT = 50


@dataclass
class Recoverable(PruMerge):
    """PruMerge led by the question too: keeps what stands out, then gathers what is left around a few centres.

    Paper: Recoverable Compression: A Multimodal Vision Token Recovery Mechanism Guided by Text Information (AAAI 2025,
    arXiv 2409.01179).

    Formula: q, k [n + 1, W] = queries and keys of the encoder's last layer, all heads as one; a [n] = softmax(q_0 k^T /
    sqrt(W)) without the CLS key. t [n] = cos(v_i, question) / sqrt(C), v [n, C] = rows of the tower in CLIP's common
    space. out_m(s) = how many of s have a local outlier factor (m neighbours) above 1.5. Main: the top out_20(a) of a,
    n_a tokens; with t of these set to min t, the top (n - n_a) out_20(t) / n others of t. Of the R left, the top
    out_10(a) of a are centres, y_i = x_i + the sum of a_j x_j over the 32 of R with the highest cos(k_i, k_j) + 50 t_j.
    Out: main by position, centres by falling a, and one token, the sum of a_j x_j over all other j. Without a centre
    the main tokens alone. Time O(keep n W), memory O(keep n).

    Defaults: a budget, shared out in proportion to those counts; the paper's own are `adaptive`, about a tenth of 576.
    Each tile by itself; positions renumbered on LLaVA, and elsewhere kept, with the tokens in order of position.
    Without a CLS token a is the attention received; without a text tower t is the mean cosine of the projected features
    with the LLM's embeddings of the instruction's tokens.

    Args:
        adaptive: as many tokens as the counts say; it takes no budget then.
        relevance_sign: 1, or -1 for features that point away from the text, as CLIP's patches do.
        compat: "official" compares keys of other tokens (of the image's first ones), and counts centres by W * out / R.

    Differences from the authors' code: partly a reconstruction, which no run of their code has confirmed.
        - The budget is ours, and at least one token is kept. R * out / R centres, each compared by its own key.
        - v are the rows that LLaVA projects, through CLIP's last LayerNorm; theirs the last layer's, without it.
        - The question is read at its end token; theirs reads the first line of the prompt at the last padded place.
        - The last token has no place of its own; it takes that of the token which weighs most in it.
    """

    name: ClassVar[str] = "recoverable"
    summary: ClassVar[str] = "tokens that stand out to the CLS token or to the question, the rest gathered around a few"

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
            return Merged(rows[main], main, space="tower")
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
        if self.positions(view.info) == "original":
            places = anchors.argsort()
            features, anchors = features[places], anchors[places]
        return Merged(features, anchors, space="tower")

    def counts(self, attention: Tensor, text: Tensor, width: int) -> tuple[int, int, int]:
        """Tokens by attention, by text, and centres, as the outliers say."""
        n = len(attention)
        seen = max(local_outliers(attention, 20), int(self.compat != "official"))
        marked = text.index_fill(0, top_k(attention, seen), float(text.min()))
        asked = (n - seen) * local_outliers(marked, 20) // n
        rest = split(attention, text, seen, asked)[1]
        scale = width if self.compat == "official" else len(rest)
        return seen, asked, scale * local_outliers(attention[rest], 10) // max(1, len(rest))

    def near(self, keys: Tensor, text: Tensor, rest: Tensor, places: Tensor) -> Tensor:
        """The tokens that the centres, at these places of `rest`, gather: up to 32 others of `rest` each."""
        keys = nn.functional.normalize(keys[: len(rest)] if self.compat == "official" else keys[rest], dim=-1)
        likeness = (keys[places] @ keys.T).nan_to_num() + TEXT_WEIGHT * text[rest]
        likeness.scatter_(1, places[:, None], float("-inf"))
        order = torch.sort(likeness, dim=1, descending=True, stable=True).indices
        return rest[order[:, : min(NEIGHBOURS, len(rest) - 1)]]


def within(keep: int, seen: int, asked: int, centres: int) -> tuple[int, int, int]:
    """The counts scaled so that `keep` tokens come out, with the last one, which comes with centres only."""
    centres = (keep - 1) * centres // max(1, seen + asked + centres)
    main = keep - centres - (centres > 0)
    asked = main * asked // max(1, seen + asked)
    return main - asked, asked, centres


def split(attention: Tensor, text: Tensor, seen: int, asked: int) -> tuple[Tensor, Tensor]:
    """The main tokens (the top of the attention, and of the others' text score), and all others, ascending."""
    main = torch.zeros(len(attention), dtype=torch.bool, device=attention.device)
    main[top_k(attention, seen)] = True
    main[top_k(text.masked_fill(main, float("-inf")), asked)] = True
    return main.nonzero().squeeze(1), (~main).nonzero().squeeze(1)

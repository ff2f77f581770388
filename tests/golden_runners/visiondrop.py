"""Runner of VisionDrop: its stage before the LLM, and the acts inside it, replayed one after another."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from golden_runners.case import LLAVA, Case, Failed, acting, positions, sequence, view
from golden_runners.staged import queries_and_keys
from vlmprune.core.plan import acts_of
from vlmprune.core.view import ImageView, Tokens, TowerRows
from vlmprune.methods.hybrid.visiondrop import VisionDrop
from vlmprune.scores import attention_rows

TOLERANCE = 1e-4


def visiondrop(case: Case) -> None:
    {"vision": _before_the_llm, "decoder": _inside}[case["stage"]](case)


def _before_the_llm(case: Case) -> None:
    hidden, keys, attention = case.input("hidden"), case.input("metric"), case.input("cls_attn")
    keep, method = case["dominant"] + case["contextual"], VisionDrop(contextual=case["contextual"])
    made = []
    for i in range(len(hidden)):
        signals = {
            "rows": TowerRows(hidden[i, 1:], hidden[i, :1]),
            "keys": TowerRows(keys[i, 1:], keys[i, :1]),
            "attention": attention[i].mean(0)[1:],
        }
        made.append(method.select(acting(method, keep, view(hidden.shape[1] - 1, keep, signals))))
    case.expect("dominant_with_cls", torch.stack([one.anchors[: case["dominant"]] + 1 for one in made]))
    case.expect("expected_features", torch.stack([one.features for one in made]), TOLERANCE)


def _inside(case: Case) -> None:
    schedule = case["schedule"]
    hidden, n = case.input("features0"), schedule[0][0]
    pads = case["pads"] or [0] * len(hidden)
    lengths = [hidden.shape[1] - pad for pad in pads]
    if "attention_mask0" in case and case.input("attention_mask0").sum(1).tolist() != lengths:
        raise Failed("the mask does not hide the padding")
    _published(schedule)
    for stage, (dominant, contextual) in enumerate(schedule[1:]):
        method = VisionDrop(contextual=contextual)
        rows, ids = [], []
        for row, length in enumerate(lengths):
            number = stage * len(hidden) + row
            columns, new = _act(case, method, stage, number, hidden[row, :length], n, dominant)
            rows.append(new)
            ids.append(positions(method, LLAVA, columns))
        padded = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        hidden, lengths, n = padded(rows), [len(row) for row in rows], dominant + contextual
        case.expect(f"expected_features{stage}", hidden, TOLERANCE)
        case.expect(f"position_ids{stage}", padded(ids))
        case.expect(f"attention_mask_out{stage}", padded([torch.ones(length, dtype=torch.bool) for length in lengths]))


def _act(
    case: Case, method: VisionDrop, stage: int, number: int, hidden: Tensor, n: int, dominant: int
) -> tuple[Tensor, Tensor]:
    """The columns of one row's sequence that stay or lend a token its place, and its hidden states."""
    before, after = case["sys_len"], len(hidden) - case["sys_len"] - n
    rows, keys = _layer(case, stage, hidden, before, n)
    score = rows[:, before : before + n].mean(0)
    states = Tokens(hidden[before : before + n], hidden[before + n :])
    signals = {"visual": score, "rotated": Tokens(keys[before : before + n], keys[before + n :]), "states": states}
    case.expect(f"expected_score{number}", score, TOLERANCE)
    chosen = method.select(_within(method, view(n, dominant + int(method.contextual), signals)))
    case.expect(f"dominant{number}", chosen.anchors[:dominant])
    new = torch.cat([hidden[:before], chosen.features, hidden[before + n :]])
    return sequence(chosen.anchors, before, n, after), new


def _within(method: VisionDrop, image: ImageView) -> ImageView:
    """The same image as an act inside the LLM sees it."""
    return replace(image, act=acts_of(method, image.keep, image.info)[1])


def _layer(case: Case, stage: int, hidden: Tensor, before: int, n: int) -> tuple[Tensor, Tensor]:
    """Of the layer that ranks: [n, L] rows of the image's tokens, mean over heads, and [L, head_dim] mean keys."""
    query, key = queries_and_keys(case, stage, hidden, torch.arange(len(hidden)))
    causal = torch.ones(len(hidden), len(hidden), dtype=torch.bool).tril()[before : before + n]
    rows = attention_rows(query[None, :, before : before + n], key[None], case["head_dim"] ** -0.5, causal[None])
    return rows[0], key.mean(0)


def _published(schedule: list[list[int]]) -> None:
    """The counts of the published setting come out of its average, of 576 tokens."""
    if schedule != [[48, 0], [30, 5], [22, 4], [16, 3]]:
        return
    acts = acts_of(VisionDrop(), 32, LLAVA)
    counts = [act.budget(576, 576) for act in acts]
    contextual = [min(round(VisionDrop().contextual * count), count) for count in counts]
    if counts != [48, 35, 26, 19] or contextual != [6, 5, 4, 3]:
        raise Failed(f"an average of 32 tokens is {counts}, of which {contextual} are contextual")

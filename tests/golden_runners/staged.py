"""Runners of methods that act at several decoder layers, or drop an image at one: replayed stage by stage."""

from __future__ import annotations

from functools import partial
from unittest import mock

import torch
from torch import Tensor

from golden_runners.case import LLAVA, Case, Failed, Runner, acting, noise, positions, sequence, view
from vlmprune.core.method import Method
from vlmprune.core.plan import acts_of
from vlmprune.core.view import Merged, Selection, Tokens
from vlmprune.methods.cluster import cluster_merge, recycle
from vlmprune.methods.decoder import sparsevlm, sparsevlm_counts
from vlmprune.methods.decoder.adaptinfer import AdaptInfer
from vlmprune.methods.decoder.pyramiddrop import PyramidDrop
from vlmprune.methods.decoder.sparsevlm import SparseVLM
from vlmprune.methods.decoder.vtw import VTW, divergence, first_within
from vlmprune.scores import attention_rows

TOLERANCE = 2e-5
SPARSEVLM = {"1_0": "1.5", "2_0": "+"}  # the code's switch and ours


# ---------------------------------------------------------------------- PyramidDrop


def rotated(states: Tensor, at: Tensor, base: float) -> Tensor:
    """Llama's rotary embedding of states [H, L, d] at positions [L]."""
    half = states.shape[-1] // 2
    angle = at[:, None] * base ** (-torch.arange(half) / half)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    return states * cos + torch.cat([-states[..., half:], states[..., :half]], dim=-1) * sin


def queries_and_keys(case: Case, stage: int, hidden: Tensor, at: Tensor) -> list[Tensor]:
    """[H, L, head_dim] each, rotated, of the layer that ranks these tokens [L, D]."""
    x = hidden * (hidden.square().mean(1, keepdim=True) + case["rms_eps"]).rsqrt() * case.input(f"norm_w{stage}")
    return [
        rotated(
            (x @ case.input(f"w{name}{stage}").T).unflatten(1, (case["heads"], -1)).transpose(0, 1),
            at,
            case["rope_base"],
        )
        for name in "qk"
    ]


def last_row(case: Case, stage: int, hidden: Tensor, at: Tensor) -> Tensor:
    """[L] what the last of these tokens attends to, mean over heads, at the layer that ranks them."""
    query, key = queries_and_keys(case, stage, hidden, at)
    return attention_rows(query[None, :, -1:], key[None], query.shape[-1] ** -0.5)[0, 0]


def pdrop(case: Case) -> None:
    method, ratios = PyramidDrop(), case["ratios"]
    if "batch" in case.settings:
        _pdrop_batch(case, method, ratios)
        return
    before, n, after = case["sys_len"], case["n_img"], case["n_text"]
    hidden, counts = case.input("features0"), [n]
    at, total = torch.arange(len(hidden)), n
    for stage, ratio in enumerate(ratios[1:]):
        keep = int(total * ratio)
        row = last_row(case, stage, hidden, at)[before : before + n]
        columns = sequence(method.select(view(n, keep, {"attention": row})), before, n, after)
        case.expect(f"kept_all{stage}", columns)
        hidden, n, at = hidden[columns], keep, positions(method, LLAVA, columns)
        case.expect(f"position_ids{stage}", at)
        counts.append(n)
    case.expect_setting("keep_counts", counts)
    _halves(ratios, counts)


def _halves(ratios: list[float], counts: list[int]) -> None:
    """Where the ratios are powers of a lambda, our budgets are the same numbers."""
    share = ratios[1]
    if all(abs(ratio - share**act) < 1e-9 for act, ratio in enumerate(ratios)):
        acts = acts_of(PyramidDrop(layers=tuple(range(1, len(ratios)))), share, LLAVA)
        ours = [act.budget(max(1, n), counts[0]) for act, n in zip(acts, counts, strict=False)]
        # ours keeps a token at least, and counts 0.3 of 10 as 3 where floats make it 2.9999
        theirs = [max(1, int(counts[0] * ratio + 1e-6)) for ratio in ratios[1:]]
        if ours != theirs:
            raise Failed(f"budgets {ours} instead of {theirs}")


def _pdrop_batch(case: Case, method: Method, ratios: list[float]) -> None:
    """The authors pad on the right, and pad again once rows are shorter."""
    hidden, real, at = case.input("features0"), case.input("attention_mask0"), case.input("position_ids_in")
    rows, ids = [], []
    for row, (before, n, text) in enumerate(zip(case["image_start"], case["n_img"], case["prompt_len"], strict=True)):
        length = int(real[row].sum())
        scores = last_row(case, 0, hidden[row, :length], at[row, :length])[before : before + n]
        kept = method.select(view(n, int(n * ratios[1]), {"attention": scores}))
        columns = sequence(kept, before, n, text - before)
        rows.append(hidden[row, columns])
        ids.append(positions(method, LLAVA, columns))
    padded = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    case.expect("features_out", padded(rows), TOLERANCE)
    case.expect("position_ids_out", padded(ids))
    case.expect("attention_mask_out", padded([torch.ones(len(row), dtype=torch.bool) for row in rows]))


# ---------------------------------------------------------------------- SparseVLM


def sparse(case: Case) -> None:
    {"e2e_toy": _sparse_forward, "rank_v1": _sparse_rank, "cluster_and_merge": cluster_and_merge}[case["kind"]](case)


def cluster_and_merge(case: Case) -> None:
    clusters = cluster_merge(case.input("x"), case["clusters"], noise(case, "noise"))
    case.expect("merged", clusters.merged, TOLERANCE)


def _sparse_rank(case: Case) -> None:
    rows, n = case.input("attn_text_rows").mean(0), case["n_img"]
    raters = torch.zeros(len(rows), dtype=torch.bool)
    raters[case.input("text_idx")] = True
    method, by_budget = SparseVLM(version="1.0"), (case["scale"], case["bias"])
    image = view(n, n - 1, {"attention": rows, "states": Tokens(torch.zeros(n, 4), torch.zeros(1, 4))})
    image = acting(method, 0.5, image)
    relation = method.relation(image, raters)
    case.expect("relation", relation, TOLERANCE)
    with (
        mock.patch.object(SparseVLM, "raters", lambda self, view: raters),
        mock.patch.object(sparsevlm_counts, "interpolate", lambda *table, **options: by_budget),
    ):
        chosen = method.select(image)
    kept = chosen.anchors[chosen.unchanged] if isinstance(chosen, Merged) else chosen
    rank, mask = int(torch.linalg.matrix_rank(rows[raters])), torch.zeros(n, dtype=torch.bool)
    mask[kept] = int(rank * case["scale"] + case["bias"]) > 0  # ours keeps a token at least
    case.expect("keep_mask", mask)
    case.expect_setting("rank", rank)
    case.expect_setting("s_flag", len(kept) < n)


def _sparse_forward(case: Case) -> None:
    method = SparseVLM(version=SPARSEVLM[case["version"]])
    before, n, after = case["sys_len"], case["n_img"], case["n_text"]
    embeds = case.input("inputs_embeds")
    words = {"image": embeds[before : before + n], "text": embeds[before + n :]}
    at, entering, leaving = torch.arange(len(embeds)), [], []
    for layer in range(case["n_layers"]):
        entering.append(n)
        if layer in case["pruning_layers"]:
            stage = case["pruning_layers"].index(layer)
            hidden, rows = case.input(f"hidden_out_{layer}"), case.input(f"attn_text_vis_{layer}")
            states = Tokens(hidden[before : before + n], hidden[before + n :])
            signals = {**words, "attention": rows if method.exact else rows[0], "states": states}
            signals["gain"] = _gain(case, at[before + n :], at[before : before + n])
            with mock.patch.object(sparsevlm, "recycle", partial(recycle, noise=noise(case, f"noise_{stage}"))):
                chosen = method.select(view(n, min(case["keep_lists"][stage], n - 1), signals))
            made, columns = _after(hidden, chosen, before, n, after)
            case.expect(f"after_{layer}", made, TOLERANCE)
            at = at[columns] if method.positions(LLAVA) == "original" else torch.arange(len(columns))
            case.expect(f"positions_after_{layer}", at)
            n = len(columns) - before - after
        leaving.append(n)
    if case.input("final_hidden").shape != (before + n + after, case["dim"]):
        raise Failed("final_hidden has another length")
    if [step["n_in"] for step in case["trace"]] != [before + count + after for count in entering]:
        raise Failed(f"{entering} visual tokens enter the layers, not as the trace says")
    if abs(sum(leaving) / len(leaving) - case["avg_tokens"]) > 1e-4:
        raise Failed(f"{leaving} visual tokens leave the layers, not {case['avg_tokens']} on average")
    d, inner, lengths = case["dim"], case["inter"], [before + count + after for count in entering]
    case.expect_setting("flops_total", sum(4 * m * d * d + 2 * m * m * d + 3 * m * d * inner for m in lengths))


def _gain(case: Case, queries: Tensor, keys: Tensor) -> Tensor:
    width = case["dim"] // case["heads"]
    theta = case["rope_base"] ** (-torch.arange(width // 2) * 2 / width)
    return 2 * width**-0.5 * ((queries[:, None] - keys)[..., None] * theta).cos().sum(-1)


def _after(hidden: Tensor, chosen: Selection, before: int, n: int, after: int) -> tuple[Tensor, Tensor]:
    """The sequence with what was chosen of the image, and the column that lends each token its place."""
    anchors = chosen.anchors if isinstance(chosen, Merged) else chosen
    columns = sequence(anchors, before, n, after)
    made = hidden[columns].clone()
    if isinstance(chosen, Merged):
        made[before : before + len(anchors)] = chosen.features
    return made, columns


# ---------------------------------------------------------------------- AdaptInfer, VTW


def adaptinfer(case: Case) -> None:
    rows, text = case.input("attn_text_rows")[0], case["text_start"]
    n, start = case["v_num"], case["v_start"]
    signals = {"text": rows[..., text:], "image": rows[..., start : start + n]}
    image = view(n, case["keep_num"], signals)
    method = AdaptInfer()
    case.expect("scores", method.score(image)[None], TOLERANCE)
    case.expect("kept_sorted", method.select(image))


def vtw(case: Case) -> None:
    if case.get("kind") == "find_k":
        full, withdrawn = case.input("logits_full"), case.input("logits_withdrawn")
        divergences = divergence(full, withdrawn)
        case.expect("kl_mean", divergences, TOLERANCE)
        case.expect_setting("expected_k", first_within(divergences, case["eta"], case["first_layer"]))
        case.expect_setting("n_layers", case["first_layer"] + withdrawn.shape[1])
        return
    method, before, n, after = VTW(layer=case["k"]), case["sys_len"], case["n_img"], case["n_text"]
    columns = sequence(method.select(view(n, 0)), before, n, after)
    case.expect("kept_all", columns)
    case.expect("hidden_kept", case.input("hidden")[columns], TOLERANCE)
    original = case["keep_positions"]
    if original and method.positions(LLAVA) != "original":
        raise Failed("positions are re-numbered")
    case.expect("position_ids", columns if original else torch.arange(len(columns)))


RUNNERS: dict[str, Runner] = {"pdrop": pdrop, "sparsevlm": sparse, "adaptinfer": adaptinfer, "vtw": vtw}

"""Runners of methods that act inside the LLM."""

from __future__ import annotations

from torch import Tensor

from golden_runners.case import LLAVA, Case, check_exact, positions, sequence, view
from vlmprune.core.plan import acts_of
from vlmprune.core.selectors import top_k
from vlmprune.core.view import Tokens
from vlmprune.methods.decoder.dart import Dart
from vlmprune.methods.decoder.fastv import FastV
from vlmprune.methods.vision.random import Random

TOLERANCE = 2e-5


def random_intra(case: Case) -> None:
    n, method = case["n_img"], Random(layer=2, compat="uniprune")
    keep = acts_of(method, float(case["keep_ratio"]), LLAVA)[0].budget(n, n)
    image = view(n, keep, seed=case["seed"])
    case.expect("permutation", top_k(method.score(image), n))
    case.expect("kept_sorted", method.select(image))
    case.expect_setting("n_kept", keep)


def fastv(case: Case) -> None:
    before, n, after = case["sys_len"], case["n_img"], case["n_text"]
    # the method's signal: the last row, mean over heads, the image's columns
    row = case.input("attn_last_row").mean(0)[before : before + n]
    method = FastV()

    def kept(keep: int) -> Tensor:
        return method.select(view(n, keep, {"attention": row}))

    case.expect_setting("heads", len(case.arrays["attn_last_row"]))
    score = method.score(view(n, case["keep"], {"attention": row}))
    case.expect("kept_image_as_produced", top_k(score, case["keep"]))
    columns = sequence(kept(case["keep"]), before, n, after)
    case.expect("kept_all_sorted", columns)
    case.expect("position_ids", positions(method, LLAVA, columns))
    case.expect("hidden_kept", case.input("hidden")[columns], TOLERANCE)
    ported = round(n * (1 - case["r"]))
    case.expect_setting("hf_keep", ported)
    case.expect("hf_kept_all_sorted", sequence(kept(ported), before, n, after))
    uniprune = FastV(compat="uniprune")
    share = float(case["unibench_keep_ratio"])
    truncated = acts_of(uniprune, share, LLAVA)[0].budget(n, n) if int(n * share) else 0  # ours keeps a token at least
    case.expect_setting("unibench_keep", truncated)
    case.expect("unibench_kept_as_produced", uniprune.select(view(n, truncated, {"attention": row})).anchors)


def dart(case: Case) -> None:
    before, n = case["sys_len"], case["n_img"]
    keys = case.input("keys").transpose(0, 1).flatten(1)  # [L, KV heads x head dim]
    states = case.input("hidden_norm")
    signals = {
        name: Tokens(values[before : before + n], values[before + n :])
        for name, values in (("keys", keys), ("states", states))
    }
    pivots = {"image_pivots": case["pivot_image"], "text_pivots": case["pivot_text"]}
    budget = int(n * (1 - case["reduction_ratio"]))
    case.expect_setting("topk", budget // sum(pivots.values()))
    image = view(n, budget, signals)
    if "official_raises" in case.settings:
        check_exact(Dart(**pivots).select(image), budget, n)
        return
    official = Dart(**pivots, compat="official", start=before)
    image_pivots, text_pivots = official.pivots(image)
    case.expect("image_pivots", image_pivots + before)
    case.expect("text_pivots", text_pivots + before + n)
    case.expect("pivot_order", [column + before for column in official.order(image_pivots, text_pivots, n)])
    rounds = official.rounds(image)
    kept = official.select(image)
    case.expect("kept_abs_sorted", kept + before)
    case.expect("unibench_kept_rel_sorted", Dart(**pivots, compat="uniprune", start=before).select(image))
    case.expect("kept_abs_as_produced", _set_order(rounds, text_pivots, before, n))
    case.expect_setting("n_kept", len(kept))
    exact = Dart(**pivots).select(view(n, len(kept), signals))
    check_exact(exact, len(kept), n)


def _set_order(rounds: list[Tensor], text_pivots: Tensor, before: int, n: int) -> list[int]:
    """The authors list a Python set that grew round by round and held the text pivots meanwhile."""
    texts = (text_pivots + before + n).tolist()
    grown = set((rounds[0] + before).tolist() + texts)
    for added in rounds[1:]:
        grown.update((added + before).tolist())
    grown.difference_update(texts)
    return list(grown)

"""The attention that visual tokens get in each decoder layer, and what Prune-Aware Fusion (Hi-Lo Prune) changes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprune.analyze.look import DARK, LIGHT, MIDDLE, band, interval, layer_ticks, legend, plain
from vlmprune.analyze.pictures import Picture
from vlmprune.analyze.sight import Sight, per_layer, sights
from vlmprune.analyze.study import Asked, Finding, Sheet
from vlmprune.ask.run import chat_inputs
from vlmprune.core.errors import UserError
from vlmprune.core.recipe import recipe
from vlmprune.report.plots import FAINT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = "What is in the picture?"
KEEP = 0.111
WHOLE, UNFUSED, FUSED = "unpruned", "pruned, no fusion", "pruned, fusion"
RECIPES = {UNFUSED: f"hilo(lambda_=0):{KEEP}", FUSED: f"hilo:{KEEP}"}
_STYLES = {WHOLE: (DARK, "o", "-"), UNFUSED: (LIGHT, "s", "--"), FUSED: (MIDDLE, "D", ":")}
_UNCHANGED = 5e-4  # of a share of attention: less is not seen in the figures
Runs = dict[str, list[dict[int, Sight]]]  # by run, for each picture


def decoder(asked: Asked) -> Finding:
    """Unpruned, and under Hi-Lo Prune with and without fusion, where the model allows it."""
    settings = {"question": QUESTION, "recipes": RECIPES}
    runs: Runs = {}
    refused = ""
    for number, picture in enumerate(asked.pictures):
        asked.tell("decoder attention", number, len(asked.pictures))
        found = asked.once("decoder", [picture.digest, settings], partial(_measure, asked, picture))
        refused = found["refused"]
        for name, layers in found["runs"].items():
            runs.setdefault(name, []).append({int(layer): Sight(*of_layer) for layer, of_layer in layers.items()})
    asked.tell("decoder attention", len(asked.pictures), len(asked.pictures))
    text = [*_text(runs), *([f"Pruned runs are left out: {refused}"] if refused else [])]
    return Finding("Attention to visual tokens in the decoder", text, {"decoder": _figure(runs)}, _sheets(runs))


def _measure(asked: Asked, picture: Picture) -> dict[str, Any]:
    """All runs on one picture, and why pruned ones are left out."""
    loaded = asked.subject.loaded
    inputs = dict(chat_inputs(loaded.processor, picture.image, QUESTION).to(loaded.model.device, loaded.model.dtype))
    runs: dict[str, dict[int, Sight]] = {}
    runs[WHOLE], _ = sights(loaded.model, inputs)
    refused = ""
    try:
        runs[FUSED], candidates = sights(loaded.model, inputs, recipe(RECIPES[FUSED]))
        runs[UNFUSED], _ = sights(loaded.model, inputs, recipe(RECIPES[UNFUSED]), candidates)
    except UserError as error:
        refused = str(error)
        runs = {WHOLE: runs[WHOLE]}
    return {"runs": runs, "refused": refused}


def _sheets(runs: Runs) -> dict[str, Sheet]:
    rows: list[list[object]] = []
    for name, found in runs.items():
        tokens, gathered = per_layer(found, "tokens"), per_layer(found, "gathered")
        for layer, values in per_layer(found, "visual").items():
            mean = [round(number, 4) for number in interval(values)]
            drawn = round(float(np.mean(gathered[layer])), 4) if layer in gathered else ""
            rows.append([name, layer, *mean, round(float(np.mean(tokens[layer])), 4), drawn])
    head = ["run", "layer", "attention_share", "low", "high", "token_share", "attention_to_candidates"]
    return {"decoder": Sheet(head, rows)}


def _figure(runs: Runs) -> Figure:
    from matplotlib.figure import Figure

    fused = FUSED in runs and bool(per_layer(runs[FUSED], "gathered"))
    figure = Figure(figsize=(9.6 if fused else 6.4, 3.8), layout="constrained")
    plots = figure.subplots(1, 1 + fused, squeeze=False, width_ratios=[2, 1] if fused else [1])[0]
    tokens = per_layer(runs[WHOLE], "tokens")
    share = [100 * float(np.mean(values)) for values in tokens.values()]
    plots[0].plot(list(tokens), share, color=FAINT, linewidth=1, linestyle=(0, (1, 3)),
                  label="visual share of all tokens")  # fmt: skip
    for name in (name for name in _STYLES if name in runs):
        color, marker, dash = _STYLES[name]
        found = per_layer(runs[name], "visual")
        band(plots[0], list(found), _percent(found.values()), color=color, marker=marker, linestyle=dash, markersize=4,
             linewidth=1.4, label=name)  # fmt: skip
    plain(plots[0], "decoder layer, from 0", "attention to visual tokens, percent")
    plots[0].set_ylim(0, 102)
    layer_ticks(plots[0], max(tokens) + 1)
    legend(plots[0])
    if fused:
        for name in (UNFUSED, FUSED):
            color, marker, dash = _STYLES[name]
            found = per_layer(runs[name], "gathered")
            mean, low, high = np.array(_percent(found.values())).T
            plots[1].plot(list(found), mean, color=color, marker=marker, linestyle=dash, label=name)
            plots[1].vlines(list(found), low, high, color=color, linewidth=1)
        plain(plots[1], "decoder layer, from 0", "attention to candidates, percent")
        plots[1].set_xticks(list(found))
        plots[1].set_xlim(min(found) - 0.5, max(found) + 0.5)
        plots[1].set_ylim(0, 1.1 * plots[1].get_ylim()[1])
        legend(plots[1])
    return figure


def _percent(found: Any) -> list[tuple[float, float, float]]:
    return [interval([100 * value for value in values]) for values in found]


def _text(runs: Runs) -> list[str]:
    visual, tokens = per_layer(runs[WHOLE], "visual"), per_layer(runs[WHOLE], "tokens")
    mean = {layer: 100 * float(np.mean(values)) for layer, values in visual.items()}
    high, low = max(mean, key=lambda layer: mean[layer]), min(mean, key=lambda layer: mean[layer])
    share = 100 * float(np.mean(next(iter(tokens.values()))))
    said = [
        f"Visual tokens are {share:.0f} % of the prompt. The text behind the image pays them between {mean[low]:.0f} % "
        f"(layer {low}) and {mean[high]:.0f} % (layer {high}) of its attention, mean over heads and over the prompts."
    ]
    return said + _fusion_text(runs)


def _fusion_text(runs: Runs) -> list[str]:
    if FUSED not in runs:
        return []
    with_, without = per_layer(runs[FUSED], "gathered"), per_layer(runs[UNFUSED], "gathered")
    each = [
        f"in layer {layer} from {100 * np.mean(without[layer]):.1f} % to {100 * np.mean(with_[layer]):.1f} %"
        for layer in with_
        if layer in without
    ]
    if not each:
        return ["Hi-Lo Prune found nothing here that fusion could raise."]
    if max(abs(np.mean(with_[layer]) - np.mean(without[layer])) for layer in with_ if layer in without) < _UNCHANGED:
        return [
            f"Under {RECIPES[FUSED]} fusion leaves the attention to tokens that the cut will drop as it is, "
            f"{' and '.join(each)}: hardly any of them gets enough attention to be raised."
        ]
    return [
        f"Under {RECIPES[FUSED]} fusion changes the attention to tokens that the cut will drop, {' and '.join(each)}."
    ]

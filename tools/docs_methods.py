"""The tables of docs/methods.md: what the classes and their docstrings say, and what the tests prove of each method.

How true a method is to its authors' code is not written down anywhere: the golden cases in tests/ are run, and a method
has those in which it took part. On which families it works is read off the parameters of the tests.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from docs_text import plain, table

from vlmprune.core.act import Act
from vlmprune.core.method import EVERY_METHODS, Method, PixelMethod
from vlmprune.core.needs import USED, DecoderNeed, Depth, EncoderLayer, EncoderNeed, Need, PromptNeed
from vlmprune.core.plan import acts_of
from vlmprune.core.presets import PRESETS
from vlmprune.core.recipe import format_method, recipe
from vlmprune.core.registry import METHODS, built_in
from vlmprune.core.traits import Traits, traits_of
from vlmprune.core.view import ModelInfo
from vlmprune.testing.docstrings import cost, told

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
METHODS_FOLDERS = (str(ROOT / "src" / "vlmprune" / "methods"), str(TESTS / "golden_runners"))
for folder in (TESTS, ROOT / "tools"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

ON_MODELS = "test_methods_on_models.test_every_method_on_every_family"
RESIZING = ("test_equivalence.test_cached_equals_uncached", "test_equivalence.test_batch_equals_alone")
PORTS = {"ModelTC/LightCompress", "TianfanPeng/VLMUniPruneBench"}  # of other people's methods
STEP = {"tome": "of one step, which is all that both have in common"}  # folder of goldens: what of the method they pin


@dataclass(frozen=True)
class Model:
    """One of the two models on which the page says what a method does by default."""

    name: str
    info: ModelInfo
    used: int  # the encoder layer whose output is projected
    full_layers: tuple[int, ...] | None = None


MODELS = (
    Model("LLaVA-1.5", ModelInfo("llava", 24, 32, True), 22),
    Model("Qwen2.5-VL", ModelInfo("qwen2_5_vl", 32, 28, False), 31, (7, 15, 23, 31)),
)


@dataclass(frozen=True)
class Encoder:
    """The encoder of a model, as needs ask for it (`core.needs.Tower`)."""

    model: Model

    @property
    def has_cls(self) -> bool:
        return self.model.info.has_cls

    def layer(self, layer: EncoderLayer) -> int:
        if layer == USED:
            return self.model.used
        if isinstance(layer, Depth):
            return layer.index(self.model.info.encoder_layers, self.model.full_layers)
        return int(layer) % self.model.info.encoder_layers


def signals() -> list[type[Need]]:
    """All signals of vlmprune: those of core, then those in the files of methods."""
    for name, method in methods():
        assert method.name == name  # imported
    found, stack = list[type[Need]](), [Need]
    while stack:
        cls = stack.pop()
        stack += reversed(cls.__subclasses__())
        if cls.__module__.startswith("vlmprune.") and not cls.__name__.startswith("_") and cls.words:
            found.append(cls)
    return sorted(found, key=lambda cls: cls.__module__ != "vlmprune.core.signals")


def methods() -> list[tuple[str, type[Method]]]:
    return [(name, METHODS[name]) for name in built_in()]


# ---------------------------------------------------------------- tables


def short() -> str:
    rows = ([f"`{name}`", cls.stage, cls.summary, paper_link(cls)] for name, cls in methods())
    return table(("name", "acts on", "keeps", "paper"), rows)


def overview() -> str:
    head = ("method", "acts on", "reads", "time", "families", "fidelity", "paper")
    rows = []
    for name, cls in methods():
        link = f"[`{name}`](#{anchors()[name]})"
        reads = list(dict.fromkeys(need.words for model in MODELS for need in needs(cls(), model)))
        cells = [", ".join(reads) or "nothing", cost(cls)[0], families(name), fidelity(name), paper_link(cls)]
        rows.append([link, cls.stage, *cells])
    return table(head, rows)


def defaults() -> str:
    """What is done with positions and with tiles or frames where the user does not say."""
    head = ["method", *(f"{what}, {model.name}" for what in ("positions", "budget of") for model in MODELS)]
    infos = [model.info for model in MODELS]
    shared = {"image": "the image", "frame": "each tile or frame"}
    rows = []
    for name, cls in methods():
        method = cls()
        cells = [*map(method.positions, infos), *(shared[method.pool(info)] for info in infos)]
        rows.append([f"[`{name}`](#{anchors()[name]})", *cells])
    return table(head, rows)


def costs() -> str:
    """What the runtime spends on each signal."""
    rows = ([f"`{signal.__name__}`", signal.words, signal.cost_words] for signal in signals())
    return table(("signal", "in words", "cost"), rows)


def prompt_signals() -> str:
    return signal_table(PromptNeed)


def encoder_signals() -> str:
    return signal_table(EncoderNeed)


def decoder_signals() -> str:
    return signal_table(DecoderNeed)


def signal_table(room: type[Need]) -> str:
    """Signals that are read in one place: how they are written, and what their docstrings say."""
    rows = []
    for signal in signals():
        if issubclass(signal, room):
            options = ", ".join(field.name for field in fields(signal))
            said = inspect.cleandoc(signal.__doc__ or "").replace("\n\n", " ")
            rows.append([f"`{signal.__name__}({options})`", plain(said)])
    return table(("signal", "what it is"), rows)


def budgets() -> str:
    """Methods whose budget is something else than what is left when they have acted."""
    rows = ([f"`{name}`", cls.budget_means] for name, cls in methods() if cls.budget_means)
    return table(("method", "its budget is"), rows)


def presets() -> str:
    """Those that differ in the budget alone in one row, with N for it."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, (text, source) in PRESETS.items():
        budget = name.rpartition("-")[2]
        shown = text.removesuffix(budget) + "N" if text.endswith(f":{budget}") else text
        alike.setdefault((shown, source), []).append(name)
    rows = []
    for (shown, source), names in alike.items():
        if len(names) == 1:
            shown = PRESETS[names[0]].recipe
        rows.append([", ".join(f"`{name}`" for name in names), f"`{shown}`", plain(source)])
    return table(("presets", "recipe", "from"), rows)


def in_full() -> str:
    return "\n\n".join(section(name, cls) for name, cls in methods())


def section(name: str, cls: type[Method]) -> str:
    """A method's part of the page: its docstring, with the facts that follow from code and tests."""
    head, *paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    parts = [f"### {name}", plain(head), facts(name, cls)]
    arguments = False
    for paragraph in paragraphs:
        title, _, body = paragraph.partition(":")
        if title == "Formula":
            parts.append("```text\n" + inspect.cleandoc(body) + "\n```")
        elif title == "Args":
            parts.append(options(cls))
            arguments = True
        elif title == "Raises":
            continue
        elif title == "Paper":
            parts.append(f"Paper: {linked(plain(body))}")
        elif re.search(r"^\s*- ", body, re.MULTILINE):
            says, *items = re.split(r"\n\s*- ", body)
            parts.append(f"{title}:{' ' * bool(says.strip())}{plain(says)}")
            parts.append("\n".join(f"- {plain(item)}" for item in items))
        else:
            parts.append(plain(paragraph))
    if not arguments and own_fields(cls):
        raise ValueError(f"{name}: the docstring has no Args")
    return "\n\n".join(part for part in parts if part)


def facts(name: str, cls: type[Method]) -> str:
    method = cls()
    lines = [f"reads on {model.name}: {read(method, model)}" for model in MODELS]
    lines.append("positions: " + each(method.positions))
    shared = {"image": "all tokens of an image or video compete", "frame": "shared out over tiles or frames"}
    lines.append("budget: " + each(lambda info: shared[method.pool(info)]))
    time, memory = cost(cls)
    lines += [f"cost: {time}{', memory ' * bool(memory)}{memory}", f"families: {families(name)}"]
    lines.append(f"fidelity: {fidelity(name)}{goldens(name)}")
    named = [preset for preset, (text, _) in PRESETS.items() if recipe(text).stages[0].method.name == name]
    if named:
        lines.append("presets: " + ", ".join(f"`{preset}`" for preset in named))
    return "\n".join(f"- {line}" for line in lines)


def each(of: Callable[[ModelInfo], str]) -> str:
    """What holds on both models, or on each."""
    values = [of(model.info) for model in MODELS]
    if len(set(values)) == 1:
        return values[0]
    return ", ".join(f"{value} on {model.name}" for value, model in zip(values, MODELS, strict=True))


@cache
def anchors() -> dict[str, str]:
    """GitHub's anchor of each method's heading."""
    seen: Counter[str] = Counter()
    found = {}
    for name in built_in():
        slug = re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-")
        found[name] = f"{slug}-{seen[slug]}" if seen[slug] else slug
        seen[slug] += 1
    return found


# ---------------------------------------------------------------- what the docstring says


ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})(v\d)?")
VENUE = re.compile(r"([A-Z]\w+ \d{4}), (https://[^\s)]+)")  # of a paper that is not on arXiv


def linked(text: str) -> str:
    return VENUE.sub(r"[\1](\2)", ARXIV.sub(r"[arXiv \1\2](https://arxiv.org/abs/\1\2)", text))


def paper_link(cls: type[Method]) -> str:
    text = " ".join((cls.__doc__ or "").split())
    found = ARXIV.search(text) or VENUE.search(text)
    return linked(found[0]) if found else "none"


def choosing() -> str:
    """What each method is like, by default, on LLaVA-1.5: as `vlmprune list methods --needs` tells them apart."""
    rows = []
    for name, cls in methods():
        traits = traits_of(cls(), MODELS[0].info)
        marks = ["yes" if value == "yes" else "" for value in traits.words().values()]
        rows.append([f"[`{name}`](methods.md)", *marks])
    return table(("method", *(f"`{field.name}`" for field in fields(Traits))), rows)


def own_fields(cls: type[Method]) -> list[Field[Any]]:
    return [field for field in fields(cls) if field.name not in EVERY_METHODS]


def options(cls: type[Method]) -> str:
    """Every option with its default and what the nearest docstring says of it."""
    texts, found = told(cls), {field.name: field for field in fields(cls)}
    rows = [[f"`{name}`", f"`{default(found[name])}`", plain(texts[name])] for name in found if name in texts]
    return table(("option", "default", "meaning"), rows)


def default(field: Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    return format_method(value) if isinstance(value, Method) else repr(value)


# ---------------------------------------------------------------- what it reads


def needs(method: Method, model: Model) -> list[Need]:
    """What it reads on a model, at all layers where it acts."""
    return list(dict.fromkeys(need for act in acts(method, model) for need in act.needs.values()))


def acts(method: Method, model: Model) -> Sequence[Act]:
    return acts_of(method, 0.5, model.info)


def read(method: Method, model: Model) -> str:
    """The same in words, with the layers, counted from 0."""
    tower = Encoder(model)
    layers: dict[tuple[str, str], set[int]] = {}
    for act in acts(method, model):
        for need in act.needs.values():
            words, kind = need.words, "decoder" if isinstance(need, DecoderNeed) else "encoder"
            if isinstance(need, EncoderNeed):
                words = need.resolved(tower).words
            found = layers.setdefault((words, kind), set())
            if isinstance(need, EncoderNeed) and need.taps != ("rows",):
                found |= {tower.layer(layer) for layer in need.layers}
            elif isinstance(need, DecoderNeed) and need.taps:
                assert act.layer is not None
                found.add(act.layer - ("ahead" not in need.taps))
    placed: dict[str, list[str]] = {}
    for (words, kind), numbers in layers.items():
        placed.setdefault(place(kind, sorted(numbers)), []).append(words)
    return ", ".join(" and ".join(words) + where for where, words in placed.items()) or "nothing"


def place(kind: str, layers: list[int]) -> str:
    if not layers:
        return ""
    if len(layers) > 4:
        return f" ({kind} layers {layers[0]} to {layers[-1]})"
    *most, last = map(str, layers)
    return f" ({kind} layer{'s' * bool(most)} {', '.join(most)}{' and ' * bool(most)}{last})"


# ---------------------------------------------------------------- what the tests prove


@cache
def runs_of(name: str) -> frozenset[str]:
    """The tiny models (keys of vlmprune.testing.FAMILIES) on which a test runs the method and is to pass."""
    runs = import_module("docs_models").runs

    def of(test: str) -> set[str]:
        return {row["family"] for row, sound in runs(test) if row.get("name") == name and sound}

    resizes = issubclass(METHODS[name], PixelMethod)
    return frozenset(set.intersection(*map(of, RESIZING)) if resizes else of(ON_MODELS))


def families(name: str) -> str:
    """The tiny models on which it is tested: all, all but some, or these."""
    variants = import_module("docs_models").variants()
    here = [model for model, keys in variants.items() if set(keys.values()) <= runs_of(name)]
    missing = [model for model in variants if model not in here]
    if not missing:
        return "all"
    return f"all but {', '.join(missing)}" if len(missing) < len(here) else ", ".join(here) or "untested"


@cache
def taken_part() -> dict[str, Counter[str]]:
    """The shipped golden cases that pass, by method that took part and repository that was run."""
    runners, case_module = import_module("golden_runners"), import_module("golden_runners.case")
    taken: dict[str, Counter[str]] = {}
    seen: set[str] = set()

    def noticed(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(METHODS_FOLDERS):
            method = frame.f_locals.get("self")
            if isinstance(method, Method):
                seen.add(method.name)

    for path in case_module.find(TESTS / "goldens"):
        case = case_module.Case(path)
        runner = runners.runner_of(case)
        if runner is None:
            continue
        seen.clear()
        sys.setprofile(noticed)
        try:
            case_module.run(case, runner)
        finally:
            sys.setprofile(None)
        for name in seen or {case.method}:
            taken.setdefault(name, Counter())[repository(path)] += 1
    return taken


def repository(path: Path) -> str:
    """What was run to make a golden case, as owner/name."""
    source = json.loads(path.read_text(encoding="utf-8"))["source"]
    text = source["repo"] if isinstance(source, dict) else source
    return text.partition("@")[0].replace("+", "/")


def fidelity(name: str) -> str:
    """What proves that it is what its authors published."""
    cls, cases = METHODS[name], taken_part().get(name)
    text = " ".join((cls.__doc__ or "").split())
    ours = re.search(r"(partly )?a reconstruction\b", text[: text.find("Args:")] + differences(text), re.IGNORECASE)
    if cases and name in STEP:
        return "golden-matched in part"
    if cases:
        port = set(cases) <= PORTS and "UniPruneBench" not in text.partition("Formula:")[0]
        return "golden-matched" + " (third-party port)" * port
    if ours:
        return "partly a reconstruction" if ours[1] else "reconstruction"
    return "our own" if "Paper: none" in text else "from the paper, unproven"


def differences(text: str) -> str:
    """The first sentence of what a docstring says of its differences."""
    return text.partition("Differences from the authors' code:")[2].partition(" - ")[0]


def goldens(name: str) -> str:
    cases = taken_part().get(name)
    if not cases:
        return ""
    shown = " and ".join(
        f"{count} case{'s' * (count > 1)} of [{repo}](https://github.com/{repo})" for repo, count in cases.items()
    )
    return f": {shown}" + (f", {STEP[name]}" if name in STEP else "")

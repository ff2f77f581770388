"""The tables of docs/models.md: families as their adapters describe them, and what the tests prove of each.

A cell says "yes" only where tests run: the tables are read off the parameters of the test functions. A family that a
test leaves out must say why in its own declaration (`Family.lacks`), and each such reason needs its gap; otherwise the
page cannot be made.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

from docs_claims import CLAIMS, FAILING, GENERIC, INAPPLICABLE, READ, REFUSED, UNTESTED, Claim
from docs_text import plain, table

from vlmprune.models import FAMILIES, adapter_for, summary
from vlmprune.models import surveyed as survey
from vlmprune.models.base import Adapter
from vlmprune.runtime.oracle import is_recurrent
from vlmprune.testing import FAMILIES as TINY
from vlmprune.testing import Family

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))

MODALITIES = {"": "images", "video": "videos", "mixed": "both in a batch"}  # by the end of a tiny model's name
LAYERS = {
    "full_attention": "full", "sliding_attention": "sliding", "chunked_attention": "chunked",
    "linear_attention": "recurrent",
}  # fmt: skip
SKIPPED = {"skip", "skipif", "xfail"}
UNNAMED = {INAPPLICABLE: "–", UNTESTED: "untested"}  # gaps that need no note
SEEDS = range(6)  # of images and videos of every shape


# ---------------------------------------------------------------- what the tests run


@cache
def variants() -> dict[str, dict[str, str]]:
    """Tiny model -> modality -> its key in vlmprune.testing ("qwen2_vl", "video" -> "qwen2_vl video")."""
    found: dict[str, dict[str, str]] = {}
    for key in TINY:
        name, _, modality = key.rpartition(" ")
        name, modality = (name, modality) if modality in MODALITIES and name else (key, "")
        found.setdefault(name, {})[modality] = key
    return found


def covered(claim: Claim) -> set[str]:
    """The families (keys of vlmprune.testing.FAMILIES) on which all of its tests run and are to pass."""
    return set.intersection(*(runs_on(test, claim.recipe) for test in claim.tests)) - failing(claim)


def failing(claim: Claim) -> set[str]:
    """The families on which one of its tests may be skipped or is expected to fail."""
    return {row["family"] for test in claim.tests for row, sound in runs(test) if "family" in row and not sound}


def runs_on(test: str, recipe: str) -> set[str]:
    """The families on which a test has this recipe."""
    return {row["family"] for row, _ in runs(test) if "family" in row and (not recipe or row["name"] == recipe)}


def runs(test: str) -> list[tuple[dict[str, Any], bool]]:
    """The parameters of each run of a test, and whether it always runs with them and is to pass."""
    module, _, function = test.partition(".")
    marks = getattr(import_module(module), function).pytestmark
    sound = not SKIPPED & {mark.name for mark in marks}
    choices = product(*(list(parameters(mark)) for mark in marks if mark.name == "parametrize"))
    return [
        ({name: value for values, _ in chosen for name, value in values.items()}, sound and all(ok for _, ok in chosen))
        for chosen in choices
    ]


def parameters(mark: Any) -> Iterator[tuple[dict[str, Any], bool]]:
    """The values of a `parametrize` mark by argument, and whether they have no mark of their own against them."""
    names = [name.strip() for name in mark.args[0].split(",")] if isinstance(mark.args[0], str) else list(mark.args[0])
    for row in mark.args[1]:
        values = row.values if hasattr(row, "marks") else (row,) if len(names) == 1 else row
        yield dict(zip(names, values, strict=True)), not SKIPPED & {own.name for own in getattr(row, "marks", ())}


def reason(claim: Claim, key: str) -> str:
    """Why no test runs there, as the family's declaration says; KeyError where nobody has said it."""
    if not claim.applies(TINY[key]):
        return INAPPLICABLE
    if claim.sampled:
        return UNTESTED
    lacks = TINY[key].lacks
    title = "encoder" if claim.reads and "encoder" in lacks else claim.title
    if title not in lacks:
        raise KeyError(f"{title}: no test runs on {key!r}, and its declaration's `lacks` does not say why")
    return lacks[title]


def proofs(name: str) -> str:
    """A table of what works on each tiny model, then what each column says and which tests prove it."""
    claims, notes = CLAIMS[name], list[str]()
    done = {claim.title: covered(claim) for claim in claims}
    check_needed(done)
    rows = []
    for model, keys in variants().items():
        cells = []
        for claim in claims:
            gaps = {key: reason(claim, key) for key in keys.values() if key not in done[claim.title]}
            fails = failing(claim)
            whys = list(dict.fromkeys(FAILING if key in fails else why for key, why in gaps.items()))
            here = [MODALITIES[modality] for modality, key in keys.items() if key in done[claim.title]]
            named = [why for why in whys if why not in UNNAMED]
            notes += [why for why in named if why not in notes]
            cell = "yes" if not gaps else ", ".join(here) or ("no" if named else UNNAMED[whys[0]])
            cells.append(cell + "".join(f" ({1 + notes.index(why)})" for why in named))
        rows.append([model, *cells])
    parts = [table(["tiny model", *(claim.title for claim in claims)], rows)]
    if notes:
        parts.append("; ".join(f"({number}) {why}" for number, why in enumerate(notes, 1)) + ".")
    parts.append(table(["column", "what a yes says", "proved by"], [proof(claim) for claim in claims]))
    return "\n\n".join(parts)


def check_needed(done: Mapping[str, set[str]]) -> None:
    """Raise KeyError for a family that says why a test of these columns leaves it out, and is not left out."""
    idle = [(key, mode) for key, family in TINY.items() for mode in family.lacks if key in done.get(mode, ())]
    if idle:
        raise KeyError(f"lacks: {idle} have tests")


def proof(claim: Claim) -> list[str]:
    """A column with its meaning and its tests."""
    tests = ["tests/{}.py::{}".format(*test.split(".")) for test in claim.tests]
    shown = ", ".join(f"`{test}`" for test in tests)
    return [claim.title, claim.meaning, shown + (f" with `{claim.recipe}`" if claim.recipe else "")]


def generic() -> str:
    """The families without an adapter that the tests run with the generic one."""
    read, refused, *tested = (
        {row["name"]: None for row, sound in runs(test) if "name" in row and sound}
        for test in (READ, REFUSED, *GENERIC)
    )
    rows: dict[tuple[str, str], list[str]] = {}
    for key in tested[0]:
        if all(key in others for others in tested):
            name, _, modality = key.partition(" ")
            if name in FAMILIES:  # its own adapter's tests say more
                continue
            shown = f"`{name}`", MODALITIES.get(modality, MODALITIES[""])
            rows.setdefault(shown, [*shown, "run" if key in read else "refused" if key in refused else "untested"])
    tests = ", ".join(f"`tests/{test.replace('.', '.py::')}`" for test in (*GENERIC, READ, REFUSED))
    head = ["model_type", "tested with", "methods that read the encoder"]
    return f"{table(head, list(rows.values()))}\n\nProved by {tests}."


def surveyed_proved() -> str:
    """Types without an adapter on whose tiny model the oracle was asked."""
    words = {survey.PROVED: "proved", survey.PARTLY: "refused: "}
    rows = [
        [f"`{name}`", "proved", words[one.verdict] + (plain(one.words) if one.verdict == survey.PARTLY else "")]
        for name, one in survey.surveyed().items()
        if one.verdict in words
    ]
    return table(["model_type", "before the language model", "inside it"], rows)


def surveyed_refused() -> str:
    """Types that are refused, and those of which nothing is proved, with the reason."""
    rows = [
        [f"`{name}`", "refused" if one.verdict == survey.REFUSED else "not proved", plain(one.words)]
        for name, one in survey.surveyed().items()
        if one.verdict in (survey.REFUSED, survey.UNPROVED)
    ]
    return table(["model_type", "what vlmprune does", "reason"], rows)


# ---------------------------------------------------------------- what the adapters say


def families_short() -> str:
    """Each model type with its adapter's own line."""
    return table(["model_type", "what is particular"], [[f"`{name}`", summary(to)] for name, to in FAMILIES.items()])


def families() -> str:
    """The same, with what it is tested with and where the adapter is."""
    tested: dict[str, list[str]] = {}
    for keys in variants().values():
        for modality, key in keys.items():
            tested.setdefault(TINY[key].name, []).append(MODALITIES[modality])
    since = {family.name: family.since for family in TINY.values()}
    rows = []
    for name, target in FAMILIES.items():
        path = target.partition(":")[0].replace(".", "/")
        link = f"[`{path.rpartition('/')[2]}.py`](../src/{path}.py)"
        first = ".".join(map(str, since[name]))
        rows.append([f"`{name}`", summary(target), ", ".join(dict.fromkeys(tested[name])), first, link])
    return table(["model_type", "what is particular", "tested with", "from transformers", "adapter"], rows)


def anatomy() -> str:
    """What the adapters of the tiny models say of encoders, slots and decoder layers."""
    head = ["tiny model", "a slot shows", "parts", "CLS", "windows", "rows", "positions", "decoder layers", "oracle"]
    rows = []
    for model, keys in variants().items():
        kinds = [TINY[key] for key in keys.values()]
        built = kinds[0].build()
        adapter = adapter_for(built)
        given = [adapter.has_cls, adapter.full_layers is not None, adapter.tower_rows]
        mrope = "M-RoPE" if hasattr(adapter.inner, "get_rope_index") else "1-D"
        oracle = "cutting" if is_recurrent(built) else "masking"
        said = ["yes" if value else "no" for value in given]
        rows.append([model, shows(kinds), parts(kinds), *said, mrope, decoder(adapter), oracle])
    return table(head, rows)


def shows(kinds: list[Family]) -> str:
    """What stands behind a slot, in the layouts against which tests/test_tiny.py holds the models."""
    sizes = {len(slot) for one in kinds for seed in SEEDS for slot in one.patches(seed)}
    what = "a patch" if sizes <= {0, 1} else "one or several patches" if 1 in sizes else "a square of patches"
    return what + (", or none" if 0 in sizes else "")


def parts(kinds: list[Family]) -> str:
    """Whether an image or video stands in tiles or frames."""
    found = []
    for one in kinds:
        for seed in SEEDS:
            if len({slot[0][0] for slot in one.patches(seed) if slot}) > 1:
                found.append("frames" if "pixel_values_videos" in one.image(seed)[0] else "tiles")
    return ", ".join(dict.fromkeys(found)) or "no"


def decoder(adapter: Adapter) -> str:
    kinds = {LAYERS[adapter.layer_kind(layer)] for layer in range(len(adapter.decoder_layers))}
    words = [" and ".join(sorted(kinds))]
    if type(adapter).blocks is not Adapter.blocks:
        words.append("two-way")
    if hasattr(adapter.text_model, "_deepstack_process"):
        words.append("deepstack")
    return ", ".join(words)


# ---------------------------------------------------------------- a family's own lines


def whole_family(model_type: str) -> str:
    """All that a family consists of: its adapter, and the declaration of its tiny model."""
    adapter = f"src/{FAMILIES[model_type].partition(':')[0].replace('.', '/')}.py"
    files = (adapter, f"src/vlmprune/testing/families/{model_type}.py")
    texts = {path: (ROOT / path).read_text(encoding="utf-8").strip() for path in files}
    return "\n\n".join(f"`{path}`:\n\n```python\n{text}\n```" for path, text in texts.items())

"""Methods in files of one's own: where a name stands, `FILE.py:Class` can stand too."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest

import vlmprune
from vlmprune.ask.examples import write_examples
from vlmprune.bench.compare import build_tables
from vlmprune.bench.marks import code_of, files_of, marked, recorded, runnable
from vlmprune.bench.plan import Plan, split_methods
from vlmprune.bench.runner import run_bench
from vlmprune.bench.store import load_results
from vlmprune.cli import USAGE, main
from vlmprune.core.errors import UserError
from vlmprune.core.recipe import recipe
from vlmprune.methods.vision.divprune import DivPrune

SCOPE = """
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vlmprune.author import ImageView, Scorer


@dataclass
class Scope(Scorer):
    name: ClassVar[str] = "scope"
    stage: ClassVar[str] = "vision"

    rank: int = 4
    layer: int | None = None

    def decoder_layer(self, info):
        return self.layer

    def score(self, view: ImageView):
        return view.slots.float()
"""
TWIN = SCOPE + "\n\nclass Second(Scope):\n    pass\n\n\nclass _Part(Scope):\n    pass\n"


@pytest.fixture
def scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scope.py").write_text(SCOPE)
    return tmp_path / "scope.py"


# ---------------------------------------------------------------- as strings


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("scope.py:Scope:0.3", "{}:Scope:0.3"),
        ("scope.py:0.3", "{}:Scope:0.3"),
        (" ./scope.py : 64", "{}:Scope:64"),
        ("scope.py:Scope(rank=2)@2:[0.5, 64]", "{}:Scope(rank=2)@2:[0.5, 64]"),
        ("divprune:0.5 > scope.py@3:0.25", "divprune:0.5 > {}:Scope@3:0.25"),
        ("fuse(scope.py:Scope(rank=2):0.1, tau=0.1)@2", "fuse({}:Scope(rank=2):0.1, tau=0.1)@2"),
        ("fuse(scope.py:0.1)@2", "fuse({}:Scope:0.1)@2"),
    ],
)
def test_a_file_stands_where_a_name_does(text: str, shown: str, scope: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = recipe(text)
    assert str(parsed) == shown.format(scope)
    (scope.parent / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert recipe(str(parsed)) == parsed


def test_options_and_budgets_may_stand_beside_it(scope: Path) -> None:
    assert recipe("scope.py:Scope", 64, rank=2) == recipe("scope.py:Scope(rank=2):64")
    assert recipe("fuse", 0.1, selector="scope.py:Scope") == recipe("fuse(scope.py:Scope:0.1)")


@pytest.mark.parametrize("folder", ["with space", "a,b", "f(1)", "[x]", "c:d", "e>f", "50%", "%2C", "%,", "x=1@host"])
def test_any_path_goes_round_as_a_string(folder: str, scope: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scope.parent / folder).mkdir()
    (scope.parent / folder / "scope.py").write_text(SCOPE)
    monkeypatch.chdir(folder)
    for text in ("scope.py:Scope(rank=2):0.5 > fastv@2:0.5", "fuse(scope.py:0.1, tau=0.1)@2"):
        parsed = recipe(text)
        assert recipe(str(parsed)) == parsed


def test_a_link_keeps_its_name(scope: Path) -> None:
    scope.rename("0123abcd")
    scope.symlink_to("0123abcd")
    assert str(recipe("scope.py:0.5")) == f"{scope}:Scope:0.5"


def test_objects_of_its_classes_are_as_those_of_any_class(scope: Path) -> None:
    parsed = recipe("scope.py:Scope(rank=2):0.5")
    method = parsed.stages[0].method
    assert pickle.loads(pickle.dumps(method)) == copy.deepcopy(method) == method
    assert type(method) is type(recipe("./scope.py:0.1").stages[0].method)
    assert str(recipe(method, 0.5)) == str(parsed)


def test_an_edit_is_seen_by_the_next_call_alone(scope: Path) -> None:
    before = recipe("scope.py:0.5")
    scope.write_text(SCOPE.replace("rank: int = 4", "rank: int = 5"))
    after = recipe("scope.py:0.5")
    assert [r.stages[0].method.rank for r in (before, after)] == [4, 5]  # type: ignore[attr-defined]
    assert before != after and pickle.loads(pickle.dumps(before)) == before


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("content", "text", "words"),
    [
        (None, "gone.py:Scope:0.5", ["There is no file 'gone.py'"]),
        (None, "folder.py:Scope:0.5", ["'folder.py' cannot be read", "directory"]),
        (None, "~no-such-user/x.py:Scope:0.5", ["no-such-user"]),
        ("class Scope(:\n", "x.py:0.5", ["'x.py' cannot be run", "SyntaxError in line 1"]),
        ("import no_such_package\n", "x.py:0.5", ["ModuleNotFoundError in line 1", "no_such_package"]),
        ("\n\ndef f():\n    1 / 0\n\nf()\n", "x.py:Scope:0.5", ["ZeroDivisionError in line 4"]),
        ("raise SystemExit(3)\n", "x.py:0.5", ["SystemExit in line 1, 3"]),
        ("a = '\0'\n", "x.py:0.5", ["SyntaxError"]),
        (SCOPE, "x.py:Scop:0.5", ["no class 'Scop'", "its methods are Scope"]),
        (SCOPE, "x.py:dataclass:0.5", ["'dataclass' in 'x.py' is not a method"]),
        (SCOPE, "x.py:Scorer:0.5", ["only imports 'Scorer' from vlmprune.core.method"]),
        (SCOPE.replace('    name: ClassVar[str] = "scope"\n', ""), "x.py:Scope:0.5", ["has no name"]),
        (SCOPE.replace('    name: ClassVar[str] = "scope"\n', ""), "x.py:0.5", ["holds no class derived from Method"]),
        (SCOPE.replace('"scope"', '"my scope"'), "x.py:0.5", ["the name 'my scope'", "letters"]),
        (SCOPE.replace('    stage: ClassVar[str] = "vision"\n', ""), "x.py:0.5", ["has no stage"]),
        (TWIN, "x.py:0.5", ["does not hold exactly one method", "Scope, Second."]),
        ("", "x.py:0.5", ["does not hold exactly one method", "holds no class"]),
        (SCOPE, "x.py:Scope(width=2):0.5", ["x.py:Scope has no option 'width'", "rank"]),
        (SCOPE, "a,b/x.py:0.5", ["in a path, write , as %2C"]),
        (SCOPE, "f(1)/x.py:0.5", ["( as %28"]),
    ],
)
def test_a_mistake_is_one_sentence(
    content: str | None, text: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    if content is not None:
        (tmp_path / "x.py").write_text(content)
    with pytest.raises(UserError) as caught:
        recipe(text)
    said = str(caught.value)
    assert "\n" not in said and said.endswith(".") and all(word in said for word in words), said
    assert main(["run", "picture.png", "-q", "What?", "--method", text]) == USAGE
    captured = capsys.readouterr()
    assert captured.err.strip() == f"vlmprune: {said}" and not captured.out


def test_a_private_class_is_not_meant_but_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(SCOPE + "\n\nclass _Part(Scope):\n    pass\n")
    assert str(recipe(f"{path}:0.5")) == f"{path}:Scope:0.5"
    assert str(recipe(f"{path}:_Part:0.5")) == f"{path}:_Part:0.5"


# ---------------------------------------------------------------- lists


def test_lists_of_methods_hold_files(scope: Path) -> None:
    folder = scope.parent / "a,b"
    folder.mkdir()
    (folder / "scope.py").write_text(SCOPE)
    text = "divprune,scope.py:Scope(rank=2, layer=3), ./scope.py,/x/y.py:A,1/scope.py:A,~/z.py@8,16,24:0.5,_u.py"
    assert split_methods(text) == (
        "divprune", "scope.py:Scope(rank=2, layer=3)", "./scope.py", "/x/y.py:A", "1/scope.py:A", "~/z.py@8,16,24:0.5",
        "_u.py",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"the path 'a,b/scope\.py' has one: write it as %2C"):
        split_methods("divprune,a,b/scope.py:Scope")
    assert split_methods("divprune,a%2Cb/scope.py:Scope") == ("divprune", "a%2Cb/scope.py:Scope")
    assert recipe("a%2Cb/scope.py:Scope:0.5").stages[0].method.name == "scope"


# ---------------------------------------------------------------- results


def test_a_mark_tells_versions_classes_and_names_apart(scope: Path) -> None:
    scope.write_text(TWIN)
    texts = ["scope.py:Scope", "scope.py:Second", "scope.py:Second(rank=2)"]
    first, second, other = (recipe(f"{text}:0.5") for text in texts)
    assert len({marked(r.stages[0].method) for r in (first, second, other)}) == 2
    assert recorded(first).startswith("scope#") and recorded(other) == recorded(second).replace(":", "(rank=2):")
    scope.write_text(TWIN + "\n")
    assert recorded(recipe("scope.py:Scope:0.5")) != recorded(first)
    assert recorded(first) == recorded(first)  # keeps the code it was made with
    assert recorded(recipe("divprune:0.5 > fastv@2:0.5")) == "divprune:0.5 > fastv@2:0.5"
    scope.write_text(SCOPE.replace('"scope"', '"divprune"'))
    assert recorded(recipe("scope.py:0.5")) != recorded(recipe(DivPrune(), 0.5)) == "divprune:0.5"


def test_the_same_file_has_the_same_mark_everywhere(scope: Path) -> None:
    here = recorded(recipe("scope.py:0.5"))
    (scope.parent / "moved").mkdir()
    scope.rename("moved/other.py")
    assert recorded(recipe("moved/other.py:0.5")) == here


def test_what_is_recorded_runs_again_while_the_code_is_the_same(scope: Path) -> None:
    parsed = recipe("divprune:0.5 > fuse(scope.py:Scope(rank=2):0.1)@2")
    text, code, files = recorded(parsed), code_of(parsed), files_of(parsed)
    assert list(code) == list(files) and "/" not in text and len(code) == 1
    assert runnable(text, code, files) == str(parsed)
    assert runnable(text, code, {}) is None
    assert runnable("divprune:0.5", {}, {}) == "divprune:0.5"
    scope.write_text(SCOPE + "\n")
    assert runnable(text, code, files) is None
    scope.unlink()
    assert runnable(text, code, files) is None


BENCH = {"models": ("llava",), "tasks": ("synth-ocr",), "limit": 2, "keeps": (0.5,)}


def computed(out: Path, *methods: str) -> list[str]:
    """The recipes that a command has to compute."""
    before = {path.name for path in out.glob("runs/*/*/*.json")}
    run_bench(Plan(methods=methods, **BENCH), out, then=write_examples)  # type: ignore[arg-type]
    made = [path for path in out.glob("runs/*/*/*.json") if path.name not in before]
    return sorted(json.loads(path.read_text())["run"]["recipe"] for path in made)


def rows(out: Path) -> list[str]:
    [table] = build_tables(out)
    return [row.method for row in table.rows]


def test_an_edited_method_is_measured_again_and_an_unedited_one_is_not(
    scope: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = scope.parent / "out"
    first = marked(recipe("scope.py:0.5").stages[0].method)
    chain = "divprune:0.9 > scope.py:Scope@2:0.9"
    made = computed(out, "scope.py:Scope", chain)
    assert made == sorted(["vanilla", "random:0.5", "downsample:0.5", f"{first}:0.5", f"divprune:0.9 > {first}@2:0.9"])
    (scope.parent / "below").mkdir()
    monkeypatch.chdir("below")  # another spelling of the path, from another folder
    assert computed(out, "../scope.py") == []
    monkeypatch.chdir("..")

    scope.write_text(SCOPE.replace("view.slots.float()", "-view.slots.float()"))
    second = marked(recipe("scope.py:0.5").stages[0].method)
    assert computed(out, "scope.py") == [f"{second}:0.5"]
    assert rows(out) == ["vanilla", "random", "downsample", second]  # not what is out of date
    assert {r.method for r in load_results(out, every=True)} >= {first, second, f"divprune:0.9 > {first}@2:0.9"}
    [table] = build_tables(out)
    assert f"{second} is scope.py:Scope." in table.notes() and all(row.flops for row in table.rows)
    examples = json.loads((out / "examples" / "llava.json").read_text())["scenes"][0]["replies"]
    assert {f"{first}:0.5", f"{second}:0.5"} < examples.keys()

    scope.write_text(SCOPE)
    assert computed(out, "scope.py", chain) == []
    assert rows(out) == ["vanilla", "random", "downsample", first, f"divprune:0.9 > {first}@2:0.9"]

    scope.unlink()
    [table] = build_tables(out)
    assert [row.method for row in table.rows if row.flops is None] == [first, f"divprune:0.9 > {first}@2:0.9"]
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    page = (out / "report" / "summary.md").read_text()
    assert first in page and str(scope.parent) not in page


def test_a_variant_stands_beside_the_method_whose_name_it_has(scope: Path) -> None:
    scope.write_text(SCOPE.replace('"scope"', '"random"'))
    mark, out = marked(recipe("scope.py:0.5").stages[0].method), scope.parent / "out"
    assert computed(out, "scope.py:Scope") == sorted(["vanilla", "random:0.5", "downsample:0.5", f"{mark}:0.5"])
    assert rows(out) == ["vanilla", "random", "downsample", mark]
    runs = {r.method: r for r in load_results(out)}
    assert runs["random"].code == {} and list(runs[mark].code) == [mark]
    assert runs["random"].key != runs[mark].key and runs["random"].setting == runs[mark].setting


def test_a_file_that_changes_while_it_is_measured_is_not_mixed(scope: Path) -> None:
    [*_, variant] = Plan(methods=("scope.py",), keeps=(0.5,)).variants()
    scope.write_text(SCOPE.replace("rank: int = 4", "rank: int = 5"))
    assert variant.recipe is not None and variant.text == recorded(variant.recipe)


def test_the_command_line_runs_a_file(scope: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = Path(__file__).resolve().parent.parent / "docs" / "images" / "scene.png"
    asked = ["run", str(scene), "-q", "What number is on the plate?", "--keep", "0.5", "--overlay", "kept.png"]
    assert main([*asked, "--method", "scope.py:Scope"]) == 0
    assert capsys.readouterr().out.strip() and Path("kept.png").exists()


def test_prune_takes_a_file(scope: Path) -> None:
    model, _ = vlmprune.load_embedded("llava")
    assert str(vlmprune.prune(model, "scope.py:Scope", keep=0.5).recipe) == f"{scope}:Scope:0.5"

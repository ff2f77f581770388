"""Names find themselves: methods and families by what their classes declare, packages by their entry points."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import vlmprune
import vlmprune.methods
import vlmprune.models
from vlmprune.cli import main
from vlmprune.core import registry
from vlmprune.core.declared import by_name, declared, inherited
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.registry import FOLDERS, METHODS, Registry, built_in
from vlmprune.doctor.methods import REFUSED, WORKS, try_methods
from vlmprune.doctor.prompts import one_prompt
from vlmprune.models import FAMILIES, adapter_for
from vlmprune.models.base import Adapter
from vlmprune.testing import FAMILIES as TINY
from vlmprune.testing import prompt

# ---------------------------------------------------------------- vlmprune's own


def classes(package: object) -> list[type]:
    """All classes that the files of a package define, by importing them."""
    found = []
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):  # type: ignore[attr-defined]
        if module.name.endswith("_kernel") and find_spec("triton") is None:
            continue
        members = vars(import_module(module.name)).values()
        found += [member for member in members if inspect.isclass(member) and member.__module__ == module.name]
    return found


def target(cls: type) -> str:
    return f"{cls.__module__}:{cls.__name__}"


def test_reading_finds_the_methods_that_importing_finds() -> None:
    named = [cls for cls in classes(vlmprune.methods) if issubclass(cls, Method) and "name" in vars(cls)]
    assert built_in() == {cls.name: target(cls) for cls in named} and len(named) > 30
    assert all(METHODS[cls.name] is cls for cls in named)


def test_reading_finds_what_a_class_inherits() -> None:
    for name in built_in():
        assert METHODS.about(name) == (METHODS[name].stage, METHODS[name].summary), name
    assert inherited("vlmprune.core.method:Method", "stage") is None  # annotated, without a value
    assert inherited("vlmprune.core.method:Missing", "stage") is None


def test_reading_finds_the_adapters_that_importing_finds() -> None:
    own = [cls for cls in classes(vlmprune.models) if issubclass(cls, Adapter) and vars(cls).get("families")]
    assert {family: target(cls) for cls in own for family in cls.families} == FAMILIES
    assert {"llava", "qwen3_vl_moe"} < FAMILIES.keys() and list(FAMILIES) == sorted(FAMILIES)


def test_methods_stand_in_acting_order_then_by_name() -> None:
    places = [(FOLDERS.index(place.split(".")[2]), name) for name, place in built_in().items()]
    assert places == sorted(places) and {folder for folder, _ in places} == set(range(len(FOLDERS)))


def test_no_file_is_imported_before_its_name_is_asked_for() -> None:
    script = (
        "import sys; from vlmprune import METHODS; from vlmprune.models import FAMILIES\n"
        "assert 'divprune' in METHODS and len(METHODS) > 30 and 'llava' in FAMILIES\n"
        "print([name for name in sys.modules if name.startswith(('vlmprune.methods', 'vlmprune.models.'))])\n"
        "METHODS['divprune']; print('vlmprune.methods.vision.divprune' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True False"]


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_a_literal_is_read_from_the_class_that_has_it(tmp_path: Path) -> None:
    write(tmp_path, a='class A:\n    """Doc."""\n    name: ClassVar[str] = "one"\n\nclass B(A):\n    other = 1\n')
    write(tmp_path, b='name = "no class"\n\nclass C:\n    name: str\n    families = ("x", "y")\n')
    assert list(declared(tmp_path, "pack", "name")) == [("one", "pack.a:A")]
    assert list(declared(tmp_path, "pack", "families")) == [(("x", "y"), "pack.b:C")]


def test_a_name_that_is_computed_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, a='class A:\n    name = "o" + suffix\n')
    with pytest.raises(UserError, match=r"a\.py, line 2: name is read without running the file"):
        list(declared(tmp_path, "pack", "name"))


def test_two_files_with_one_name_are_both_named(tmp_path: Path) -> None:
    write(tmp_path, a='class A:\n    name = "same"\n', b='class B:\n    name = "same"\n')
    with pytest.raises(UserError, match=r"pack\.a:A and pack\.b:B both claim the name 'same'"):
        by_name(declared(tmp_path, "pack", "name"))


# ---------------------------------------------------------------- packages

Register = Callable[..., Registry]


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Puts packages where Python finds them, with what pip would write: `register(package={name: value})`."""

    def put(**packages: dict[str, str]) -> Registry:
        for package, named in packages.items():
            info = tmp_path / f"{package}-1.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
            points = "".join(f"{name} = {value}\n" for name, value in named.items())
            (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{points}")
        monkeypatch.syspath_prepend(str(tmp_path))
        fresh = Registry()
        for user in (registry, import_module("vlmprune.core.recipe"), vlmprune):
            monkeypatch.setattr(user, "METHODS", fresh)
        return fresh

    return put


METHOD = """
from vlmprune.author import Scorer

class Mine(Scorer):
    name, stage, summary = "mine", "vision", "what is mine"
"""


def test_a_package_adds_a_method(register: Register, tmp_path: Path) -> None:
    write(tmp_path, registered_one=METHOD)
    found = register(pack={"mine": "registered_one:Mine"})
    assert found["mine"].summary == "what is mine" and list(found)[-1] == "mine"
    assert str(vlmprune.recipe("mine:0.5")) == "mine:0.5"


def refused(methods: Registry, name: str) -> str:
    with pytest.raises(UserError) as caught:
        methods[name]
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


def test_a_package_cannot_take_a_name_of_vlmprune(register: Register, tmp_path: Path) -> None:
    write(tmp_path, registered_two=METHOD)
    methods = register(taker={"divprune": "registered_two:Mine"})
    said = refused(methods, "divprune")
    assert "'divprune' of registered_two:Mine in the package 'taker'" in said and "uninstall" in said
    with pytest.raises(UserError, match="'taker'"):
        vlmprune.recipe("divprune:0.5")
    assert str(vlmprune.recipe("hiprune:0.5")) == "hiprune:0.5"


def test_two_packages_cannot_share_a_name(register: Register, tmp_path: Path) -> None:
    write(tmp_path, registered_three=METHOD)
    methods = register(second={"mine": "registered_three:Mine"}, first={"mine": "elsewhere:Mine"})
    assert "the package 'first' (elsewhere:Mine) and the package 'second'" in refused(methods, "mine")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_module:Mine", "ModuleNotFoundError"),
        ("broken_one:Mine", "RuntimeError: two lines"),
        ("broken_two:Nothing", "AttributeError"),
        ("broken_two:NOT_A_CLASS", "is not a method"),
        ("broken_two:Nameless", "has no name"),
        ("broken_two:Other", "has the name 'other', and its entry point has 'mine'"),
    ],
)
def test_what_is_broken_is_said_when_asked_for_and_in_the_list(
    value: str, words: str, register: Register, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, broken_one="raise RuntimeError('two\\nlines')")
    write(
        tmp_path,
        broken_two=f"{METHOD}\nNOT_A_CLASS = 1\n\nclass Nameless(Scorer):\n    stage = 'vision'\n\n"
        "class Other(Mine):\n    name = 'other'\n",
    )
    methods = register(pack={"mine": value})
    said = refused(methods, "mine")
    assert words in said and "'pack'" in said
    assert main(["list", "methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(built_in()) + 1
    assert lines[-1].startswith("mine ") and "broken" in lines[-1] and said in lines[-1]
    assert any(line.startswith("hiprune ") for line in lines)


def test_doctor_says_what_is_broken_and_goes_on(register: Register) -> None:
    methods = register(pack={"mine": "no_such_module:Mine"})
    methods._targets = {name: methods._targets[name] for name in ("mine", "random")}
    family = TINY["qwen3_5"]  # recurrent, so that doctor asks which methods have a layer to choose
    adapter = adapter_for(family.build())
    mine, random = try_methods(adapter, one_prompt(adapter, prompt(family, [[0]])))
    assert (mine.spec, mine.status) == ("mine", REFUSED) and (random.spec, random.status) == ("random", WORKS)
    assert "ModuleNotFoundError" in mine.says and "'pack'" in mine.says

"""The documentation is true: snippets run, commands parse, links lead somewhere, generated parts are fresh."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import harness as matrix
import pytest
import torch
from harness_pages import family_files
from typer.main import get_command

import vlmprune
from vlmprune.cli import app, main
from vlmprune.core import signals
from vlmprune.core.errors import UserError
from vlmprune.core.needs import Need
from vlmprune.core.registry import METHODS, built_in
from vlmprune.methods.vision.hiprune import HiPrune
from vlmprune.models import FAMILIES as SUPPORTED
from vlmprune.models import adapter_for
from vlmprune.models.base import Adapter
from vlmprune.models.patches import PatchAdapter
from vlmprune.testing import FAMILIES

ROOT = Path(__file__).resolve().parent.parent


def script(path: str) -> Any:
    """A script of the checkout as a module."""
    spec = spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docs = script("tools/docs.py")
methods: Any = import_module("docs_methods")  # where docs.py put it
EXAMPLE = "vlmprune_residual.py"
Residual = script(f"examples/residual/{EXAMPLE}").Residual
PAGES = [page.relative_to(ROOT).as_posix() for page in docs.pages()]
TOP = ("src", "tests", "docs", "tools", "examples", "training", "benchmarks", ".ci")
CHECKED = re.compile(r"^(\S.*?)  # -> (.*)$", re.MULTILINE)

every_page = pytest.mark.parametrize("page", PAGES)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def fenced(page: str, language: str) -> Iterator[tuple[int, str]]:
    """(line number, content) of the code blocks in a language."""
    source = text(page)
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", source, re.MULTILINE | re.DOTALL):
        yield source.count("\n", 0, match.start(1)) + 1, match[1]


@pytest.mark.parametrize("page", [page for page in PAGES if any(fenced(page, "python"))])
def test_snippets_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one namespace a page; a line `expression  # -> value` must be true."""
    monkeypatch.chdir(ROOT)

    def equal(value: object, expected: str) -> None:
        assert value == ast.literal_eval(expected)

    namespace: dict[str, Any] = {"__name__": "snippet", "equal": equal}
    for line, code in fenced(page, "python"):
        checked = CHECKED.sub(lambda match: f"equal(({match[1]}), {match[2]!r})", code)
        exec(compile("\n" * (line - 1) + checked, page, "exec", dont_inherit=True), namespace)


def shell_commands(page: str) -> Iterator[list[str]]:
    for _, block in fenced(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


@every_page
def test_commands_parse(page: str) -> None:
    commands: Any = get_command(app)
    for words in shell_commands(page):
        if words[:2] == ["python3", "tools/run.py"]:
            words = words[2:]
        for word in words:
            if word.partition("/")[0] in TOP and "/" in word:
                assert (ROOT / word).exists(), words
        if words[0] == "vlmprune":
            commands.commands[words[1]].make_context(words[1], words[2:])


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    before = [slugs[:place].count(slug) for place, slug in enumerate(slugs)]
    return {f"{slug}-{n}" if n else slug for slug, n in zip(slugs, before, strict=True)}


@every_page
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


@every_page
def test_named_files_exist(page: str) -> None:
    for name in re.findall(r"`([\w.-]+/[\w./-]*)`", text(page)):
        made_by_a_run = name.startswith(("results/", "training/checkpoints"))
        if name.split("/")[0] in TOP and not made_by_a_run and not re.search(r"[A-Z]{4}\b", name):
            assert (ROOT / name).exists(), name


def test_generated_parts_are_fresh() -> None:
    assert docs.refresh(write=False) == []
    assert docs.main(["--check"]) == 0


def test_a_stale_part_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- generated: tasks -->\nold\n<!-- end -->\nb\n")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert docs.main(["--check"]) == 1 and "old" in page.read_text()
    assert docs.main([]) == 0 and "synth-ocr" in page.read_text()
    assert page.read_text().startswith("a\n") and page.read_text().endswith("<!-- end -->\nb\n")
    assert docs.main(["--check"]) == 0


@pytest.mark.slow
def test_results_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fake_results import fill

    fill(tmp_path / "results", methods=("random", "downsample", "fastv@2"), keeps=(0.333, 0.111), n=8)
    monkeypatch.setattr(docs, "RESULTS", tmp_path / "results.md")
    monkeypatch.setattr(docs, "IMAGES", tmp_path / "images")
    docs.take_results(tmp_path / "results")
    summary = docs.results_summary()
    assert "torch 2.13.0" in summary and "commit abc" in summary and "8 questions per task" in summary
    for model in ("llava", "qwen2_5_vl"):
        assert f"**{model}**\n\nAt equal mean tokens per layer: " in summary
        assert (tmp_path / "images" / f"{model}-accuracy.svg").exists()
    assert "| fastv@2 |" not in summary and summary.count("No run near a mean of 33.3 % or 11.1 %: fastv@2") == 2


@pytest.mark.slow
def test_results_of_every_method_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fake_results import fill

    fill(tmp_path / "results", methods=("random", "downsample", "fastv@2"), keeps=(0.333, 0.111), n=8)
    monkeypatch.setattr(docs, "ALL_RESULTS", tmp_path / "results-all.md")
    monkeypatch.setattr(docs, "ALL_FIGURES", tmp_path / "all-methods.csv")
    docs.take_all_results(tmp_path / "results")
    page = (tmp_path / "results-all.md").read_text()
    assert "`vlmprune bench --methods all` with torch 2.13.0" in page
    assert page.count("| fastv@2 |") == 2 and "synth-ocr" not in page
    assert page.count("At equal mean tokens per layer: ") == 2
    assert "synth-ocr" in (tmp_path / "all-methods.csv").read_text()


def test_readme_names_two_commands_that_set_up_everything() -> None:
    _, block = next(fenced("README.md", "sh"))
    bench, tests = (shlex.split(line, comments=True) for line in block.splitlines())
    assert bench == ["python3", "tools/run.py", "vlmprune", "bench"]
    assert tests[:3] == ["python3", "tools/run.py", "pytest"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert shlex.join(tests) in text(".ci/run")


def test_every_family_and_method_is_in_the_readme() -> None:
    for name in (*SUPPORTED, *built_in()):
        assert f"| `{name}` |" in text("README.md")


def test_versions_and_licence_agree() -> None:
    project = tomllib.loads(text("pyproject.toml"))["project"]
    assert project["version"] == vlmprune.__version__
    assert f"\n## {vlmprune.__version__} " in text("CHANGELOG.md")
    assert f"\nversion: {vlmprune.__version__}\n" in text("CITATION.cff")
    assert project["license"] == "Apache-2.0" and "Apache License\n" in text("LICENSE")


def test_everything_installed_is_pinned() -> None:
    lines = [line for line in text("constraints.txt").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines), "exact, without local versions"
    pinned = {line.partition("==")[0] for line in lines}
    project = tomllib.loads(text("pyproject.toml"))["project"]
    apart = {"ray", "lmms", "vllm"}  # engines, each in an environment of its own (tools/extras.py)
    extras = [items for name, items in project["optional-dependencies"].items() if name not in apart]
    asked = [*project["dependencies"], *(item for items in extras for item in items)]
    names = {re.split(r"[\[<>=; ]", item)[0].lower() for item in asked}
    assert names - {"vlmprune"} <= pinned


# ---------------------------------------------------------------- methods


def test_a_method_is_golden_matched_where_golden_cases_ran_it() -> None:
    taken = methods.taken_part()
    for name in built_in():
        assert methods.fidelity(name).startswith("golden-matched") == (name in taken), name
        assert methods.section(name, METHODS[name]), name
    assert taken["prumerge+"] == {"42Shawn/LLaVA-PruMerge": 2}
    assert {name: methods.fidelity(name) for name in ("dart", "gridprune", "recoverable", "tome", "downsample")} == {
        "dart": "golden-matched (third-party port)",
        "gridprune": "reconstruction",
        "recoverable": "partly a reconstruction",
        "tome": "golden-matched in part",
        "downsample": "our own",
    }


def test_a_method_has_the_families_on_which_it_is_tested() -> None:
    assert methods.runs_of("hiprune") == {family for family in FAMILIES if not matrix.blind(family)}
    assert methods.runs_of("downsample") == set(filter(matrix.resizes, FAMILIES))
    assert re.match(r"all but .*\bllava_next, ", methods.families("downsample"))
    assert re.match(r"all but .*\bqwen3_5, qwen3_5_moe\b", methods.families("autoprune"))  # where it is refused


def test_every_paper_is_linked() -> None:
    assert methods.paper_link(METHODS["autoprune"]) == "[arXiv 2509.23931](https://arxiv.org/abs/2509.23931)"
    assert methods.paper_link(METHODS["hilo"]).startswith("[CVPR 2026](https://cvpr.thecvf.com/")
    assert [name for name in built_in() if methods.paper_link(METHODS[name]) == "none"] == ["downsample", "uniform"]


def test_signals_have_words_and_a_place_on_the_page() -> None:
    concrete = {cls for cls in vars(signals).values() if isinstance(cls, type) and issubclass(cls, Need)}
    concrete = {cls for cls in concrete if not cls.__name__.startswith("_") and cls.__module__ == signals.__name__}
    assert set(methods.signals()) >= concrete
    for cls in methods.signals():
        assert cls.words and cls.cost_words != Need.cost_words, cls
        assert f"`{cls.__name__}(" in text("docs/adding-a-method.md")


def test_what_a_docstring_leaves_out_is_noticed() -> None:
    class Silent(Residual):
        """Nothing of options or cost."""

    @dataclass
    class Wordless(HiPrune):
        """An option of which nobody tells."""

        depth: int = 1

    with pytest.raises(ValueError, match='residual: the docstring does not say "Time'):
        methods.cost(Silent)
    with pytest.raises(ValueError, match="no docstring tells of the option 'depth'"):
        methods.options(Wordless)
    assert methods.cost(HiPrune) == ("O(n log n)", "O(n)")
    assert "| `alpha` | `0.1` | share of the budget" in methods.options(METHODS["hiprune++"])


def test_layers_are_those_of_each_model() -> None:
    llava, qwen = methods.MODELS
    assert methods.read(METHODS["hiprune"](), llava) == "attention received (encoder layers 8 and 22)"
    assert methods.read(METHODS["hiprune"](), qwen) == "attention received (encoder layers 15 and 31)"
    assert methods.read(METHODS["fastv"](layer=3), qwen) == "attention of the last prompt token (decoder layer 2)"
    assert methods.read(METHODS["pyramiddrop"](), llava).endswith("(decoder layers 8, 16 and 24)")


# ---------------------------------------------------------------- the example


@pytest.mark.parametrize("family", FAMILIES)
def test_the_example_equals_the_oracle(family: str) -> None:
    model, inputs = matrix.built(family), matrix.inputs_of(family, matrix.RAGGED)
    with vlmprune.prune(model, Residual(rank=2), keep=0.3) as session:
        tokens, logits = matrix.generate(model, inputs)
    positions = {0: Residual().positions(adapter_for(model).info)}
    expected = matrix.oracle(family, matrix.RAGGED, inputs, tokens, session.last, positions)
    assert matrix.largest(logits, expected) < matrix.TOLERANCE


def test_the_example_refuses_a_wrong_option() -> None:
    with pytest.raises(UserError, match="rank=0"):
        Residual(rank=0)


def test_the_example_is_found_by_its_entry_point(tmp_path: Path) -> None:
    """Installed as `pip install examples/residual` would, without the network that building it needs."""
    project = tomllib.loads(text("examples/residual/pyproject.toml"))["project"]
    info = tmp_path / "vlmprune_residual-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["vlmprune.methods"]
    entries = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text("[vlmprune.methods]\n" + entries)
    program = (
        "import vlmprune; from vlmprune.cli import main\n"
        "print(vlmprune.recipe('residual(rank=2):0.3'))\n"
        "assert main(['list', 'methods']) == 0\n"
        "asked = ['--model', 'llava', '--tasks', 'synth-ocr', '--limit', '2', '--methods', 'residual(rank=2)']\n"
        "assert main(['bench', '--keep', '0.222', '--out', 'results', *asked]) == 0"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT / "examples" / "residual")])
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    first, *lines = done.stdout.splitlines()
    assert first == "residual(rank=2):0.3"
    assert any(
        re.fullmatch(r"residual +vision +tokens that the image's main directions do not explain", x) for x in lines
    )
    assert "| residual(rank=2) |" in (tmp_path / "results" / "report" / "summary.md").read_text()


def test_the_example_is_short() -> None:
    folder = ROOT / "examples" / "residual"
    assert sum(len((folder / name).read_text().splitlines()) for name in ("pyproject.toml", EXAMPLE)) < 80


# ---------------------------------------------------------------- families

FAMILY_PAGE = "docs/adding-a-family.md"


def run_in(tree: Path, *arguments: str) -> str:
    """What Python says that runs on a copy of the checkout; an exit code other than 0 fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree / "src"), str(tree / "tools")])}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_the_worked_example_of_a_family_passes_the_matrix(tmp_path: Path) -> None:
    """In a copy without the family, the page's two files are put where it says; then tests and tables have it."""
    for folder in ("src", "tests", "tools"):
        skipped = shutil.ignore_patterns("__pycache__", "goldens")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    files = family_files()
    assert [*files] == ["src/vlmprune/models", "src/vlmprune/testing/families"]
    [name] = {name for name, _ in files.values()}
    for folder, (_, code) in files.items():
        own = tmp_path / folder / f"{name}.py"
        assert code == own.read_text(encoding="utf-8")
        own.unlink()
    listed = (
        "-c",
        "from vlmprune.models import FAMILIES; from vlmprune.testing import FAMILIES as t; print(*FAMILIES, *t)",
    )
    assert "smolvlm" in run_in(tmp_path, *listed) and name not in run_in(tmp_path, *listed)
    for folder, (_, code) in files.items():
        (tmp_path / folder / f"{name}.py").write_text(code, encoding="utf-8")

    modules = ["test_tiny", "test_mapping", "test_equivalence"]
    paths = [f"tests/{module}.py" for module in modules]
    said = run_in(
        tmp_path, "-m", "pytest", *paths, "-m", "slow or not slow", "-k", name, "-rp", "-p", "no:cacheprovider"
    )
    passed = re.findall(rf"^PASSED tests/(\w+)\.py::(\w+)\[.*\b{name}\b", said, re.MULTILINE)
    assert {module for module, _ in passed} == set(modules) and " skipped" not in said
    assert {function for _, function in passed} >= {
        "test_the_patches_behind_each_slot", "test_keys_find_a_planted_object",
        "test_statistics_equal_those_of_eager_attention", "test_keeping_everything_is_bit_identical",
        "test_equals_the_masking_oracle", "test_batch_equals_alone", "test_new_image_in_the_second_turn",
    }  # fmt: skip

    tables = run_in(
        tmp_path, "-c", "import docs_models as t; print(*map(t.proofs, t.CLAIMS), t.anatomy(), t.families())"
    )
    assert f"| {name} | yes | yes | yes | yes | no (" in tables and f"| `{name}` | " in tables


def test_the_page_names_all_that_an_adapter_can_say() -> None:
    tables = re.findall(r"^\| (`.*?) \|", text(FAMILY_PAGE), re.MULTILINE)
    named = {re.sub(r"\(.*", "", word) for cell in tables for word in re.findall(r"`([^`]+)`", cell)}
    members = {name for name in {**vars(Adapter), **Adapter.__annotations__} if not name.startswith("_")}
    assert members - named == {"family", "info"}  # of which the page tells elsewhere, and which follows from the others
    assert {name for name in named if hasattr(Adapter, name) or name in members} >= named - {
        "token_type_ids",
        "mm_token_type_ids",
    }
    assert all(hasattr(PatchAdapter, name) for name in ("patches_a_side", "cls_slot", "pieces", "interpolates"))


def test_the_tables_of_models_come_from_tests_that_run() -> None:
    tables = script("tools/docs_models.py")
    claim = tables.Claim("static cache", "", ("test_equivalence.test_static_cache_equals_dynamic",))
    assert tables.covered(claim) == {key for key, family in FAMILIES.items() if claim.title not in family.lacks}
    assert "llava" in tables.covered(claim) and "paligemma2" not in tables.covered(claim)
    resized = tables.runs_on("test_equivalence.test_cached_equals_uncached", "downsample")
    assert resized == set(filter(matrix.resizes, FAMILIES)) and "llava_next" not in resized
    some = pytest.mark.parametrize(("n", "family"), [(1, "a"), pytest.param(2, "b", marks=pytest.mark.xfail)])
    assert list(tables.parameters(some.mark)) == [({"n": 1, "family": "a"}, True), ({"n": 2, "family": "b"}, False)]
    with pytest.raises(KeyError, match="no test runs on 'paligemma2'"):
        tables.reason(tables.Claim("no such column", "", ()), "paligemma2")
    with pytest.raises(KeyError, match=r"'static cache'.* have tests"):
        tables.check_needed({"static cache": {"paligemma2"}})
    tables.check_needed({"static cache": {"llava"}})
    nothing = tables.Claim("nothing there", "", (), applies=lambda family: family.in_parts)
    assert tables.reason(nothing, "llava") == tables.INAPPLICABLE
    assert tables.reason(tables.Claim("some will do", "", (), sampled=True), "llava") == tables.UNTESTED
    with pytest.raises(AttributeError):
        tables.runs_on("test_equivalence.test_that_does_not_exist", "")


def test_families_are_listed_with_their_adapters_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "models"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if " family " in line)
    assert list(lines) == list(SUPPORTED)
    assert all(line.endswith(".") and len(line) > 60 for line in lines.values())

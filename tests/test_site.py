"""The documentation as a site, and the README away from the repository: links lead somewhere, no page is left out.

`python3 tools/extras.py site` builds the site itself, strictly.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import vlmprune
from vlmprune import author, testing

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
site: Any = import_module("site_pages")
extras: Any = import_module("extras")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FORGE = "https://forge.example/owner/name"
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout with a page that the order of the site does not name."""
    files = {
        "pyproject.toml": f'[project]\nname = "p"\ndescription = "d"\nurls = {{ Source = "{FORGE}", '
        'Documentation = "https://docs.example/" }',
        "README.md": "# p\n[start](docs/quickstart.md#two-words) [law](LICENSE) ![look](docs/images/a.png)\n",
        "CONTRIBUTING.md": "# c\n",
        "CHANGELOG.md": "# ch\n",
        "LICENSE": "",
        "docs/quickstart.md": "# Quickstart\n<!-- generated: x -->\n## Two words\n[up](../README.md) "
        "[other](new.md) [code](../src) [far](https://a.example/b.md)\n\n"
        "```python client\nx = [1](2)\n# no heading\n```\n"
        "## Two words\n![](images/a.png) [here](#two-words-1)\n",
        "docs/new.md": "# New\n",
        "docs/images/a.png": "picture",
        "src/vlmprune/__init__.py": '__all__ = ["__version__", "prune", "recipe"]\n',
        "src/vlmprune/author.py": '__all__ = ["Scorer"]\n',
        "src/vlmprune/testing.py": '__all__ = ["ground"]\n',
    }
    for name, text in files.items():
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).write_text(text)
    return tmp_path / "checkout"


def test_links_fit_the_site(checkout: Path, tmp_path: Path) -> None:
    site.write(tmp_path / "out", checkout)
    pages = tmp_path / "out" / "pages"
    assert (pages / "index.md").read_text() == (
        f"# p {{ #p }}\n[start](quickstart.md#two-words) [law]({FORGE}/blob/main/LICENSE) ![look](images/a.png)\n"
    )
    text = (pages / "quickstart.md").read_text()
    assert f"[up](index.md) [other](new.md) [code]({FORGE}/tree/main/src) [far](https://a.example/b.md)" in text
    assert "## Two words { #two-words }\n" in text and "## Two words { #two-words-1 }\n" in text
    assert "```python\nx = [1](2)\n# no heading\n```" in text and "generated" not in text
    assert (pages / "images" / "a.png").read_text() == "picture"


def test_the_reference_has_all_that_is_public(checkout: Path, tmp_path: Path) -> None:
    site.write(tmp_path / "out", checkout)
    text = (tmp_path / "out" / "pages" / "reference" / "vlmprune.md").read_text()
    names = [line.removeprefix("::: ") for line in text.splitlines() if line.startswith(":::")]
    assert names == [*site.FIRST, "vlmprune.recipe"]
    for module in (vlmprune, author, testing):
        assert site.public(ROOT, module.__name__) == module.__all__


def test_a_page_that_nobody_named_is_in_the_navigation(checkout: Path) -> None:
    heads = site.navigation(checkout)
    assert heads["Start"] == ["quickstart.md"] and "Use" not in heads
    assert heads[site.MORE] == ["new.md", "contributing.md", "changes.md"]
    settings = tomllib.loads(site.settings(checkout))["project"]
    assert settings["nav"][1] == {"Start": ["quickstart.md"]} and settings["repo_url"] == FORGE


def test_every_page_is_in_the_navigation_once() -> None:
    listed = [page for pages in site.navigation(ROOT).values() for page in pages]
    own = [page for page in listed if not page.startswith("reference/")]
    assert sorted([*own, "index.md"]) == sorted(place for place in site.placed(ROOT).values() if place.endswith(".md"))
    assert tomllib.loads(site.settings(ROOT))["project"]["site_url"] == PROJECT["project"]["urls"]["Documentation"]


def test_code_that_is_shown_as_text_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "good.html").write_text("<code>x</code>")
    assert site.unread_code(tmp_path) == []
    (tmp_path / "bad.html").write_text("<p>```python")
    assert site.unread_code(tmp_path) == ["bad.html: a fence (```) is shown as text."]
    assert site.COMPLAINT.findall("Build started\ngriffe: a.py:1: No type\n") == ["griffe"]


def test_an_unknown_environment_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert extras.main(["pages"]) == 2
    assert "Say what to run: python3 tools/extras.py ray" in capsys.readouterr().err
    assert all((ROOT / command[-1]).exists() for command in extras.COMMANDS.values())


def on_pypi(text: str) -> str:
    """The README as the build makes it (hatch-fancy-pypi-readme)."""
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    assert hook["fragments"] == [{"path": "README.md"}]
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"].replace("$HFPR_VERSION", vlmprune.__version__), text)
    return text


def test_the_readme_works_away_from_the_repository() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = on_pypi(readme)
    source = PROJECT["project"]["urls"]["Source"]
    raw = source.replace("https://github.com", "https://raw.githubusercontent.com")
    tag = f"v{vlmprune.__version__}/"
    begins = {"!": f"{raw}/{tag}", "": f"{source}/blob/{tag}"}
    found = LINK.findall(text)
    own = [(kind, target) for kind, target in found if target.startswith((source, raw))]
    assert len(own) > 30 and {kind for kind, _ in own} == {"!", ""}
    for kind, target in own:
        assert target.startswith(begins[kind])
        assert (ROOT / target.removeprefix(begins[kind]).partition("#")[0]).exists()
    assert all(target.startswith(("https://", "#")) for _, target in found)
    assert text.replace(begins["!"], "").replace(begins[""], "") == readme

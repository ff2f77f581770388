"""Write the documentation site: the pages of docs/, the README and the change log, and a reference made of docstrings.

    python3 tools/extras.py site     builds it in an environment of its own, into build/site/html
    python3 tools/site_pages.py DIR        only writes what zensical builds it from, into DIR

The pages in docs/ are written for a reader on the forge. Here their links are made to fit the site: what is a page of
the site is linked as such, any other file of the checkout by its address on the forge.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "build" / "site"
BRANCH = "main"
HOME = {"README.md": "index.md"}
AROUND = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
# In the order in which a newcomer reads. A page of docs/ that is not named here comes under the last head.
HEADS = {
    "Start": ("quickstart", "choosing", "cli", "demo"),
    "Use": ("recipes", "video", "own-data", "tune", "serving", "analyze", "notebooks"),
    "Methods and models": ("methods", "models", "anatomy", "runtime"),
    "Measure": ("benchmark", "tasks", "scoring", "speed", "reproducing", "engines", "results", "results-all"),
    "Embedded models": ("embedded", "model-card", "data-card"),
    "Extend": ("adding-a-method", "checking-a-method", "adding-a-family"),
}
MORE = "More"
# The reference: of each page its module, whose `__all__` names what is public, and what its reader looks for.
REFERENCE = {
    "vlmprune": "What users of vlmprune import.",
    "vlmprune.author": "What the file of a method imports. [Adding a method](../adding-a-method.md) explains it.",
    "vlmprune.testing": "Checks of methods and adapters. [Checking a method](../checking-a-method.md) explains them.",
}
# What is read first: `vlmprune.prune` and what it hands out.
FIRST = ("vlmprune.prune", "vlmprune.runtime.session.Session", "vlmprune.core.report.RunReport")
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
MARK = re.compile(r"^<!-- .*? -->\n", re.MULTILINE)  # of generated parts
HEADING = re.compile(r"^(#+) (.*)$", re.MULTILINE)
LANGUAGE = re.compile(r"^( *```\w+) .*$", re.MULTILINE)  # with words behind it, which are for the tests
COMPLAINT = re.compile(r"^(griffe|mkdocstrings)\b.*", re.MULTILINE)  # about a docstring; zensical does not count these


def main(arguments: list[str]) -> int:
    """Write the sources into the folder named; without one, build the site from them, strictly."""
    if arguments:
        write(Path(arguments[0]))
        return 0
    write(BUILT)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", str(BUILT / "zensical.toml")]
    done = subprocess.run(command, cwd=BUILT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout)
    wrong = [*(match[0] for match in COMPLAINT.finditer(done.stdout)), *unread_code(BUILT / "html")]
    if done.returncode or wrong:
        print("The site is not built:", *(wrong or ["zensical's own message is above."]), sep="\n")
        return 1
    print(
        f"Built without a warning into {BUILT / 'html'}; python3 -m http.server --directory build/site/html shows it."
    )
    return 0


def unread_code(html: Path) -> list[str]:
    """A sentence for each page on which a block of code did not become one."""
    pages = (page for page in sorted(html.rglob("*.html")) if "```" in page.read_text(encoding="utf-8"))
    return [f"{page.relative_to(html)}: a fence (```) is shown as text." for page in pages]


def write(folder: Path, checkout: Path = ROOT) -> None:
    """Write the pages and the settings of the site into a folder, from nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "pages"
    places = placed(checkout)
    forge = addresses(checkout)["Source"]
    for source, place in places.items():
        target = pages / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if place.endswith(".md"):
            text = (checkout / source).read_text(encoding="utf-8")
            target.write_text(for_site(text, source, places, forge, checkout), encoding="utf-8", newline="\n")
        else:
            shutil.copyfile(checkout / source, target)
    for name, text in reference(checkout):
        (pages / name).parent.mkdir(parents=True, exist_ok=True)
        (pages / name).write_text(text, encoding="utf-8", newline="\n")
    (folder / "src").symlink_to(checkout / "src", target_is_directory=True)
    (folder / "zensical.toml").write_text(settings(checkout), encoding="utf-8", newline="\n")


def placed(checkout: Path) -> dict[str, str]:
    """By its path in the checkout, the place of each page and picture among the pages of the site."""
    docs = sorted((checkout / "docs").glob("*.md")) + sorted((checkout / "docs" / "images").glob("*.*"))
    inside = {path.relative_to(checkout).as_posix(): path.relative_to(checkout / "docs").as_posix() for path in docs}
    return {**HOME, **inside, **AROUND}


def addresses(checkout: Path) -> dict[str, str]:
    """The project's addresses, by their names in pyproject.toml."""
    return tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]


# ---------------------------------------------------------------- pages


def for_site(text: str, source: str, places: Mapping[str, str], forge: str, checkout: Path = ROOT) -> str:
    """A page's text with the links that it needs on the site.

    Args:
        text: Markdown as the forge shows it.
        source: its path in the checkout, from which its links count.
        places: of `placed`.
        forge: the repository's address, for files that the site does not have.
    """

    used: Counter[str] = Counter()

    def link(match: re.Match[str]) -> str:
        return match[1] + moved(match[2], source, places, forge, checkout) + match[3]

    def heading(match: re.Match[str]) -> str:
        name = slug(match[2])
        used[name] += 1
        return f"{match[0]} {{ #{name}{f'-{used[name] - 1}' if used[name] > 1 else ''} }}"

    parts = FENCE.split(text)  # code is at the odd places
    parts[1::2] = [LANGUAGE.sub(r"\1", part) for part in parts[1::2]]
    parts[::2] = [HEADING.sub(heading, LINK.sub(link, MARK.sub("\n", part))) for part in parts[::2]]
    return "".join(parts)


def slug(heading: str) -> str:
    """The anchor that a forge gives to a heading, but for the number behind a repeated one."""
    plain = LINK.sub("]", heading)
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def moved(target: str, source: str, places: Mapping[str, str], forge: str, checkout: Path) -> str:
    """Where a link of a page leads on the site."""
    path, hash_, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return target
    found = (checkout / source).parent.joinpath(path).resolve()
    name = found.relative_to(checkout.resolve()).as_posix()
    if name in places:
        here = Path(places[source]).parent
        return Path(os.path.relpath(places[name], here)).as_posix() + hash_ + anchor
    kind = "tree" if found.is_dir() else "blob"
    return f"{forge}/{kind}/{BRANCH}/{name}{hash_}{anchor}"


# ---------------------------------------------------------------- the reference


def reference(checkout: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each page of the reference, made from what a module's `__all__` names."""
    for module, about in REFERENCE.items():
        names = [f"{module}.{name}" for name in public(checkout, module) if not name.startswith("__")]
        names = [*FIRST, *(name for name in names if name not in FIRST)] if module == "vlmprune" else names
        blocks = [f"::: {name}" for name in names]
        yield f"reference/{module}.md", "\n\n".join([f"# {module}", about, *blocks]) + "\n"


def public(checkout: Path, module: str) -> list[str]:
    """The names in a module's `__all__`, read without importing it."""
    path = checkout.joinpath("src", *module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return ast.literal_eval(node.value)
    raise ValueError(f"{module} has no __all__")


# ---------------------------------------------------------------- settings


def settings(checkout: Path) -> str:
    """The text of the site's zensical.toml."""
    urls = addresses(checkout)
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    values = {
        "site_name": project["name"],
        "site_description": project["description"],
        "site_url": urls["Documentation"],
        "repo_url": urls["Source"],
        "docs_dir": "pages",
        "site_dir": "html",
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    heads = (f"  {{ {json.dumps(head)} = {json.dumps(pages)} }}," for head, pages in navigation(checkout).items())
    nav = ["nav = [", '  { "Home" = "index.md" },', *heads, "]"]
    look = (ROOT / "tools" / "site.toml").read_text(encoding="utf-8")
    return "\n".join(["[project]", *lines, *nav, "", look])


def navigation(checkout: Path) -> dict[str, list[str]]:
    """The pages under each head; a head without pages is left out."""
    there = {path.stem for path in (checkout / "docs").glob("*.md")}
    named = {name for names in HEADS.values() for name in names}
    heads = {head: [f"{name}.md" for name in names if name in there] for head, names in HEADS.items()}
    heads["Reference"] = [f"reference/{module}.md" for module in REFERENCE]
    heads[MORE] = [*(f"{name}.md" for name in sorted(there - named)), *AROUND.values()]
    return {head: pages for head, pages in heads.items() if pages}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

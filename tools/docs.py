"""Keep the generated parts of README.md and docs/ equal to the code.

    python tools/docs.py                   write them again
    python tools/docs.py --check           fail when one is stale
    python tools/docs.py --results DIR     take over tables and pictures of a result folder of `vlmprune bench`
    python tools/docs.py --all-results DIR take over the overview of a result folder of `vlmprune bench --methods all`
    python tools/docs.py --pictures        draw the pictures of `vlmprune run` with the embedded model

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a key of `BLOCKS`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from vlmprune.bench.store import load_results
from vlmprune.tasks.own import KINDS

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT / "tools") not in sys.path:
    sys.path.append(str(ROOT / "tools"))

from docs_text import plain, table  # noqa: E402

IMAGES = ROOT / "docs" / "images"
RESULTS = ROOT / "docs" / "results.md"
ALL_RESULTS = ROOT / "docs" / "results-all.md"
ALL_FIGURES = ROOT / "benchmarks" / "results" / "all-methods.csv"
PAPERS = ("hiprune", "uniprunebench", "autoprune", "hilo")
EXAMPLE = ROOT / "examples" / "residual" / "vlmprune_residual.py"
BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# How the two pictures of `vlmprune run` are made: file, picture asked about, arguments.
PHOTO = "src/vlmprune/assets/photos/held_out/coffee.jpg"
RUNS = {
    "run-scene.png": ("docs/images/scene.png", ["-q", "What number is on the plate?", "--method", "divprune"]),
    "run-photo.png": (PHOTO, ["-q", "Is there a red circle?", "--method", "hiprune"]),
}
RUN_KEEP = "0.222"
RUN_METHODS = "downsample,hiprune,visionzip,pool,tome,hilo,sparsevlm:0.3,divprune"

ABOUT_ALL = """\
These are means over the tasks. The [page of the default run](results.md) has each task with its interval for eight
methods; `benchmarks/results/all-methods.csv` has each task for all methods, with operations by the three formulas.
*kept* is the number of tokens left after the last cut, *entering* the number that enters a layer of the language
model on average. A budget means [what a method's authors mean by it](quickstart.md#the-budget); for some methods it
is an average over layers, which a model of few layers cannot always meet. So compare methods in the tables at equal
mean tokens, or with about the same *entering*, not all methods of a column by budget. The models are tiny and their
world is generated: this says nothing about photographs. Methods that compare the picture with the question use the
LLaVA's own text tower, and the language model's embeddings on the Qwen2.5-VL."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Keep the generated parts of README.md and docs/ equal to the code.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail when something is stale")
    parser.add_argument("--results", type=Path, metavar="DIR", help="a result folder of `vlmprune bench`")
    parser.add_argument("--all-results", type=Path, metavar="DIR", help="one of `vlmprune bench --methods all`")
    parser.add_argument("--pictures", action="store_true", help="draw the pictures of `vlmprune run`")
    asked = parser.parse_args(arguments)
    if asked.results:
        take_results(asked.results)
    if asked.all_results:
        take_all_results(asked.all_results)
    if asked.pictures:
        draw_pictures()
    stale = refresh(write=not asked.check)
    for page in stale:
        print(f"{page.relative_to(ROOT)} {'is stale: run python tools/docs.py' if asked.check else 'written'}")
    return int(asked.check and bool(stale))


def pages() -> list[Path]:
    """Every page that may hold generated parts."""
    return [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*/*.md"))]


def refresh(write: bool) -> list[Path]:
    """The pages whose generated parts differ from what they should be."""
    changed = []
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]().strip()}\n{match[3]}", old)
        if new != old:
            changed.append(page)
            if write:
                page.write_text(new, encoding="utf-8", newline="\n")
    return changed


# ---------------------------------------------------------------- the command line


def command_line() -> str:
    from typer.main import get_command

    from vlmprune.cli import app

    commands: dict[str, Any] = getattr(get_command(app), "commands", {})
    return "\n\n".join(command_section(name, command) for name, command in commands.items())


def command_section(name: str, command: Any) -> str:
    words, rows = ["vlmprune", name], []
    for item in command.params:
        if item.opts[0].startswith("-"):
            shown = ", ".join(f"`{text}`" for text in item.opts)
        else:
            words.append(item.name.upper())
            shown = f"`{words[-1]}`"
        given = item.default is not None and item.default is not False and item.default != ()
        default = "required" if item.required else f"`{item.default}`" if given else ""
        rows.append([shown, default, plain(item.help or "")])
    usage = " ".join([*words, "[OPTIONS]"] if len(rows) > len(words) - 2 else words)
    about = f"## vlmprune {name}\n\n{plain(command.help)}\n\n```text\n{usage}\n```"
    return f"{about}\n\n{table(('argument', 'default', 'meaning'), rows)}"


# ---------------------------------------------------------------- methods and families


def made_by(module: str, function: str, *arguments: Any) -> Callable[[], str]:
    """What a function of docs_methods.py or docs_models.py makes; these import the tests when a page asks for it."""

    def block() -> str:
        return getattr(import_module(module), function)(*arguments)

    return block


# ---------------------------------------------------------------- the example


def example() -> str:
    return f"```python\n{EXAMPLE.read_text(encoding='utf-8').strip()}\n```"


# ---------------------------------------------------------------- results and pictures


def take_results(folder: Path) -> None:
    """Copy the report of a result folder into docs/: results.md, the accuracy plots, the overlay sheets."""
    from vlmprune.report import build

    report = build(folder)[-1].parent
    body = (report / "summary.md").read_text(encoding="utf-8").partition("\n")[2]
    RESULTS.write_text(f"# Results of the default run\n\n{origin(folder)}\n{body}", encoding="utf-8", newline="\n")
    IMAGES.mkdir(parents=True, exist_ok=True)
    for picture in [*report.glob("plots/*-entering.svg"), *report.glob("overlays/*-1.png")]:
        name = picture.name.replace("-entering.svg", "-accuracy.svg").replace("-1.png", "-kept.png")
        shutil.copyfile(picture, IMAGES / name)


def take_all_results(folder: Path) -> None:
    """Write the overview of a result folder of every method to docs/results-all.md, and keep its figures."""
    from vlmprune.report import build

    report = build(folder)[-1].parent
    shutil.copyfile(report / "summary.csv", ALL_FIGURES)
    summary = (report / "summary.md").read_text(encoding="utf-8")
    parts = [
        "# Results of every method",
        origin(folder, "vlmprune bench --methods all"),
        ABOUT_ALL,
        *overviews(summary),
    ]
    ALL_RESULTS.write_text("\n\n".join(parts) + "\n", encoding="utf-8", newline="\n")


def overviews(summary: str, first: bool = False) -> list[str]:
    """Of the text of a report's summary.md, for each model its name and its tables over all tasks with their words.

    Args:
        first: only what is at equal mean tokens, where methods cut inside the language model.
    """
    from vlmprune.report.markdown import BUDGET_WORDS

    parts = []
    for section in re.split(r"^## ", summary, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        if title == "Notes":  # they explain marks in cells that the overview does not have
            continue
        _, *said = body.partition("\n### ")[0].strip().split("\n\n")  # without the sizes of the tasks
        if first and BUDGET_WORDS in said:
            said = said[: said.index(BUDGET_WORDS)]
        parts += [f"**{title}**", *said]
    return parts


def origin(folder: Path, command: str = "vlmprune bench") -> str:
    """The conditions of a result folder, in one line: command, versions, commit, questions, seed and device."""
    results = load_results(folder)

    def said(values: Iterable[object]) -> str:
        return ", ".join(dict.fromkeys(map(str, values)))

    versions = said(f"{name} {version}" for result in results for name, version in result.versions.items())
    sizes = said(result.n for result in results)
    made = [result.made for result in results]
    seeds = said(result.seed for result in results if result.seed is not None)
    commits = (str(m["commit"]) for m in made)  # with "+" after it where files differed
    return (
        f"`{command}` with {versions}, commit {said(c[:12] + c[40:] for c in commits)}; {sizes} questions per "
        f"task, seed {seeds}; on {said(m['device'] for m in made)}, "
        f"Python {said(m['python'] for m in made)}."
    )


def results_summary() -> str:
    """The overview tables of docs/results.md."""
    if not RESULTS.exists():
        return "Not measured for this version yet; `python3 tools/run.py vlmprune bench` makes the table."
    text = RESULTS.read_text(encoding="utf-8")
    parts = [text.strip().split("\n\n")[1], *overviews(text, first=True)]
    said = "[docs/results.md](docs/results.md) has each task with its interval and its difference to vanilla"
    also = "; [docs/results-all.md](docs/results-all.md) has every method." if ALL_RESULTS.exists() else "."
    parts.append(said + also)
    return "\n\n".join(parts)


def draw_pictures() -> None:
    """A generated scene, and what `vlmprune run` draws for it and for a photograph."""
    from vlmprune.ask import answer
    from vlmprune.ask.examples import example_samples
    from vlmprune.ask.many import ask_each
    from vlmprune.ask.run import Question, recipes_of
    from vlmprune.core.budget import parse_keep
    from vlmprune.tasks.canvas import FIXED

    IMAGES.mkdir(parents=True, exist_ok=True)
    example_samples(FIXED)[0].images[0].save(IMAGES / "scene.png")
    for name, (picture, (_, question, _, method)) in RUNS.items():
        answer(ROOT / picture, question, method=method, keep=parse_keep(RUN_KEEP), overlay=IMAGES / name, force=True)
    question, sheet = "What number is on the plate?", IMAGES / "run-compare.png"
    recipes = [None, *recipes_of(RUN_METHODS.split(","), [parse_keep("0.111")])]
    asked = ask_each([IMAGES / "scene.png"], Question(question), "llava", recipes, sheet, force=True)
    list(asked)


def picture(name: str, text: str) -> Callable[[], str]:
    """A picture of docs/images as README.md (beside docs/) or a page in docs/ shows it; nothing until it is there."""

    def block() -> str:
        return f"![{text}](docs/images/{name})" if (IMAGES / name).exists() else ""

    return block


def run_commands() -> str:
    """The commands that made the pictures of `vlmprune run`, each with its picture."""
    parts = []
    for name, (picture_path, (flag, question, *method)) in RUNS.items():
        command = f'vlmprune run {picture_path} {flag} "{question}" {" ".join(method)} --keep {RUN_KEEP}'
        parts.append(f"```sh\n{command} --overlay {name}\n```")
        if (IMAGES / name).exists():
            parts.append(f"![kept and dropped patches](images/{name})")
    return "\n\n".join(parts)


def compare_command() -> str:
    """The command that draws several methods side by side, with its picture."""
    command = (
        'vlmprune run docs/images/scene.png -q "What number is on the plate?" --keep 0.111 \\\n'
        f"    --methods {RUN_METHODS} --overlay run-compare.png"
    )
    shown = "![what became of the patches under eight methods](images/run-compare.png)"
    return f"```sh\n{command}\n```\n\n{shown if (IMAGES / 'run-compare.png').exists() else ''}"


def speed() -> str:
    """Tables of the timings in benchmarks/results: of the longest answers, without columns that hold nothing."""
    from vlmprune.bench.speed_pays import break_even
    from vlmprune.bench.speed_store import load_points
    from vlmprune.bench.speed_table import times

    points = load_points(ROOT / "benchmarks" / "results")
    parts = []
    for sheet in [*(times(point, max(point.lengths)) for point in points), *(break_even(points) if points else ())]:
        filled = [k for k in range(len(sheet.head)) if any(line[k] != "–" for line in sheet.lines)]
        rows = [[f"`{line[k]}`" if not k else line[k] for k in filled] for line in sheet.lines]
        parts.append("\n\n".join([f"**{sheet.title}**", table([sheet.head[k] for k in filled], rows), *sheet.notes]))
    return "\n\n".join(parts)


BLOCKS: dict[str, Callable[[], str]] = {
    "kept-picture": picture("llava-kept.png", "What eight methods keep of one scene, and what the model then answers"),
    "accuracy-picture": picture("llava-accuracy.svg", "Accuracy against visual tokens, one plot for each ability"),
    "methods-short": made_by("docs_methods", "short"),
    "methods-overview": made_by("docs_methods", "overview"),
    "methods-defaults": made_by("docs_methods", "defaults"),
    "methods-in-full": made_by("docs_methods", "in_full"),
    "budgets": made_by("docs_methods", "budgets"),
    "signals": made_by("docs_methods", "costs"),
    "signals-prompt": made_by("docs_methods", "prompt_signals"),
    "signals-encoder": made_by("docs_methods", "encoder_signals"),
    "signals-decoder": made_by("docs_methods", "decoder_signals"),
    "presets": made_by("docs_methods", "presets"),
    "choosing": made_by("docs_methods", "choosing"),
    "run-compare": compare_command,
    "command-line": command_line,
    "answer-kinds": lambda: ", ".join(f"`{kind}`" for kind in KINDS) + ".",
    "tasks": made_by("docs_sets", "generated"),
    "sets": made_by("docs_sets", "sets"),
    "layouts": made_by("docs_sets", "layouts"),
    "agreement": made_by("docs_sets", "agreement"),
    "parts": made_by("docs_anatomy", "parts"),
    "ablations": made_by("docs_anatomy", "ablations"),
    "fusion": made_by("docs_fusion", "fusion"),
    "protocols": made_by("docs_sets", "protocols"),
    **{f"profiles-{paper}": made_by("docs_sets", "tables_of", paper) for paper in PAPERS},
    "families-short": made_by("docs_models", "families_short"),
    "families": made_by("docs_models", "families"),
    "anatomy": made_by("docs_models", "anatomy"),
    "works-methods": made_by("docs_models", "proofs", "methods"),
    "works-slots": made_by("docs_models", "proofs", "slots"),
    "works-modes": made_by("docs_models", "proofs", "modes"),
    "works-backends": made_by("docs_models", "proofs", "backends"),
    "works-generic": made_by("docs_models", "generic"),
    "surveyed-proved": made_by("docs_models", "surveyed_proved"),
    "surveyed-refused": made_by("docs_models", "surveyed_refused"),
    "gemma3": made_by("docs_models", "whole_family", "gemma3"),
    "example": example,
    "results": results_summary,
    "run-commands": run_commands,
    "vllm-methods": made_by("docs_serving", "vllm_methods"),
    "vllm-speed": made_by("docs_serving", "vllm_speed"),
    "speed": speed,
    **{
        name: made_by("docs_speed", name)
        for name in ("prefill", "prefill_wide", "scoring", "selectors", "decoding", "memory", "scaling")
    },
}

if __name__ == "__main__":
    sys.exit(main())

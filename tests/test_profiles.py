"""Profiles: every table of the papers is a plan that can be made, and options override it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from vlmprune.bench.profiles import get_profile, profiles
from vlmprune.bench.protocols import Pixels
from vlmprune.cli import main
from vlmprune.core.errors import UserError
from vlmprune.tasks import get_task

PUBLISHED = Path(__file__).parents[2] / "shared" / "published" / "results.csv"
# The papers' names of tasks; a metric that is none of them is an average or a cost.
TASKS = {
    "MMBench": "mmbench",
    "MMBench-CN": "mmbench-cn",
    "MMBench (cn,en)": "mmbench mmbench-cn",
    "MME": "mme",
    "POPE": "pope",
    "ScienceQA": "scienceqa",
    "GQA": "gqa",
    "VQAv2": "vqav2",
    "TextVQA": "textvqa",
    "VizWiz": "vizwiz",
    "SEED-Bench-2-Plus": "seedbench-2-plus",
    "OCRBench": "ocrbench",
    "HallusionBench": "hallusionbench",
    "MathVista": "mathvista",
    "Math-Vision": "mathvision-mini",
    "MIA-Bench": "mia-bench",
    "ChartQA": "chartqa",
    "MSVD-QA accuracy": "msvd-qa",
    "MSRVTT-QA accuracy": "msrvtt-qa",
    "TGIF-QA accuracy": "tgif-qa",
}
PAPERS = {"HiPrune": "hiprune", "UniPruneBench": "uniprunebench", "AutoPrune": "autoprune", "Hi-Lo Prune": "hilo"}


@pytest.mark.parametrize("name", profiles())
def test_a_profile_is_a_plan(name: str) -> None:
    profile = get_profile(name)
    plan = profile.plan({})
    variants = plan.variants()
    assert len(variants) > 3 and variants[0].text == "vanilla"
    assert all(get_task(task).wordings.get(plan.protocol or "") for task in plan.tasks)
    assert plan.limit is None and plan.batch_size == 1
    assert all(sentence.endswith(".") for sentence in profile.said())


def test_a_paper_alone_is_its_first_table() -> None:
    assert get_profile("hiprune").name == "hiprune:table2"
    assert get_profile("uniprunebench").name == "uniprunebench:table1"
    with pytest.raises(UserError, match="did you mean 'hiprune'"):
        get_profile("hipr")


def test_options_override() -> None:
    profile = get_profile("hiprune")
    ours = profile.plan({})
    assert ours.protocols["mmbench"] == "llava" and ours.protocol == "lmms"
    assert ours.models == ("llava-hf/llava-1.5-7b-hf",) and ours.text_tower == "openai/clip-vit-large-patch14-336"
    plan = profile.plan({"keeps": (0.5,), "protocol": "short", "models": ("llava",), "limit": 3})
    assert (plan.keeps, plan.protocol, plan.protocols, plan.limit) == ((0.5,), "short", {}, 3)
    assert plan.text_tower is None, "a text tower is that of the paper's model"
    assert plan.methods == ours.methods and plan.tasks == ours.tasks
    assert get_profile("uniprunebench:table3").plan({}).pixels == Pixels(200_704, 1_003_520)


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the papers' figures are not here")
def test_profiles_have_the_tasks_of_the_papers_tables() -> None:
    printed: dict[tuple[str, str, str], set[str]] = {}
    with PUBLISHED.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["metric"] in TASKS:
                key = PAPERS[row["source"]], row["table"].split()[0], row["model"]
                printed.setdefault(key, set()).update(TASKS[row["metric"]].split())
    for (paper, number, model), tasks in printed.items():
        ours = [
            profile
            for name, profile in profiles().items()
            if name.partition("-")[0] == f"{paper}:table{number}" and model in profile.source
        ]
        assert ours, f"{paper}, table {number}, {model}"
        asked = {task.replace("mme-perception", "mme") for profile in ours for task in profile.tasks}
        assert tasks == asked, f"{paper}, table {number}, {model}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--profile", "nothing"], "--profile nothing is not known"),
        (["--pixels", "3"], "--pixels 3 is not a range"),
        (["--pixels", "9,3"], "--pixels 9,3 is not a range"),
        (["--protocol", "lms"], "--protocol lms is not known"),
        (["--max-new-tokens", "0"], "length of a reply must be at least 1"),
        (["--full", "--limit", "3"], "contradict each other"),
    ],
)
def test_mistakes_are_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    assert main(["bench", "--model", "llava", "--out", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_listings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "profiles"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in profiles())

"""Replicas on a Ray cluster: the order of answers, replicas that are lost, nodes that differ; and Ray itself."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_folder import save_llava

from vlmprune import cli
from vlmprune.ask import write_examples
from vlmprune.bench.plan import Plan
from vlmprune.bench.runner import Progress, run_bench
from vlmprune.bench.worker import Asked, Facts, Unit
from vlmprune.core.errors import UserError
from vlmprune.engines import cluster
from vlmprune.engines.cluster import RayPool, Sizing, ray_cluster

FACTS = Facts("m", "w", "float32", "sdpa", "", None, {}, {}, {}, {}, {"t": Asked(("a",), "d", "plain", {}, "")}, {})
UNITS = [Unit("t", number, (0, 1)) for number in range(20)]


class Lost(Exception):
    """A replica has died."""


class FakeRay:
    """Ray's calls, of replicas that answer in an order of chance.

    Attributes:
        deaths: numbers of the calls of `run` whose replica dies.
        facts: what replicas say as they load, in turn; the last one for all others.
        open: units that were given and have not come back.
        most: the largest number of a unit given while an earlier one was wanted, minus that one's.
    """

    def __init__(self, deaths: set[int] = frozenset(), facts: tuple[Any, ...] = (FACTS,)) -> None:  # type: ignore[assignment]
        self.deaths, self.facts, self.started, self.runs = deaths, list(facts), 0, 0
        self.exceptions = SimpleNamespace(**{f"{name}Error": Lost for name in cluster._LOST})
        self.given: list[int] = []
        self.killed: list[Any] = []
        self.chance = random.Random(0)

    def remote(self, **_: Any) -> Any:
        return lambda replica: SimpleNamespace(remote=self._start)

    def _start(self) -> Any:
        self.started += 1
        open_ = SimpleNamespace(remote=lambda *_: (self.started, self._facts()))
        return SimpleNamespace(number=self.started, open=open_, run=SimpleNamespace(remote=self._run))

    def _facts(self) -> Any:
        return self.facts.pop(0) if len(self.facts) > 1 else self.facts[0]

    def _run(self, unit: Unit) -> tuple[Any, ...]:
        self.runs += 1
        self.given.append(unit.number)
        answer = Lost() if self.runs in self.deaths else [f"{unit.number}.{variant}" for variant in unit.variants]
        return ("run", self.runs, unit, Answer(answer))

    def wait(self, awaited: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return [self.chance.choice(awaited)], []

    def get(self, awaited: Any) -> Any:
        answer = awaited[-1].value if isinstance(awaited[-1], Answer) else awaited[-1]
        if isinstance(answer, Lost):
            raise answer
        return answer

    def kill(self, replica: Any) -> None:
        self.killed.append(replica.number)


class Answer:
    """Hashable, whatever it holds."""

    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.fixture(autouse=True)
def hashable_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Facts, "__hash__", lambda self: id(self))


def pool_of(ray: FakeRay, replicas: int = 3) -> RayPool:
    return RayPool(ray, Plan(models=("m",)), "m", [], Sizing(replicas, 1, 0))


def answers(pool: RayPool) -> list[list[Any]]:
    return [list(answer) for answer in pool.run(iter(UNITS))]


EXPECTED: list[list[Any]] = [[f"{k}.0", f"{k}.1"] for k in range(20)]


def test_answers_come_in_the_order_of_the_units() -> None:
    ray = FakeRay()
    assert answers(pool_of(ray)) == EXPECTED
    assert sorted(ray.given) == list(range(20)) and ray.started == 3


def test_only_some_units_are_computed_ahead() -> None:
    ray = FakeRay()
    pool = pool_of(ray, 2)
    for wanted, _ in enumerate(pool.run(iter(UNITS))):
        assert max(ray.given) < wanted + cluster.AHEAD * 2
    assert wanted == 19


def test_the_units_of_lost_replicas_run_again() -> None:
    ray = FakeRay(deaths={2, 5, 9})
    pool = pool_of(ray)
    assert answers(pool) == EXPECTED
    assert len(ray.given) == 23 and ray.started == 6 and len(ray.killed) == 3
    pool.close()
    assert sorted(ray.killed) == [1, 2, 3, 4, 5, 6], "none is left behind"


def test_a_unit_that_kills_its_replicas_ends_the_run() -> None:
    pool = pool_of(FakeRay(deaths=set(range(1, 99))))
    with pytest.raises(UserError, match="3 replicas of m died over one and the same batch"):
        answers(pool)


def test_replicas_that_die_while_loading_end_the_run() -> None:
    ray = FakeRay(facts=(Lost(),))
    with pytest.raises(UserError, match="died while they loaded the model"):
        pool_of(ray, 2)
    assert sorted(ray.killed)[-1] == ray.started, "none is left behind"


def test_nodes_that_differ_are_refused() -> None:
    other = replace(FACTS, tasks={"t": Asked(("a",), "other", "plain", {}, "")})
    with pytest.raises(UserError, match="differ in tasks for m"):
        answers(pool_of(FakeRay(facts=(FACTS, other))))
    with pytest.raises(UserError, match="differ in code for m"):
        pool_of(FakeRay(facts=(replace(FACTS, code={"scope": "1"}),)))
    ray = FakeRay(facts=(FACTS, replace(FACTS, made={"device": "another"})))
    assert answers(pool_of(ray)) == EXPECTED


def test_a_users_mistake_on_a_node_is_told() -> None:
    with pytest.raises(UserError, match="no such data"):
        pool_of(FakeRay(facts=(UserError("There is no such data."),)))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--replicas", "2"], "--replicas is for Ray alone: give with it --ray auto."),
        (["--ray", "auto", "--replicas", "0"], "--replicas 0 must be at least 1."),
        (["--speed", "--ray", "auto"], "--ray is not for timings"),
    ],
)
def test_wrong_arguments(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_without_ray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert cli.main(["bench", "--ray", "auto"]) == 2
    assert "--ray needs ray: pip install 'vlmprune[ray]'" in capsys.readouterr().err


# ---------------------------------------------------------------- Ray itself


def content(out: Path) -> dict[str, object]:
    """Everything in a result folder but where and from which commit it was made."""
    files: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name != ".vlmprune":
            whole = json.loads(path.read_text()) if path.suffix == ".json" else {}
            files[str(path.relative_to(out))] = {**whole, "made": 0} if "made" in whole else path.read_bytes()
    return files


@pytest.mark.slow
def test_one_of_two_replicas_is_killed_and_the_files_are_those_of_a_local_run(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: python3 tools/extras.py ray runs this with it")
    models = tuple(str(save_llava(tmp_path / name)) for name in ("model", "second"))
    plan = Plan(
        models=models, methods=("fastv",), keeps=(0.5,), tasks=("synth-mme", "synth-choice"), limit=12,
        batch_size=2, device="cpu",
    )  # fmt: skip
    run_bench(plan, tmp_path / "here", then=write_examples)
    pools: list[Any] = []
    processes: list[int] = []

    def kill(at: Progress) -> None:
        if at.done == 0:
            replicas = [replica for replica, _ in pools[0]._busy.values()] + pools[0]._idle
            asked = [replica.__ray_call__.remote(lambda _: os.getpid()) for replica in replicas]
            processes.extend(ray.get(asked))
        if at.done == 6:
            os.kill(processes[0], signal.SIGKILL)

    with ray_cluster("auto", 2) as open_pool:

        @contextmanager
        def noted(*arguments: Any) -> Iterator[Any]:
            opened: AbstractContextManager[Any] = open_pool(*arguments)
            with opened as pool:
                pools.append(pool)
                yield pool

        run_bench(plan, tmp_path / "ray", kill, then=write_examples, open_pool=noted)
    assert len(set(processes)) == 2 and sum(pools[0]._losses.values()) == 1, "one was lost"
    assert content(tmp_path / "ray") == content(tmp_path / "here")
    made = [json.loads(path.read_text())["made"] for path in (tmp_path / "ray").rglob("synth-mme/*.json")]
    assert {one["replicas"] for one in made} == {2}

"""Runs a benchmark's batches on a Ray cluster, one replica of the model an actor.

A batch goes to whichever replica is free. Answers are handed on in the order of a run in one process, so that result
folders are the same. The batch of a replica that is lost goes to another one, and a new replica takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from vlmprune.bench.marks import code_of
from vlmprune.bench.plan import Plan, Variant
from vlmprune.bench.store import Record
from vlmprune.bench.worker import BESIDE, Facts, OpenPool, Pool, Then, Unit
from vlmprune.core.errors import Option, UserError
from vlmprune.core.extras import load_package
from vlmprune.engines.replica import Replica

AUTO = "auto"
AHEAD = 4  # batches for each replica that may be computed before an earlier one is stored
_LOST = ("RayActor", "WorkerCrashed", "OutOfMemory", "NodeDied", "ObjectLost")  # errors of Ray when a replica is lost
LOSSES = 3  # of replicas over one batch, or while loading, before it is taken to be the cause


@contextmanager
def ray_cluster(address: str = AUTO, replicas: int | None = None) -> Iterator[OpenPool]:
    """Pools of workers on a Ray cluster, for `run_bench`; it is connected to when the first pool is opened.

    Args:
        address: of the cluster; "auto" for the one that runs here, else for one that is started on this machine.
        replicas: of the model; None for one on each GPU or, in a cluster without, on each node.

    Raises:
        UserError: Ray is not installed.
    """
    if replicas is not None and replicas < 1:
        raise UserError(Option("replicas", replicas), " must be at least 1.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = load_package("ray", "--ray")
    ours = not ray.is_initialized()

    @contextmanager
    def open_pool(plan: Plan, name: str, variants: Sequence[Variant]) -> Iterator[Pool]:
        if not ray.is_initialized():
            _connect(ray, address)
        pool = RayPool(ray, plan, name, variants, _sizing(ray, plan, replicas))
        try:
            yield pool
        finally:
            pool.close()

    try:
        yield open_pool
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address == AUTO and isinstance(error, ConnectionError):
            ray.init(include_dashboard=False, **quiet)
            return
        raise UserError(
            f"There is no Ray cluster at {address!r}: give the address that `ray start` has printed, or ",
            Option("ray", AUTO),
            ".",
        ) from error


@dataclass(frozen=True)
class Sizing:
    """How many replicas there are, and what each takes."""

    replicas: int
    cpus: float
    gpus: int


def _sizing(ray: Any, plan: Plan, asked: int | None) -> Sizing:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    cpus, gpus = (sum(int(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU"))
    on_gpu = gpus > 0 and (plan.device is None or plan.device.startswith("cuda"))
    if not on_gpu and plan.device not in (None, "cpu"):
        raise UserError("The Ray cluster has no GPU for ", Option("device", plan.device), ".")
    room, what = (gpus, "GPUs") if on_gpu else (cpus, "CPUs")
    count = asked or (gpus if on_gpu else len(nodes))
    if not 0 < count <= room:
        raise UserError(Option("replicas", count), f" is not possible: the Ray cluster has {room} {what}.")
    smallest = min(int(node["CPU"]) for node in nodes)
    return Sizing(count, 1 if on_gpu else max(1, smallest // -(-count // len(nodes))), int(on_gpu))


class RayPool:
    """Replicas of one model.

    Raises:
        UserError: the model or the data is not as it has to be on every node, or replicas keep dying.
    """

    def __init__(self, ray: Any, plan: Plan, name: str, variants: Sequence[Variant], sizing: Sizing) -> None:
        self._ray, self._plan, self._name, self._sizing = ray, plan, name, sizing
        self._code = {m: d for v in variants if v.recipe is not None for m, d in code_of(v.recipe).items()}
        self._make = ray.remote(num_cpus=sizing.cpus, num_gpus=sizing.gpus, max_restarts=0)(Replica)
        self._lost = tuple(getattr(ray.exceptions, f"{what}Error") for what in _LOST)
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, int | None]] = {}  # by awaited answer: the replica, and its unit (None: loads)
        self._losses: dict[int | None, int] = {}
        self._facts: Facts | None = None
        try:
            for _ in range(sizing.replicas):
                self._start()
            while self._facts is None:
                self._collect()
        except BaseException:
            self.close()
            raise

    @property
    def facts(self) -> Facts:
        assert self._facts is not None
        return replace(self._facts, made={**self._facts.made, "replicas": self._sizing.replicas})

    def close(self) -> None:
        """End the replicas."""
        for replica in [*self._idle, *(replica for replica, _ in self._busy.values())]:
            self._ray.kill(replica)
        self._idle, self._busy = [], {}

    def run(self, units: Iterable[Unit]) -> Iterator[Iterator[list[Record]]]:
        """As `Pool.run`. Only some batches a replica are computed ahead, whatever one of them takes."""
        units = list(units)
        due, done = list(range(len(units))), dict[int, Any]()
        for wanted in range(len(units)):
            while True:
                for place, answer in self._collect(wait=wanted not in done and not self._can_give(due, wanted)):
                    if answer is None:
                        heappush(due, place)
                    else:
                        done[place] = answer
                while self._can_give(due, wanted):
                    place, replica = heappop(due), self._idle.pop()
                    self._busy[replica.run.remote(units[place])] = replica, place
                if wanted in done:
                    break
            yield iter(done.pop(wanted))

    def _can_give(self, due: list[int], wanted: int) -> bool:
        return bool(self._idle and due) and due[0] < wanted + AHEAD * self._sizing.replicas

    def then(self, then: Then, folder: Path) -> None:
        """As `Pool.then`: the replica writes to a folder of its own, and the files come back."""
        beside = folder / BESIDE
        files = {path.name: path.read_bytes() for path in beside.glob("*") if path.is_file()}
        (answer,) = self._ask(lambda replica: replica.then.remote(then, files))
        for name, content in answer.items():
            if files.get(name) != content:
                beside.mkdir(exist_ok=True)
                (beside / name).write_bytes(content)

    def _ask(self, call: Callable[[Any], Any]) -> list[Any]:
        """The answer to one call, of whichever replica lives to give it."""
        while True:
            while not self._idle:
                self._collect()
            replica = self._idle.pop()
            self._busy[call(replica)] = replica, -1
            while any(place == -1 for _, place in self._busy.values()):
                found = [answer for place, answer in self._collect() if place == -1]
                if found and found[0] is not None:
                    return found

    def _start(self) -> None:
        replica = self._make.remote()
        self._busy[replica.open.remote(self._plan, self._name, str(Path.cwd()))] = replica, None

    def _collect(self, wait: bool = True) -> list[tuple[int, Any]]:
        """Answers that have come, by the place of their unit: None where the replica was lost.

        Args:
            wait: for at least one.
        """
        if not self._busy:
            return []
        answers = []
        came, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=None if wait else 0)
        for awaited in came:
            replica, place = self._busy.pop(awaited)
            try:
                answer = self._ray.get(awaited)
            except self._lost as error:
                self._replace(replica, place, error)
                answer = None
            else:
                self._idle.append(replica)
            if isinstance(answer, UserError):
                raise answer
            if place is not None:
                answers.append((place, answer))
            elif answer is not None:
                self._check(answer)
        return answers

    def _replace(self, replica: Any, place: int | None, error: Exception) -> None:
        self._ray.kill(replica)
        self._losses[place] = self._losses.get(place, 0) + 1
        if self._losses[place] >= LOSSES * (self._sizing.replicas if place is None else 1):
            what = "while they loaded the model" if place is None else "over one and the same batch"
            raise UserError(
                f"{self._losses[place]} replicas of {self._name} died {what}, perhaps for want of memory: try a ",
                "smaller ",
                Option("batch_size"),
                " or fewer ",
                Option("replicas"),
                ".",
            ) from error
        self._start()

    def _check(self, facts: Facts) -> None:
        """A replica on another node may have found other weights, data, files of methods or libraries."""
        known = self._facts or replace(facts, code=self._code)
        for field in fields(Facts):
            if field.name != "made" and getattr(facts, field.name) != getattr(known, field.name):
                raise UserError(
                    f"The nodes of the Ray cluster differ in {field.name} for {self._name}: every node needs the same "
                    "libraries and the same files of models, data and methods."
                )
        self._facts = known

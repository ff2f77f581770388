"""Results on disk: what was asked, what the model replied, and nothing that depends on when it ran.

Layout of a result folder:

    .vlmprune                             marks a folder that vlmprune may write to; locked by the process that writes
    comparison.json                       which runs the tables compare (see `Store.compare`)
    runs/MODEL/TASK/METHOD-KEY.jsonl      one line per sample, appended as replies come
    runs/MODEL/TASK/METHOD-KEY.json       written once, when every sample is done
    runs/MODEL/TASK/METHOD-KEY.verdicts.jsonl   what a judge said of the replies (`bench.verdicts`)
    judge.jsonl                           the judge's answers, by what it was asked (`scoring.judge`)

The key is a hash of everything that decides a run, so a run is never computed twice and never mistaken for another.
A process that is killed while it writes leaves an unfinished last line, which is dropped on reading. Readers compute
scores from the raw replies, so tables follow the current scorers, without a model.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from vlmprune.bench.verdicts import Said, read_verdicts, verdict_on
from vlmprune.core.budget import Keep
from vlmprune.core.errors import Option, UserError
from vlmprune.core.outputs import FOLDER_MARK, check_folder, is_our_folder, make_folder, write_whole

SCHEMA = 1
VANILLA = "vanilla"
_LATER = ("code", "pixels", "budget")  # fields that runs did not always have: empty, they are not in the key
_SYNC_EVERY = 8  # appends between two fsyncs; a killed process loses nothing either way, only a power cut could


@dataclass(frozen=True)
class Run:
    """One model, method and budget on one task, under conditions that are all named.

    Attributes:
        model: as the user named it.
        weights: revision or digest of the weights, and of the text tower's where one was given.
        dtype, attention: of the model.
        method: without its budget, "fastv@2"; "vanilla" for the unpruned model.
        recipe: the full recipe string, "fastv@2:0.222"; "vanilla". In both, a method from a file is named by its mark
            (`bench.marks`).
        keep: the budget asked for; 1.0 for vanilla, None when the recipe carries its own.
        positions: position policy asked for, None for the method's own.
        task, version, samples, n: the task, its version, a hash of its samples and their number.
        protocol: how the question is worded (`bench.protocol`).
        canvas: how generated scenes are drawn for the model; "" for data sets.
        generation: arguments of `generate`.
        seed: of the session, for a method that draws; None for one that does not, whose result no seed changes.
        batch_size: samples a batch; batches start at fixed samples.
        versions: of the libraries that compute.
        code: SHA-256 of the file of each method that comes from one, by mark.
        pixels: least and most pixels of a picture, "" where the processor has its own.
        budget: what `keep` counts, "mean" or "final" (`core.budget.BUDGETS`), "" for the method's own meaning.
    """

    model: str
    weights: str
    dtype: str
    attention: str
    method: str
    recipe: str
    keep: Keep | None
    positions: str | None
    task: str
    version: int
    samples: str
    n: int
    protocol: str
    canvas: str
    generation: Mapping[str, Any]
    seed: int | None
    batch_size: int
    versions: Mapping[str, str]
    code: Mapping[str, str] = field(default_factory=dict)
    pixels: str = ""
    budget: str = ""

    @property
    def key(self) -> str:
        """Hash of everything that decides the run."""
        values = {f.name: getattr(self, f.name) for f in fields(Run)}
        return _digest({name: value for name, value in values.items() if value or name not in _LATER})

    @property
    def setting(self) -> str:
        """Hash of everything but the method, its budget and its seed: runs of one setting may be compared."""
        later = (name for name in _LATER if not getattr(self, name))
        own = ("method", "recipe", "keep", "budget", "positions", "code", "seed", *later)
        return _digest({f.name: getattr(self, f.name) for f in fields(Run) if f.name not in own})


@dataclass(frozen=True)
class Result(Run):
    """A finished run, read back.

    Attributes:
        dimension, metric, chance: of the task; chance in percent of the primary metric.
        shape: widths and depths of the model, for FLOPs (`bench.shapes.Shape` as a dict), or None.
        made: device, Python and git commit it was computed with. Tables do not read it.
        text: what a text-guided method compared the image with (`RunReport.text`).
        left_out: recipes and tasks that could not be run on the model, with the reason, by recipe or name.
        files: file and class of each method that comes from a file, by mark, as the last command named them.
        records_path: the samples' file.
    """

    dimension: str = ""
    metric: str = ""
    chance: float = 0.0
    shape: Mapping[str, Any] | None = None
    made: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    records_path: Path = Path()

    @property
    def is_vanilla(self) -> bool:
        return self.recipe == VANILLA


@dataclass(frozen=True)
class Record:
    """One sample of a run.

    Attributes:
        id, question, kind, options, answers, group, category: of the sample.
        output: the raw reply.
        extracted, score: the answer found in it, and its score from 0.0 to 1.0; NaN while a judge has to give it.
        input_tokens: length of the prompt, visual tokens included, before pruning.
        visual_before: visual tokens of the full image.
        visual_encoded: visual tokens that the encoder made (fewer when the image was resized).
        visual_kept: after the last cut.
        visual_entering: visual tokens entering a decoder layer, mean over the layers.
        stages: (decoder layer, visual tokens after it) of each cut, layer 0 before the LLM.
        problem: why the sample could not be asked, in words; it is counted and never scored.
        facts: of the sample.
    """

    id: str
    question: str
    kind: str
    options: tuple[str, ...]
    answers: tuple[str, ...]
    group: str
    category: str
    output: str
    extracted: str | None
    score: float
    input_tokens: int
    visual_before: int
    visual_encoded: int
    visual_kept: int
    visual_entering: float
    stages: tuple[tuple[int, int], ...] = ()
    problem: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


class Store:
    """A result folder open for writing by one process.

    Args:
        folder: new, empty, or one of results.
        force: write into another, too.

    Raises:
        UserError: the folder must not or cannot be written, or another process is writing to it.
    """

    def __init__(self, folder: str | Path, *, force: bool = False) -> None:
        self.folder = Path(folder)
        self._appends = 0
        check_folder(self.folder, "results", force=force or _holds_results(self.folder))
        try:
            self._lock = (make_folder(self.folder) / FOLDER_MARK).open("a")
        except OSError as error:
            raise UserError(f"Results cannot be written to {str(self.folder)!r}: {error.strerror}.") from error
        if not _lock(self._lock):
            other = "Another run is writing to ", repr(str(self.folder)), ": wait for it, or give another "
            raise UserError(*other, Option("out"), ".")

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resume(self, run: Run, ids: Sequence[str]) -> int:
        """How many samples of the run are done; the file is cut to whole batches of them.

        Only whole batches count, so that a continued run forms the same batches as an uninterrupted one.
        """
        path = records_path(self.folder, run)
        if not path.exists():
            return 0
        lines = _complete_lines(path)
        good = 0
        while good < min(len(lines), len(ids)) and _id_of(lines[good]) == ids[good]:
            good += 1
        if good < len(ids):
            good -= good % run.batch_size
        size = sum(len(line) + 1 for line in lines[:good])
        if path.stat().st_size != size:
            os.truncate(path, size)
        return good

    def append(self, run: Run, records: Iterable[Record]) -> None:
        """Add the records of a batch."""
        path = records_path(self.folder, run)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(_values_of(record), ensure_ascii=False) + "\n" for record in records)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            self._appends += 1
            if self._appends % _SYNC_EVERY == 0:
                os.fsync(file.fileno())

    def is_finished(self, run: Run) -> bool:
        return records_path(self.folder, run).with_suffix(".json").exists()

    def finish(self, run: Run, **about: Any) -> None:
        """Write the run's result. A result that is there is left alone."""
        if not self.is_finished(run):
            content = {"schema": SCHEMA, "key": run.key, "setting": run.setting, "run": asdict(run), **about}
            write_json(records_path(self.folder, run).with_suffix(".json"), content)

    def compare(self, runs: Sequence[Run], files: Mapping[str, str] | None = None) -> None:
        """Name these runs' settings as the ones that tables show for their models and tasks.

        A folder may hold runs that must not stand in one table (other sample counts, library versions, weights).
        The last command decides; methods of earlier commands stay in the table where their setting is the same, but of
        a method from a file only its present code.

        Args:
            files: file and class of the runs' methods that come from files, by mark.
        """
        old, files = _read_comparison(self.folder), dict(files or {})
        files = {mark: file for mark, file in old["files"].items() if file not in files.values()} | files
        settings = {model: dict(tasks) for model, tasks in old["settings"].items()}
        for run in runs:
            settings.setdefault(run.model, {})[run.task] = run.setting
        methods = list(dict.fromkeys([*old["methods"], *(run.method for run in runs)]))
        content = {"schema": SCHEMA, "methods": methods, "settings": settings, "files": files}
        write_json(self.folder / _COMPARISON, content)


_COMPARISON = "comparison.json"


def load_results(folder: str | Path, every: bool = False) -> list[Result]:
    """The finished runs of a folder, in table order: model, task, method, from the largest budget down.

    Args:
        folder: what `--out` named.
        every: also runs that the tables do not show, by their setting or as code that is out of date (`Store.compare`).

    Raises:
        UserError: there is no such folder, or no finished run in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"{str(folder)!r} is a file, and not a result folder.")
        raise UserError(f"There is no result folder {str(folder)!r}: run {bench_into(folder)} to make it.")
    if any(folder.iterdir()) and not is_our_folder(folder) and not (folder / _COMPARISON).exists():
        raise UserError(f"{str(folder)!r} is not a result folder: give one that `vlmprune bench --out` has filled.")
    results = [result for path in sorted(folder.glob("runs/*/*/*.json")) if (result := _read_result(path))]
    comparison = _read_comparison(folder)
    if not every:
        shown = comparison["settings"]
        results = [r for r in results if r.setting == shown.get(r.model, {}).get(r.task)]
        results = [r for r in results if r.code.keys() <= comparison["files"].keys()]
    named = comparison["files"]
    results = [replace(r, files={mark: named[mark] for mark in r.code if mark in named}) for r in results]
    if not results:
        raise UserError(f"There is no finished run in {str(folder)!r}: run {bench_into(folder)} first.")
    models, methods = list(comparison["settings"]), [VANILLA, *comparison["methods"]]
    tasks = {model: list(of) for model, of in comparison["settings"].items()}

    def place(result: Result) -> tuple[Any, ...]:
        return (
            _index(models, result.model),
            _index(tasks.get(result.model, []), result.task),
            _index(methods, result.method),
            result.budget,
            -float(result.keep or 0),
            result.recipe,
            result.key,
        )

    return sorted(results, key=place)


def load_records(result: Result) -> list[Record]:
    """The samples of a finished run, with scores computed again from the raw replies.

    Raises:
        UserError: samples are missing or broken.
    """
    try:
        said = read_verdicts(result.records_path)
        records = [_record(line, said) for line in _complete_lines(result.records_path)]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{str(result.records_path)!r} has a line that is not a sample: delete it and its .json, and run again."
        ) from None
    if len(records) < result.n:
        raise UserError(f"{str(result.records_path)!r} has lost samples: delete the .json beside it and run again.")
    return records[: result.n]


def _values_of(record: Record) -> dict[str, Any]:
    """What a line holds: `problem` and `facts` only where there are any, and null for a score that is not known."""
    score = None if math.isnan(record.score) else record.score
    values = {**vars(record), "score": score}
    return {name: value for name, value in values.items() if value or name not in ("problem", "facts")}


def _record(line: bytes, said: Mapping[str, Said]) -> Record:
    values = json.loads(line)
    for name in ("options", "answers"):
        values[name] = tuple(values[name])
    values["stages"] = tuple((layer, tokens) for layer, tokens in values["stages"])
    record = Record(**values)
    return scored(record, said.get(record.id))


def scored(record: Record, said: Said | None) -> Record:
    """A record with its score of today: by the rules, or by what a judge has said of it."""
    verdict, problem = verdict_on(record, said)
    return replace(record, extracted=verdict.extracted, score=verdict.score, problem=record.problem or problem)


def records_path(folder: Path, run: Run) -> Path:
    """The samples' file of a run."""
    return folder / "runs" / _slug(run.model) / _slug(run.task) / f"{_slug(run.recipe)}-{run.key[:12]}.jsonl"


def write_json(path: Path, content: Any) -> None:
    """Write a small JSON file: a reader sees either nothing or all of it."""
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")


def _read_result(path: Path) -> Result | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content["schema"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{str(path)!r} is not a result of vlmprune bench: delete it.") from None
    if schema != SCHEMA:
        raise UserError(f"{str(path)!r} has result schema {schema}; this vlmprune reads schema {SCHEMA}.")
    records = path.with_suffix(".jsonl")
    if not records.exists():
        return None
    try:
        about = {name: content[name] for name in ("dimension", "metric", "chance", "shape", "made")}
        return Result(
            **content["run"],
            **about,
            text=content.get("text"),
            left_out=content.get("left_out", {}),
            records_path=records,
        )
    except (KeyError, TypeError):
        raise UserError(f"{str(path)!r} is not a result of vlmprune bench: delete it.") from None


def _read_comparison(folder: Path) -> dict[str, Any]:
    path = folder / _COMPARISON
    if not path.exists():
        return {"methods": [], "settings": {}, "files": {}}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            "methods": list(content["methods"]),
            "settings": {m: dict(t) for m, t in content["settings"].items()},
            "files": dict(content.get("files", {})),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{str(path)!r} cannot be read: delete it, and run {bench_into(folder)} again.") from None


def _holds_results(folder: Path) -> bool:
    """Whether its comparison is one of ours."""
    try:
        return (folder / _COMPARISON).exists() and bool(_read_comparison(folder)["settings"])
    except UserError:
        return False


def bench_into(folder: str | Path) -> str:
    """The command that fills a result folder, for hints."""
    return f"`vlmprune bench --out {shlex.quote(str(folder))}`"


def _complete_lines(path: Path) -> list[bytes]:
    """Lines that were written to their end."""
    return path.read_bytes().split(b"\n")[:-1]


def _id_of(line: bytes) -> str | None:
    try:
        return json.loads(line)["id"]
    except (ValueError, KeyError, TypeError):
        return None


def _slug(text: str) -> str:
    return re.sub(r"[^\w.@=+-]+", "_", text).strip("_.")[-80:] or "_"


def _digest(values: Mapping[str, Any]) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def _index(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def _lock(file: Any) -> bool:
    """Take the folder; the system gives it back when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows: nothing to lock with, so two runs in one folder are the user's care
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

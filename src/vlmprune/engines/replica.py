"""What runs inside an actor of a Ray cluster: a worker that is loaded by a call, and answers by value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from vlmprune.bench.load import load_model
from vlmprune.bench.plan import Plan
from vlmprune.bench.store import Record
from vlmprune.bench.worker import BESIDE, Facts, Then, Unit, Worker
from vlmprune.core.errors import UserError
from vlmprune.core.outputs import make_folder


class Replica:
    """A user's mistake is an answer, too: raised, it would come back as an error of Ray's."""

    worker: Worker

    def open(self, plan: Plan, name: str, folder: str) -> Facts | UserError:
        """Load the model. Relative paths of the plan are from `folder`, where the command was given."""
        if Path(folder).is_dir():
            os.chdir(folder)
        try:
            self.worker = Worker(plan, load_model(name, plan.device, plan.text_tower), plan.variants())
            return self.worker.facts
        except UserError as error:
            return error

    def run(self, unit: Unit) -> list[list[Record]] | UserError:
        """The records of each variant of a unit."""
        try:
            return list(self.worker.run(unit))
        except UserError as error:
            return error

    def then(self, then: Then, files: Mapping[str, bytes]) -> dict[str, bytes] | UserError:
        """The files that `then` leaves in `BESIDE`, where it finds `files`."""
        with TemporaryDirectory() as folder:
            make_folder(Path(folder))  # what an earlier model left there is ours
            beside = Path(folder) / BESIDE
            if files:
                beside.mkdir()
            for name, content in files.items():
                (beside / name).write_bytes(content)
            try:
                then(Path(folder), self.worker.loaded, self.worker.recipes)
            except UserError as error:
                return error
            return {path.name: path.read_bytes() for path in beside.glob("*")}

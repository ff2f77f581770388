"""The scripts of examples/serving start servers that vLLM's own parser of its command line understands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import PATIENCE, ROOT

SERVING = ROOT / "examples/serving"
INSTEAD = f"""#!{sys.executable}
# As `vlmprune`, but says which command it would become.
import json, sys
from vlmprune import cli
from vlmprune.serve.vllm import launch

launch.run_server = lambda command: print(json.dumps(command))
sys.exit(cli.main(sys.argv[1:]))
"""
MEANT: dict[str, tuple[list[str], dict[str, Any]]] = {
    "one_machine.sh": (["2"], {"data_parallel_size": 2, "data_parallel_backend": "mp"}),
    "several_machines.sh": (
        ["4", "2"],
        {"data_parallel_size": 4, "data_parallel_size_local": 2, "data_parallel_backend": "ray"},
    ),
}


def test_every_script_is_tested() -> None:
    assert sorted(path.name for path in SERVING.iterdir()) == sorted(MEANT)


@pytest.mark.parametrize("script", MEANT)
def test_vllm_reads_the_command(script: str, variables: dict[str, str], tmp_path: Path) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    given, meant = MEANT[script]
    stub = tmp_path / "vlmprune"
    stub.write_text(INSTEAD)
    stub.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), variables["PATH"]])
    done = subprocess.run(
        ["sh", str(SERVING / script), "llava", *given],
        env=variables | {"PATH": path}, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    command = json.loads(done.stdout.splitlines()[-1])
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(command[command.index("serve") + 1 :])
    validate_parsed_serve_args(arguments)
    assert arguments.hf_overrides["vlmprune"]["recipe"] == "divprune:0.25"
    meant = {**meant, "port": 8000, "host": "127.0.0.1", "max_model_len": 4096}
    assert {name: getattr(arguments, name) for name in meant} == meant

"""`vllm run-batch` prunes under the overrides, without vlmprune's middleware: budgets come in vLLM's own field."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from vlmprune.assets import embedded_path
from vlmprune.serve import overrides

from .conftest import PATIENCE, Prompt
from .server import VLLM, body_of

MORE = ({}, {"mm_processor_kwargs": {"vlmprune_keep": "0.5"}}, {"vlmprune_keep": 0.5})


def test_run_batch_prunes(variables: dict[str, str], prompts: list[Prompt], tmp_path: Path) -> None:
    picture = Path(prompts[0].pictures[0]).read_bytes()
    asked = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for number, body in enumerate(body_of(prompts[0].question, [picture], **more) for more in MORE)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, asked)))
    given = json.dumps(overrides("divprune", 0.25, request_keep=True))
    command = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "run-batch", "--trust-request-mm-kwargs",
        "-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"),
        "--model", str(embedded_path("llava")), "--served-model-name", "llava", "--hf-overrides", given, *VLLM,
    ]  # fmt: skip
    own = {name: value for name, value in variables.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-6000:]
    replies = [json.loads(line)["response"]["body"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    engines, half, ignored = (reply["usage"]["prompt_tokens"] for reply in replies)
    assert half - engines == 98 - 49 and ignored == engines

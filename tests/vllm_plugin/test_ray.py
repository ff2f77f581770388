"""vLLM places engines, and the processes of one, on a local Ray cluster; each finds the plugin there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from os import pathsep
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from vlmprune.assets import load_embedded

from .conftest import ROOT, Engine, Prompt, Reference
from .server import VLLM, ask, body_of, free_port, metric, running, text_of

HEAD = """
import json, ray, sys
ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
print(json.dumps({"address": ray.get_runtime_context().gcs_address, "ip": ray.util.get_node_ip_address()}), flush=True)
sys.stdin.read()
"""
ADDED = f"""#!{sys.executable}
# As `vlmprune`, with options for a small model on CPUs behind those of the script.
import sys
from vlmprune import cli

sys.exit(cli.main([*sys.argv[1:], {{}}]))
"""
WHOLE, KEPT = 196, 49  # tokens of an image under the script's budget


@pytest.fixture(scope="module")
def cluster(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables of a process that finds a Ray cluster of one machine with two GPUs, which are CPUs."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed here: python3 tools/extras.py vllm makes an environment")
    folder = tmp_path_factory.mktemp("platform")
    shutil.copy(ROOT / "tests/vllm_plugin/cpus_on_ray.py", folder)
    (named := folder / "cpus_on_ray-0.dist-info").mkdir()
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: cpus_on_ray\nVersion: 0\n")
    (named / "entry_points.txt").write_text("[vllm.platform_plugins]\ncpus_on_ray = cpus_on_ray:platform\n")
    own = variables | {
        "PYTHONPATH": pathsep.join([variables["PYTHONPATH"], str(folder)]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32),
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", HEAD], env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as head:
        assert head.stdout is not None
        told = json.loads(head.stdout.readline())
        yield own | {"RAY_ADDRESS": told["address"], "VLLM_HOST_IP": told["ip"]}
        head.communicate(timeout=60)  # the end of its input ends it, and the cluster with it


def test_vllms_own_platform_for_cpus_gives_ray_nothing_to_count() -> None:
    from vllm.platforms.cpu import CpuPlatform

    assert not CpuPlatform.ray_device_key, "then cpus_on_ray.py is not needed"


def test_the_script_starts_engines_on_a_cluster(
    cluster: dict[str, str], prompts: list[Prompt], reference: Reference, tmp_path: Path
) -> None:
    port = free_port()
    stub = tmp_path / "vlmprune"
    stub.write_text(ADDED.format(repr([*VLLM, "--port", str(port)])[1:-1]))
    stub.chmod(0o755)
    own = cluster | {"PATH": pathsep.join([str(tmp_path), cluster["PATH"]])}
    script = ["sh", str(ROOT / "examples/serving/several_machines.sh"), "llava", "2", "2"]
    bodies = [body_of(one.question, [Path(name).read_bytes() for name in one.pictures]) for one in prompts] * 2
    with running(script, port, own, tmp_path) as at:
        with ThreadPoolExecutor(len(bodies)) as clients:
            replies = [*clients.map(lambda body: ask(at, body), bodies)]
        for engine in ("0", "1"):
            assert metric(at, "request_success_total", engine=engine) > 0, "one engine had nothing to do"
        images = 2 * sum(len(one.pictures) for one in prompts)
        assert metric(at, "visual_tokens_before_total") == WHOLE * images
        assert metric(at, "visual_tokens_after_total") == KEPT * images
    assert "(RayWorkerProc pid=" in (tmp_path / "log.txt").read_text(), "no process was Ray's"
    decode: Any = load_embedded("llava")[1].tokenizer.decode
    due = [decode(tokens, skip_special_tokens=True).strip() for tokens in reference("llava", "divprune:0.25")]
    assert [text_of(reply) for reply in replies] == due * 2


def test_a_cluster_shares_out_one_model(
    cluster: dict[str, str], engine: Engine, reference: Reference, variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in cluster.items():
        monkeypatch.setitem(variables, name, value)
    [replies] = engine("llava", ["vispruner:0.25"], tensor_parallel_size=2, distributed_executor_backend="ray")
    assert [reply.tokens for reply in replies] == reference("llava", "vispruner:0.25")

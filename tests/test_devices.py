"""Where a model lives and what its numbers are: half precision, offloading, several devices, int8, compiled code."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.utils import send_to_device
from harness import RAGGED, TOLERANCE, blind, built, generate, inputs_of, largest, runnable
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import CompileConfig
from versions import CACHE

import vlmprune
from vlmprune.models import adapter_for
from vlmprune.runtime import decoder_reading, encoder_reading
from vlmprune.testing import FAMILIES

BOTH = "divprune:0.7 > random@1:0.6 > fastv@2:0.5"


# ---------------------------------------------------------------------- half precision


def exact_maps(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None, softcap: float | None = None) -> Tensor:
    """Attention [B, H, R, S] in float64."""
    key = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    logits = query.double() @ key.mT * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return (logits if mask is None else logits.masked_fill(~mask[:, None], float("-inf"))).softmax(-1)


def exact_rows(
    query: Tensor,
    key: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    heads: str = "mean",
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    assert sinks is None  # no family of the matrix has any
    maps = exact_maps(query, key, scaling, mask, softcap)
    return maps.mean(1) if heads == "mean" else maps


def exact_received(query: Tensor, key: Tensor, scaling: float, real: Tensor | None = None) -> Tensor:
    if real is None:
        return exact_maps(query, key, scaling, None).mean((1, 2))
    maps = exact_maps(query, key, scaling, real[:, None].expand(-1, query.shape[2], -1))
    return torch.stack([one[:, rows].mean((0, 1)) for one, rows in zip(maps, real, strict=True)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_scored_in_single(family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each statistic is what float64 makes of the half-precision queries and keys, far closer than half precision."""
    errors: dict[str, list[float]] = {"rows": [], "received": []}

    def checked(kind: str, function: Callable[..., Tensor], exact: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(query: Tensor, key: Tensor, *args: Any) -> Tensor:
            found = function(query, key, *args)
            assert query.dtype == dtype and found.dtype == torch.float32
            errors[kind].append(largest(found, exact(query, key, *args)))
            return found

        return run

    inputs, model = inputs_of(family, RAGGED), built(family)
    specs = ["hiprune:0.7 > fastv@2:0.5", *(["visionzip:0.5"] if adapter_for(model).has_cls else [])]
    specs = runnable(family, specs) or ["divprune:0.7 > fastv@2:0.5"]
    expected = []
    for spec in specs:
        with torch.no_grad(), vlmprune.prune(model, spec) as session:
            model(**inputs)
        expected.append(session.last.tokens)
    for module in (encoder_reading, decoder_reading):
        monkeypatch.setattr(module, "attention_rows", checked("rows", module.attention_rows, exact_rows))
    received = checked("received", encoder_reading.received_attention, exact_received)
    monkeypatch.setattr(encoder_reading, "received_attention", received)
    half = copy.deepcopy(model).to(dtype)
    inputs |= {key: value.to(dtype) for key, value in inputs.items() if key.startswith("pixel_values")}
    for spec, tokens in zip(specs, expected, strict=True):
        with torch.no_grad(), vlmprune.prune(half, spec) as session:
            logits = half(**inputs).logits
        assert bool(torch.isfinite(logits).all()) and logits.dtype == dtype
        assert session.last.tokens == tokens
    assert max(errors["received"], default=float(not blind(family))) < 1e-6 and max(errors["rows"]) < 1e-6


# ---------------------------------------------------------------------- accelerate: offloaded to the CPU and to disk


OFFLOADED = {
    "merging": "visionzip:0.5",
    "both": BOTH,
    "three stages": "hiprune:0.7 > fastv@2:0.6 > random@3:3",
}


def text_layers(model: Any) -> str:
    layers = adapter_for(model).decoder_layers
    return next(name for name, module in model.named_modules() if module is layers)


def placed(model: Any, layers: list[Any], of: Callable[[str], Any]) -> dict[str, Any]:
    """A device map: decoder layers in turn, and everything else by its name, in pieces as large as that allows."""
    inside, plan = text_layers(model), {}

    def walk(prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            whole = prefix + name
            if whole == inside:
                plan.update({f"{whole}.{i}": layers[i % len(layers)] for i in range(len(child))})
            elif inside.startswith(whole + "."):
                walk(whole + ".", child)
            else:
                plan[whole] = of(whole)
        for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            plan[prefix + name] = of(prefix + name)

    walk("", model)
    return plan


def offloaded(family: str, how: str, folder: Path) -> Any:
    model = FAMILIES[family].build()
    if how == "cpu":
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    plan = placed(model, ["cpu", "disk"], lambda name: "cpu")
    return accelerate.dispatch_model(model, plan, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("how", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "qwen3_5", "gemma3"])
def test_offloaded_models_give_the_same_bits(family: str, how: str, tmp_path: Path) -> None:
    """Weights wait elsewhere and come layer by layer; accelerate's hooks also rebuild what is handed from one module
    to the next, the encoder's output among it."""
    plain, model, inputs = built(family), offloaded(family, how, tmp_path), inputs_of(family, RAGGED)
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    for spec in OFFLOADED.values():
        results = []
        for one in (plain, model):
            with vlmprune.prune(one, spec) as session:
                results.append((*generate(one, inputs), session.last.kept))
        assert torch.equal(results[0][1], results[1][1])
        assert all(torch.equal(a, b) for x, y in zip(results[0][2], results[1][2]) for a, b in zip(x, y))
    encoded = vlmprune.encode_images(model, inputs, OFFLOADED.values())
    with vlmprune.prune(model, spec):
        assert torch.equal(generate(model, encoded.inputs())[1], results[1][1])
    assert torch.equal(generate(model, inputs)[1], generate(plain, inputs)[1])  # undone
    assert hooks == [len(module._forward_pre_hooks) for module in model.modules()]


# ---------------------------------------------------------------------- several devices, on a machine that has one


class Elsewhere(Tensor):
    """A tensor that says it is on another device and whose numbers are on the CPU.

    Only the device type "meta" can be named without a driver, so `meta:0` and `meta:1` stand for two GPUs.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> Elsewhere:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=device,
        )  # fmt: skip

    def __init__(self, held: Tensor, device: torch.device) -> None:
        self.held = held

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_there(func, args, kwargs or {})


def to_device(value: Tensor, device: torch.device) -> Tensor:
    return value if device.type == "cpu" or isinstance(value, Elsewhere) else Elsewhere(value, device)


def here(value: Any) -> Any:
    return tree_map_only(Elsewhere, lambda one: one.held, value)


def run_there(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the numbers; refuse what a GPU refuses: operands on different devices.

    As there, only single numbers and indices may also lie on the CPU.
    """
    name, tensors = func._schema.name, [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    operands = tensors
    if name.startswith(("aten::index", "aten::_index_put")) and isinstance(args[1], list | tuple):
        operands = [x for x in tensors if x.device.type != "cpu" or not any(x is index for index in args[1])]
    devices = {x.device for x in operands if x.dim() > 0 or x.device.type != "cpu"}
    if len(devices) > 1 and name not in ("aten::_to_copy", "aten::copy_"):
        raise RuntimeError(f"{name}: " + ", ".join(f"{tuple(x.shape)} on {x.device}" for x in tensors))
    if kwargs.get("device") is not None:
        device, kwargs = torch.device(kwargs["device"]), {**kwargs, "device": "cpu"}
    elif name in ("aten::_to_copy", "aten::copy_"):
        device = tensors[0].device
    else:
        device = next(iter(devices), torch.device("cpu"))
    with _disable_current_modes():
        out = func(*here(args), **here(kwargs))
    if func._schema.is_mutable and isinstance(out, Tensor):  # in place: the first argument, as it was
        return args[0]
    return tree_map_only(Tensor, lambda one: to_device(one, device), out)


class Devices(TorchDispatchMode):
    """Operations that only name a device (torch.arange, torch.tensor) make tensors there too."""

    def __enter__(self) -> Devices:
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_there(func, args, kwargs or {})


HOST, ONE, TWO = torch.device("cpu"), torch.device("meta:0"), torch.device("meta:1")


@cache
def spread(family: str, tower: torch.device, layers: tuple[torch.device, ...], rest: torch.device, main: torch.device):
    """A model over several devices, inputs moved to each part before it runs, as accelerate's hooks do."""
    model = FAMILIES[family].build()
    seen = ("vision", "visual", "tower", "projector", "connector")
    plan = placed(model, list(layers), lambda name: tower if any(word in name for word in seen) else rest)

    def move(module: nn.Module, device: torch.device) -> None:
        original = module.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            moved = send_to_device(kwargs, device, skip_keys=[CACHE])
            return original(*send_to_device(args, device), **moved)

        module.forward = forward  # type: ignore[method-assign]

    for name, device in plan.items():
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        if leaf not in owner._modules:
            parts: list[nn.Module] = [owner]
        else:
            parts = list(owner.get_submodule(leaf).modules())
            move(owner.get_submodule(leaf), device)
        for part in parts:
            for store in (part._parameters, part._buffers):
                for key, value in list(store.items()):
                    if value is not None and (part is not owner or key == leaf):
                        held = to_device(value.detach(), device)
                        store[key] = nn.Parameter(held, requires_grad=False) if store is part._parameters else held
    move(model, main)
    return model


@pytest.mark.parametrize(
    "devices",
    [
        (ONE, (HOST, HOST, TWO, TWO), HOST, HOST),
        (TWO, (ONE, TWO, ONE, TWO), ONE, ONE),
        (HOST, (ONE, ONE, TWO, TWO), ONE, HOST),
    ],
    ids=["tower apart", "layers by turns", "inputs apart"],
)
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl", "gemma3"])
def test_indices_follow_the_device_of_what_they_index(family: str, devices: tuple[Any, ...]) -> None:
    """Vision tower, embeddings and decoder layers on different devices: no operation meets tensors of two."""
    plain, model, inputs = built(family), spread(family, *devices), inputs_of(family, RAGGED)
    with torch.no_grad(), Devices():
        assert largest(here(generate(model, inputs)[1]), generate(plain, inputs)[1]) < TOLERANCE
    for spec in OFFLOADED.values():
        with vlmprune.prune(plain, spec, positions="compact"):
            tokens, logits = generate(plain, inputs)
        with torch.no_grad(), Devices(), vlmprune.prune(model, spec, positions="compact"):
            found = here(generate(model, inputs))
        assert torch.equal(found[0], tokens) and largest(found[1], logits) < TOLERANCE


# ---------------------------------------------------------------------- int8


@cache
def int8(family: str) -> Any:
    return quantize_dynamic(copy.deepcopy(built(family)), {nn.Linear}, dtype=torch.qint8)


def apart(a: Tensor, b: Tensor) -> float:
    """Root mean square of the differences."""
    return float((a - b).detach().square().mean().sqrt())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl", "paligemma"])
def test_int8_models(family: str) -> None:
    """Dynamically quantised linears: the same bits at keep=1, and pruned runs as near to float as unpruned ones.

    Each linear rounds by the largest activation of the whole sequence, so a shorter sequence is rounded differently
    and no reference is exact. The bound is twice what rounding does to the unpruned model, a fraction of what pruning
    does; what is kept is the same in both, as `random` draws by the prompt alone.
    """
    model, plain, inputs = int8(family), built(family), inputs_of(family, RAGGED)
    vanilla, floating = generate(model, inputs), generate(plain, inputs)
    for name in ("divprune", "visionzip", "fastv@2", "dart@2"):
        with vlmprune.prune(model, f"{name}:1.0"):
            ids, logits = generate(model, inputs)
        assert torch.equal(ids, vanilla[0]) and torch.equal(logits, vanilla[1])
        with vlmprune.prune(model, f"{name}:0.5") as session:
            generate(model, inputs)
        assert all(before > after for before, after in session.last.tokens)
    rounding = apart(vanilla[1][:, 0], floating[1][:, 0])
    for spec in ("random:0.2", "random@1:2", "random:0.5 > random@2:1"):
        first, kept = [], []
        for one in (model, plain):
            with vlmprune.prune(one, spec) as session:
                first.append(generate(one, inputs)[1][:, 0])
            kept.append(session.last.kept)
        assert all(torch.equal(a, b) for x, y in zip(*kept, strict=True) for a, b in zip(x, y, strict=True))
        assert apart(*first) < 2 * rounding
        assert apart(first[0], vanilla[1][:, 0]) > 4 * rounding  # it did prune


# ---------------------------------------------------------------------- compiled decoding


@pytest.mark.parametrize("family", ["llava", pytest.param("qwen3_vl", marks=pytest.mark.slow)])
def test_compiled_decoding_with_a_static_cache(family: str) -> None:
    """`generate` compiles decoding where a cache has a fixed size; here with the compiler's front end alone, as there
    is no toolchain to count on. The runtime's hooks are traced too, and traced anew when they are gone."""
    model, inputs = built(family), inputs_of(family, RAGGED)
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True  # transformers' own switch for tests on CPUs
    compiled: dict[str, Any] = {"cache_implementation": "static", "compile_config": config}
    torch._dynamo.reset()
    try:
        plain = generate(model, inputs)
        assert largest(generate(model, inputs, **compiled)[1], plain[1]) < TOLERANCE
        with vlmprune.prune(model, BOTH):
            tokens, logits = generate(model, inputs)
            again = generate(model, inputs, **compiled)
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            once_more = generate(model, inputs, **compiled)
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # nothing is compiled again
        assert torch.equal(tokens, again[0]) and largest(logits, again[1]) < TOLERANCE
        assert torch.equal(tokens, once_more[0]) and largest(logits, once_more[1]) < TOLERANCE
        assert sum(torch._dynamo.utils.counters["stats"].values()) > 0
        assert largest(generate(model, inputs, **compiled)[1], plain[1]) < TOLERANCE
    finally:
        torch._dynamo.reset()


# ---------------------------------------------------------------------- the matrix for GPUs


@pytest.fixture(scope="module")
def matrix() -> Any:
    path = Path(__file__).parent.parent / "benchmarks" / "gpu_matrix.py"
    spec = importlib.util.spec_from_file_location("gpu_matrix", path)
    assert spec is not None and spec.loader is not None
    sys.modules["gpu_matrix"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="what it does on a CPU")
def test_the_gpu_matrix_runs_on_a_cpu(matrix: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "matrix.json"
    assert matrix.main(["--models", "llava", "--new-tokens", "2", "--out", str(out)]) == 0
    cells = json.loads(out.read_text())["cells"]
    ran = [cell for cell in cells if cell["status"] != "skipped"]
    assert {cell["check"] for cell in ran} == {"identity", "cached", "oracle", "compiled"}
    assert all(cell["status"] == "ok" and cell["difference"] <= cell["limit"] for cell in ran)
    assert {cell["attention"] for cell in cells if cell["status"] == "skipped"} == {"flash_attention_2"}
    shown = capsys.readouterr().out
    assert f"{len(cells)}/{len(cells)} llava" in shown and f"{len(cells)} checks, 0 failed" in shown


def test_a_failing_check_stops_no_other(matrix: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Any) -> Any:
        raise RuntimeError("out of luck")

    def wrong(subject: Any) -> Any:
        return matrix.Found(float("nan"), 1.0)

    out = tmp_path / "matrix.json"
    monkeypatch.setitem(matrix.CHECKS, "identity", (broken, torch.bfloat16))
    monkeypatch.setitem(matrix.CHECKS, "cached", (wrong, torch.bfloat16))
    assert matrix.main(["--models", "llava", "--checks", "identity,cached,oracle", "--out", str(out)]) == 1
    cells = {c["check"]: c for c in json.loads(out.read_text())["cells"] if c["status"] != "skipped"}
    assert [cells[check]["status"] for check in ("identity", "cached", "oracle")] == ["error", "failed", "ok"]
    assert "out of luck" in cells["identity"]["detail"]["error"]
    with pytest.raises(SystemExit):
        matrix.main(["--models", "no such model"])

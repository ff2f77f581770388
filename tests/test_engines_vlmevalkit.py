"""The example for VLMEvalKit, on a stand-in for the one class that it takes from there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_folder import save_llava

from vlmprune import prune
from vlmprune.bench.load import load_model

ADAPTER = Path(__file__).parents[1] / "examples" / "vlmevalkit_adapter.py"


class BaseModel:
    """As VLMEvalKit calls its models: a message of parts that have a type and a value, and the data set's name."""

    allowed_types = ("text", "image")

    def generate(self: Any, message: list[dict[str, str]], dataset: str | None = None) -> str:
        assert all(part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("vlmeval", "vlmeval.vlm", "vlmeval.vlm.base"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["vlmeval.vlm.base"], "BaseModel", BaseModel, raising=False)
    spec = importlib.util.spec_from_file_location("vlmprune_of_vlmevalkit", ADAPTER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VlmPrune


def test_replies_are_those_of_generate(adapter: Any, tmp_path: Path) -> None:
    folder = str(save_llava(tmp_path / "model"))
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    question = "what color is the circle ?"
    message = [{"type": "image", "value": str(tmp_path / "a.png")}, {"type": "text", "value": question}]
    loaded, said = load_model(folder), {}
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = loaded.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = loaded.processor(text=text, images=Image.open(tmp_path / "a.png"), return_tensors="pt")
    for method, keep in ((None, None), ("fastv", 0.2), ("random", 0.1)):
        one = adapter(folder, method, keep, max_new_tokens=5)
        said[method] = one.generate(message, "POPE")
        with torch.no_grad():
            if method is None:
                ids = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=5)
            else:
                with prune(loaded.model, method, keep=keep):
                    ids = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=5)
        new = ids[0, inputs["input_ids"].shape[1] :]
        assert said[method] == loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert len(set(said.values())) > 1
    with pytest.raises(ValueError, match="pictures only"):
        one.generate_inner([{"type": "video", "value": "a.mp4"}])
    assert one.generate([{"type": "text", "value": question}])

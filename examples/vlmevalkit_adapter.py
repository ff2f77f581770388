"""vlmprune as a model of VLMEvalKit, which has no entry point for models: a file to copy.

1. Copy this file to `vlmeval/vlm/vlmprune.py` in a checkout of VLMEvalKit (github.com/open-compass/VLMEvalKit).
2. In `vlmeval/vlm/__init__.py` add `from .vlmprune import VlmPrune`.
3. In `vlmeval/config.py` add entries to `supported_VLM`, one for vanilla and one for each method and budget:

       "llava-1.5-7b": partial(VlmPrune, model_path="llava-hf/llava-1.5-7b-hf"),
       "llava-1.5-7b-divprune-0.222": partial(
           VlmPrune, model_path="llava-hf/llava-1.5-7b-hf", method="divprune", keep=0.222
       ),

4. `python run.py --data POPE --model llava-1.5-7b llava-1.5-7b-divprune-0.222`

VLMEvalKit names its files of replies after the entry alone: name the method and the budget in it, and take another name
when you change them. The prompts are VLMEvalKit's general ones; the wordings of its own models for a benchmark are not
used. It was written from VLMEvalKit 0.1.0. vlmprune's tests run it on a stand-in for the one class that it takes from
there, not inside VLMEvalKit.
"""

from contextlib import nullcontext

import torch
from PIL import Image
from vlmeval.vlm.base import BaseModel

import vlmprune
from vlmprune.bench.load import load_model
from vlmprune.bench.protocol import generation_kwargs

IMAGE = {"type": "image"}


class VlmPrune(BaseModel):
    """A model of transformers, unpruned without a method.

    Args:
        model_path: an embedded model's name, a folder, or a hub id.
        method: a method, recipe, preset or FILE.py:Class.
        keep: share or number of visual tokens to keep.
        max_new_tokens: length of a reply.
    """

    INSTALL_REQ = False
    INTERLEAVE = True

    def __init__(self, model_path, method=None, keep=None, max_new_tokens=512, **options):
        super().__init__()
        loaded = load_model(model_path)
        self.model, self.processor = loaded.model, loaded.processor
        self.method, self.options = method, {"keep": keep, "tokenizer": self.processor, **options}
        self.arguments = generation_kwargs(max_new_tokens)

    def session(self):
        """An unopened session; None without a method."""
        return None if self.method is None else vlmprune.prune(self.model, self.method, **self.options)

    @torch.no_grad()
    def generate_inner(self, message, dataset=None):
        """The reply to a message of VLMEvalKit: parts of type image (a path) or text."""
        if any(part["type"] not in ("image", "text") for part in message):
            raise ValueError("This adapter asks about pictures only.")
        images = [Image.open(part["value"]).convert("RGB") for part in message if part["type"] == "image"]
        texts = [part["value"] for part in message if part["type"] == "text"]
        content = [{"type": "text", "text": part["value"]} if part["type"] == "text" else IMAGE for part in message]
        chat = [{"role": "user", "content": content}]
        prompt = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        inputs = self.processor(text=prompt, images=images or None, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        session = self.session()
        if session is not None:
            session.question = ["\n".join(texts)]
        with session or nullcontext():
            ids = self.model.generate(**inputs, **self.arguments)
        new = ids[0, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(new, skip_special_tokens=True).strip()

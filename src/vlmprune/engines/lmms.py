"""vlmprune as a model of lmms-eval.

lmms-eval finds it by an entry point: `lmms_eval --model vlmprune --model_args pretrained=FOLDER,method=fastv,keep=64`.
Written for lmms-eval 0.7 (github.com/EvolvingLMMs-Lab/lmms-eval, `api/model.py` and
`models/chat/huggingface.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages

from vlmprune.bench.load import Loaded, library_versions, load_model
from vlmprune.bench.marks import code_of, recorded
from vlmprune.bench.protocol import generation_kwargs
from vlmprune.bench.questions import in_batches
from vlmprune.core.budget import Keep
from vlmprune.core.errors import UserError
from vlmprune.core.recipe import Recipe, recipe

LENGTH = 1024  # tokens of a reply, where a task does not say


@dataclass(frozen=True)
class Question:
    """A request as it is put to the model.

    Attributes:
        place: among the requests.
        messages: of the chat, in the form of transformers' templates.
        text: of the user, for methods that read the question.
        images: in their order.
        settings: of the generation, as the task gives them.
    """

    place: int
    messages: list[dict[str, Any]]
    text: str
    images: list[Any]
    settings: Mapping[str, Any]


class PrunedModel(lmms):
    """A model of transformers, pruned or not.

    Args:
        pretrained: an embedded model's name, a folder or a hub id.
        method: a method, recipe, preset or FILE.py:Class; without one nothing is pruned.
        keep: share or number of visual tokens to keep, where the method does not carry it.
        positions: original or compact; the method's own without it.
        seed: of methods that draw.
        text_tower: the CLIP model whose vision tower the model has, for methods that read the question.
        batch_size, device: as lmms-eval gives them.
        loaded: the model, instead of loading one.

    Raises:
        UserError: the model cannot be loaded, the method cannot act on it, or an argument is unknown.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "llava",
        method: str | Recipe | None = None,
        keep: Keep | None = None,
        positions: str | None = None,
        seed: int = 0,
        text_tower: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        loaded: Loaded | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        unknown.pop("max_batch_size", None)  # lmms-eval always gives it
        if unknown:
            raise UserError(f"vlmprune has no argument {next(iter(unknown))!r}: see vlmprune.engines.lmms.PrunedModel.")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("vlmprune runs lmms-eval in one process: start it without accelerate launch or torchrun.")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"The batch size must be a whole number from 1, not {batch_size!r}.")
        if method is None and keep is not None:
            raise UserError(f"keep={keep} needs a method: give method=divprune, for instance.")
        self.batch_size, self.seed, self.positions = int(batch_size), seed, positions
        self.loaded = loaded or load_model(pretrained, device, text_tower)
        self.recipe: Recipe | None = None if method is None else recipe(method, keep=keep)
        self._session()  # what cannot act on the model has to fail now

    def __repr__(self) -> str:
        """Part of the keys of lmms-eval's caches: replies of other weights or another pruning are never served."""
        own: dict[str, Any] = {"model": self.loaded.name, "weights": self.loaded.weights, "dtype": self.loaded.dtype}
        if self.recipe is not None:
            own |= {"recipe": recorded(self.recipe), "positions": self.positions, "seed": self.seed}
            own["code"] = dict(sorted(code_of(self.recipe).items()))
        own["versions"] = library_versions()
        return f"vlmprune({', '.join(f'{name}={value!r}' for name, value in own.items())})"

    def clean(self) -> None:
        """Nothing: lmms-eval's own would take the model's modules away, which other methods still need."""

    def _session(self) -> Any:
        if self.recipe is None:
            return None
        return self.loaded.session(self.recipe, self.positions, self.seed)

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """The replies, in the order of the requests. Like lmms-eval's own models, it does not stop at `until`."""
        questions = sorted((self._question(k, one.args) for k, one in enumerate(requests)), key=_settings_key)
        replies: dict[int, Any] = {}
        for _, alike in groupby(questions, key=_settings_key):
            for batch in in_batches(alike, self.batch_size):
                replies |= self._replies(batch)
        return [replies[k] for k in range(len(requests))]

    def _question(self, place: int, request: tuple[Any, ...]) -> Question:
        """Of a request as chat models get it, or as tasks that are given as dictionaries make it for any model."""
        if callable(request[1]):
            _, to_messages, settings, doc, task, split = request
            chat = ChatMessages(messages=to_messages(self.task_dict[task][split][doc]))
        else:
            context, settings, to_visual, doc, task, split = request
            pictures = to_visual(self.task_dict[task][split][doc]) or []
            content = [{"type": "image", "url": picture} for picture in pictures]
            content.append({"type": "text", "text": context})
            chat = ChatMessages(messages=[{"role": "user", "content": content}])
        images, videos, audios = chat.extract_media()
        if videos or audios:
            raise UserError(f"{task} has videos or sound: vlmprune asks lmms-eval's tasks about pictures only.")
        messages = chat.to_hf_messages()
        parts = [part for message in messages if message["role"] == "user" for part in message["content"]]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        return Question(place, messages, text, [_picture(image) for image in images], settings)

    @torch.no_grad()
    def _replies(self, batch: Sequence[Question]) -> dict[int, Any]:
        model, processor = self.loaded.model, self.loaded.processor
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"
        texts = [
            processor.apply_chat_template(one.messages, add_generation_prompt=True, tokenize=False) for one in batch
        ]
        media = {"images": [one.images for one in batch]} if any(one.images for one in batch) else {}
        inputs = processor(text=texts, padding=True, return_tensors="pt", **media).to(model.device, model.dtype)
        session = self._session()
        if session is not None:
            session.question = [one.text for one in batch]
        with session or nullcontext():
            ids = model.generate(**inputs, **_generation(batch[0].settings), pad_token_id=tokenizer.pad_token_id)
        new = ids[:, inputs["input_ids"].shape[1] :]
        counts = (new != tokenizer.pad_token_id).sum(1).tolist()
        replies = tokenizer.batch_decode(new, skip_special_tokens=True)
        return {
            one.place: GenerationResult(text=reply, token_counts=TokenCounts(output_tokens=count))
            for one, reply, count in zip(batch, replies, counts, strict=True)
        }

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Not there."""
        raise UserError("vlmprune answers tasks of lmms-eval that generate; this one compares likelihoods.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[Any]:
        """Not there."""
        raise UserError("vlmprune answers tasks of lmms-eval of one round; this one has several.")


def manifest() -> Any:
    """What lmms-eval registers, by the entry point `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vlmprune", chat_class_path="vlmprune.engines.lmms.PrunedModel")


def _settings_key(question: Question) -> str:
    return repr(sorted(question.settings.items()))


def _picture(image: Any) -> Any:
    return image.convert("RGB") if hasattr(image, "convert") else image


def _generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `generate`: greedy unless the task wants a temperature."""
    arguments = generation_kwargs(int(settings.get("max_new_tokens", LENGTH)))
    arguments["num_beams"] = settings.get("num_beams") or 1
    if float(settings.get("temperature") or 0) > 0:
        arguments |= {"do_sample": True, "temperature": settings["temperature"], "top_p": settings.get("top_p")}
    return arguments

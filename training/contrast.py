"""Pictures against captions, as CLIP is trained: what makes the tower's attention mean something.

The text tower is small and is shipped beside the LLaVA, whose vision tower it was trained with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import processors
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

from training.backend import Backend
from training.tokenizer import build_tokenizer, encode
from vlmprune.assets.questions import Asker
from vlmprune.assets.world import Scene
from vlmprune.runtime.text_tower import SIGN

CHANGE_WEIGHT = 4.0  # of the change of the patches, beside the contrastive loss
SHIPPED = 2
BEST = 8  # patches
WIDTH, LAYERS, LONGEST = 128, 2, 77
_QUESTION_SHARE = 0.3  # of the captions begin with a question about the scene
_ASKED = ("color", "shape", "position", "size")


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Half or more of what the scene holds, in random order: "red star . number 4 0 7 . blue ring".

    The ground is not named: people caption what is there, and a tower whose captions name the ground looks at it.
    """
    facts = [
        f"{thing.size} {thing.color} {thing.shape}" if rng.random() < 0.3 else f"{thing.color} {thing.shape}"
        for thing in scene.objects
    ]
    facts += [f"number {' '.join(scene.plate)}"] if scene.plate else []
    facts += [f"letter {scene.letter}"] if scene.letter else []
    order = rng.permutation(len(facts))[: int(rng.integers((len(facts) + 1) // 2, len(facts) + 1))]
    told = [facts[int(k)] for k in order]
    if rng.random() < _QUESTION_SHARE:
        task = _ASKED[int(rng.integers(len(_ASKED)))]
        told = [question.text for question in Asker(scene, rng).ask(task)] + told
    return " . ".join(told)


class Contrast(nn.Module):
    """A CLIP text tower and the projections into the common space.

    Args:
        width: of the pooled image states.
        ids: token ids.
        backend: its end token ends a caption, its first token pads.
    """

    def __init__(self, width: int, ids: dict[str, int], backend: Backend) -> None:
        super().__init__()
        self.ids, self.backend = ids, backend
        self.start, self.end = ids[backend.token_names["bos_token"]], ids[backend.end]
        config = CLIPTextConfig(
            vocab_size=len(ids),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=LONGEST,
            projection_dim=WIDTH,
            bos_token_id=self.start,
            eos_token_id=self.end,
            pad_token_id=ids[backend.specials[0]],
        )
        clip = CLIPModel(CLIPConfig(text_config=config.to_dict(), projection_dim=WIDTH))
        self.text_model, self.text_projection = clip.text_model, clip.text_projection
        self.visual_projection = nn.Linear(width, WIDTH, bias=False)
        self.collected_projection = nn.Linear(width, WIDTH, bias=False)  # training only
        self.logit_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))

    def forward(self, pooled: list[Tensor], patches: Tensor | None, captions: list[str]) -> tuple[Tensor, Tensor]:
        """The mean contrastive loss, and the share of pictures that find their caption.

        Args:
            pooled: each [B, width]; the first SHIPPED ones share the projection that is shipped.
            patches: [B, patches, width] or None; a picture is as near to a caption as its BEST nearest patches are.
        """
        rows = [[self.start, *encode(text, self.ids)[: LONGEST - 2], self.end] for text in captions]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=pooled[0].device)
        ends = torch.tensor([len(row) - 1 for row in rows], device=ids.device)
        states = self.text_model(input_ids=ids).last_hidden_state[torch.arange(len(rows)), ends]
        text = functional.normalize(self.text_projection(states).float(), dim=-1)
        own = torch.arange(len(rows), device=ids.device)
        found = []
        for number, states in enumerate(pooled):
            project = self.visual_projection if number < SHIPPED else self.collected_projection
            found.append(functional.normalize(project(states).float(), dim=-1) @ text.T)
        if patches is not None:
            near = functional.normalize(self.visual_projection(patches).float(), dim=-1) @ text.T
            found.append(near.topk(BEST, dim=1).values.mean(1))
        losses, hits = [], []
        for cosines in found:
            logits = self.logit_scale.clamp(max=np.log(100)).exp() * cosines
            losses.append((functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2)
            hits.append((logits.argmax(1) == own).float().mean())
        return torch.stack(losses).mean(), torch.stack(hits).mean().detach()

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Go on from an exported text tower, whose words are the first of ours."""
        clip = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        for name in ("text_model", "text_projection", "visual_projection"):
            getattr(self, name).load_state_dict(getattr(clip, name).state_dict())
        self.logit_scale.copy_(clip.logit_scale)

    def export(self, tower: nn.Module, vision: Any, folder: Path) -> None:
        """Write the CLIP model with this text tower and the VLM's vision tower, float16, and its tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        text = self.text_model.config.to_dict()
        config = CLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=WIDTH)
        setattr(config, SIGN, 1)
        clip = CLIPModel(config)
        clip.vision_model.load_state_dict(tower.state_dict())
        clip.text_model.load_state_dict(self.text_model.state_dict())
        clip.text_projection.load_state_dict(self.text_projection.state_dict())
        clip.visual_projection.load_state_dict(self.visual_projection.state_dict())
        clip.logit_scale.data.copy_(self.logit_scale.data)
        clip.half().save_pretrained(folder)
        tokenizer = build_tokenizer(self.backend, **self.backend.token_names)
        first, last = (self.backend.token_names["bos_token"], self.start), (self.backend.end, self.end)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first[0]} $A {last[0]}", special_tokens=[first, last]
        )
        tokenizer.save_pretrained(folder)

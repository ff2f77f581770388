"""Train an embedded model from nothing: python -m training.train --model llava --seed 0."""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from training.backend import Backend, TextBatch, autocast, get_backend, matrices, parameter_count
from training.contrast import CHANGE_WEIGHT, Contrast, caption
from training.cuts import COUNTS, Kept, Late, draw_cut, draw_late
from training.examples import draw_examples
from training.losses import METRICS, AuxiliaryHeads, answer_loss
from training.muon import Muon
from training.packing import Labels, draw_questions, make_labels, pack
from training.recipes import IMAGES_A_STEP, RECIPES, TEXT_LENGTH, WARMUP_STEPS, Stage
from training.start import load_start
from training.states import SLOT_METRICS, WORD_METRICS, StateHeads
from training.tokenizer import build_tokenizer, word_ids
from vlmprune.assets import CLIP
from vlmprune.assets.questions import Question
from vlmprune.assets.world import draw_scene
from vlmprune.core.errors import UserError
from vlmprune.core.outputs import check_folder, make_folder

ROOT = Path(__file__).resolve().parent
ASSETS = ROOT.parent / "src" / "vlmprune" / "assets"  # the models made here, which a new training replaces
LOG_EVERY, SAVE_EVERY = 50, 100
_ACCURACY_DECAY = 0.97  # of the running accuracy, a step


def knots(points: Sequence[tuple[int, float]], step: int) -> float:
    """Piecewise linear through (step, value) points, constant outside."""
    return float(np.interp(step, [p[0] for p in points], [p[1] for p in points]))


def mix_at(stage: Stage, step: int, accuracy: dict[str, float]) -> dict[str, float]:
    """Expected draws of each task type an image."""
    tasks = sorted({task for _, mix in stage.mixes for task in mix})
    mix = {task: knots([(at, mix.get(task, 0.0)) for at, mix in stage.mixes], step) for task in tasks}
    if stage.adaptive:
        mix = {t: w * min(1.6, max(0.6, 0.5 + 4 * (1 - accuracy.get(t, 0.8)))) for t, w in mix.items()}
    return mix


def rate(stage: Stage, step: int) -> float:
    """Factor on the peak learning rates."""
    rise = min(1.0, (step + 1) / WARMUP_STEPS)
    if stage.decay_from is None or step < stage.decay_from:
        return rise
    return rise * 0.5 * (1 + math.cos(math.pi * (step - stage.decay_from) / (stage.steps - stage.decay_from)))


class Trainer:
    """The state of a run: model, heads, optimisers, place in the recipe."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        self.backend: Backend = get_backend(args.model)
        self.stages = RECIPES[args.model]
        self.ids = word_ids(self.backend)
        torch.manual_seed(args.seed)
        self.model = self.backend.build(len(self.ids)).to(self.device)
        grids = [self.backend.grid(size) for size in self.backend.sizes]
        rows, columns = max(grid[0] for grid in grids), max(grid[1] for grid in grids)
        hidden = self.backend.hidden(self.model)
        states = None if self.backend.places_features else StateHeads(hidden, rows, columns)
        self.heads = AuxiliaryHeads(hidden, self.backend.cls_width, rows, columns, self.ids, states).to(self.device)
        self.contrast = Contrast(self.backend.contrast_width, self.ids, self.backend).to(self.device)
        self.before: nn.Module | None = None  # the vision tower as a contrastive stage found it
        self.stage = self.step = 0
        if args.start:
            load_start(self.model, args.start, self.ids, args.layers)
            if (args.start / CLIP).exists():
                self.contrast.load(args.start / CLIP)
        if args.stage:
            self.stage = [stage.name for stage in self.stages].index(args.stage)
        self.accuracy: dict[str, float] = {}
        self.seconds = 0.0
        self.folder: Path = args.checkpoints / args.model
        self.log_path: Path = args.logs / f"{args.model}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.compile = (lambda f: f) if args.no_compile else (lambda f: torch.compile(f, dynamic=False))
        self.graphs: dict[Any, Callable[..., Any]] = {}
        self.start_stage()
        checkpoint = self.folder / "last.pt"
        if checkpoint.exists():
            self.load(checkpoint)
        else:
            self.log(
                event="start",
                start=str(args.start) if args.start else None,
                stage=self.stages[self.stage].name,
                seed=args.seed,
                parameters=parameter_count(self.model),
                words=len(self.ids),
                torch=torch.__version__,
                transformers=transformers.__version__,
                numpy=np.__version__,
                python=platform.python_version(),
                device=args.device,
                threads=torch.get_num_threads(),
                recipe=[asdict(stage) for stage in self.stages],
            )

    def start_stage(self) -> None:
        """New optimisers for the current stage."""
        stage = self.stages[self.stage]
        self.model.requires_grad_(not stage.contrastive)
        self.contrast.requires_grad_(stage.contrastive)
        if stage.contrastive:
            self.before = copy.deepcopy(self.backend.tower(self.model))
            for part in self.backend.contrasted(self.model):
                part.requires_grad_(True)
        elif stage.frozen_tower:
            self.backend.tower(self.model).requires_grad_(False)
        hidden = [p for part in (self.model, self.contrast) for p in matrices(part) if p.requires_grad]
        chosen = {id(parameter) for parameter in hidden}
        self.trained = [p for part in self.parts() for p in part.parameters() if p.requires_grad]
        rest = [parameter for parameter in self.trained if id(parameter) not in chosen]
        self.muon = Muon(hidden, lr=stage.muon_lr)
        self.adamw = torch.optim.AdamW(rest, lr=stage.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def parts(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.model, self.heads, self.contrast

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=False)
        for part, saved in zip(self.parts(), state["parts"], strict=True):
            part.load_state_dict(saved)
        self.stage, self.step = state["stage"], state["step"]
        self.accuracy, self.seconds = state["accuracy"], state["seconds"]
        if self.stage < len(self.stages):
            self.start_stage()
            if self.step:
                self.muon.load_state_dict(state["muon"])
                self.adamw.load_state_dict(state["adamw"])
                if self.before is not None:
                    self.before.load_state_dict(state["before"])
        self.log(event="resumed", stage=self.stage, step=self.step)

    def save(self, name: str = "last.pt") -> None:
        state = {
            "parts": [part.state_dict() for part in self.parts()],
            "before": self.before.state_dict() if self.before is not None else None,
            "muon": self.muon.state_dict(),
            "adamw": self.adamw.state_dict(),
            "stage": self.stage,
            "step": self.step,
            "accuracy": self.accuracy,
            "seconds": self.seconds,
        }
        part = self.folder / (name + ".part")
        torch.save(state, part)
        part.replace(self.folder / name)

    def log(self, **values: Any) -> None:
        line = json.dumps(values)
        with self.log_path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def run(self) -> None:
        """Every stage to its end, then the export."""
        while self.stage < len(self.stages):
            stage = self.stages[self.stage]
            self.model.train()
            if self.step == 0 and stage.feature_factor != 1:
                self.scale_features(stage.feature_factor)
            self.run_stage(stage)
            self.stage, self.step = self.stage + 1, 0
            if self.stage < len(self.stages):
                self.start_stage()
            self.save()
            self.save(f"after-{stage.name}.pt")
        tokenizer = build_tokenizer(self.backend, **self.backend.token_names)
        folder = self.args.out / self.args.model
        if self.args.out != ASSETS:
            make_folder(folder)
        self.backend.export(self.model.eval().cpu(), tokenizer, folder)
        if self.backend.cls_width:
            self.contrast.export(self.backend.tower(self.model), self.model.config.vision_config, folder / CLIP)
        for path in folder.rglob("*.*"):
            path.chmod(0o644)  # safetensors writes files that only their owner can read
        self.log(event="exported", cpu_seconds=round(self.seconds))

    def scale_features(self, factor: float) -> None:
        """Multiply the projector's output; the heads that read it are divided, so that only the decoder notices."""
        with torch.no_grad():
            for parameter in self.backend.output_map(self.model).parameters():
                parameter.mul_(factor)
            for head in (*self.heads.heads.values(), self.heads.row, self.heads.column):
                head.weight.div_(factor)

    def run_stage(self, stage: Stage) -> None:
        totals: dict[str, list[float]] = {}
        clock = time.process_time()
        while self.step < stage.steps:
            factor = rate(stage, self.step)
            self.muon.param_groups[0]["lr"] = stage.muon_lr * factor
            self.adamw.param_groups[0]["lr"] = stage.adamw_lr * factor
            take = self.contrast_step if stage.contrastive else self.dense_step if stage.dense else self.joint_step
            for name, value in take(stage).items():
                totals.setdefault(name, []).append(value)
            nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.muon.step()
            self.adamw.step()
            self.muon.zero_grad(set_to_none=True)
            self.adamw.zero_grad(set_to_none=True)
            self.step += 1
            if self.step % LOG_EVERY == 0 or self.step == stage.steps:
                now = time.process_time()
                self.seconds, clock = self.seconds + now - clock, now
                means = {name: round(float(np.mean(values)), 3) for name, values in totals.items()}
                running = {task: round(value, 3) for task, value in sorted(self.accuracy.items())}
                self.log(stage=stage.name, step=self.step, cpu_seconds=round(self.seconds), **means, accuracy=running)
                totals.clear()
            if self.step % SAVE_EVERY == 0:
                self.save()

    def rng(self) -> np.random.Generator:
        """The random stream of the current step's data."""
        return np.random.default_rng((self.args.seed, self.stage, self.step))

    def text(self, batch: TextBatch) -> tuple[Tensor, ...]:
        parts = (batch.ids, batch.segment, batch.offset, batch.target, batch.hint)
        return tuple(part.to(self.device) for part in parts)

    def dense_step(self, stage: Stage) -> dict[str, float]:
        """Dense scenes for the tower and projector, option matching without an image for the decoder."""
        rng = self.rng()
        size = self.backend.sizes[int(rng.integers(len(self.backend.sizes)))]
        scenes = [draw_scene(rng, size, dense=True) for _ in range(IMAGES_A_STEP)]
        labels = make_labels(scenes, *self.backend.grid(size)).to(self.device)
        pixels = self.backend.pixels(np.stack([scene.image for scene in scenes])).to(self.device)
        shares = {"first_wording_share": stage.first_wording_share, "two_option_share": 0.3}
        rows = [draw_questions(scene, rng, {"option": 10.0}, **shares) for scene in scenes]
        batch, kept = pack(rows, TEXT_LENGTH, self.backend, self.ids)

        constants = self.backend.constants(size, self.device)

        def losses(pixels: Tensor, constants: Any, labels: Labels) -> tuple[Tensor, Tensor]:
            features, cls = self.backend.features(self.model, pixels, constants)
            placed = features if self.backend.places_features else None
            return self.heads(features, placed, cls, self.backend.embedding(self.model), labels)

        def options(ids: Tensor, segment: Tensor, offset: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.backend.forward_text(self.model, ids, segment, offset)
            return answer_loss(logits, target), logits.argmax(-1)

        with autocast(self.device, not self.args.no_autocast):
            auxiliary, metrics = self.graph("dense", losses)(pixels, constants, labels)
            answers, said = self.graph("options", options)(*self.text(batch)[:-1])
        (auxiliary * knots(stage.auxiliary, self.step) + answers).backward()
        self.score(batch, kept, said)
        return {"answers": answers.item(), **dict(zip(METRICS, metrics.tolist(), strict=True))}

    def joint_step(self, stage: Stage) -> dict[str, float]:
        """Questions about scenes, with the auxiliary losses."""
        rng = self.rng()
        size = self.backend.sizes[int(rng.integers(len(self.backend.sizes)))]
        names, shares_of = zip(*stage.kinds, strict=True)
        mix = mix_at(stage, self.step, self.accuracy)
        shares = {
            "first_wording_share": stage.first_wording_share,
            "two_option_share": knots(stage.two_option_share, self.step),
        }
        kind = str(rng.choice(names, p=shares_of))
        drawn = draw_examples(kind, rng, size, mix, stage.photo_share, **shares)
        labels = make_labels(drawn.scenes, *self.backend.grid(size)).to(self.device)
        images = np.stack([scene.image for scene in drawn.scenes])
        pixels = self.backend.pixels(images).to(self.device)
        hinted = drawn.scenes if drawn.pictures == 1 else None
        batch, asked = pack(drawn.questions, TEXT_LENGTH, self.backend, self.ids, hinted, self.backend.grid(size))
        alone = drawn.pictures == 1
        constants = self.backend.constants(size, self.device)
        kept, late, how = self.missing(rng, stage, images, drawn.pictures, labels)

        def losses(
            pixels: Tensor,
            constants: Any,
            ids: Tensor,
            segment: Tensor,
            offset: Tensor,
            target: Tensor,
            hint: Tensor,
            labels: Labels,
            weight: Tensor,
            hint_weight: Tensor,
            kept: Kept | None,
            late: Late | None,
        ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
            out = self.backend.forward(self.model, pixels, constants, ids, segment, offset, kept, late)
            embedding = self.backend.embedding(self.model)
            placed = None if self.heads.states else out.placed
            auxiliary, metrics = self.heads(out.features, placed, out.cls, embedding, labels)
            answers = answer_loss(out.logits, target)
            if self.heads.states:
                hints, more = self.heads.states.read_words(out.early, hint)
                metrics = torch.cat((metrics, more))
                if kept is None and alone:
                    slots, more = self.heads.states.read_slots(out.placed, labels)
                    auxiliary, metrics = auxiliary + slots, torch.cat((metrics, more))
            else:
                hints = self.heads.hints(out.early, embedding, hint, labels)
            total = answers + weight * auxiliary + hint_weight * hints
            return total, answers.detach(), hints.detach(), metrics, out.logits.argmax(-1)

        fading = (stage.auxiliary, stage.hints)
        weights = [torch.tensor(knots(points, self.step), device=self.device) for points in fading]
        with autocast(self.device, not self.args.no_autocast):
            graph = self.graph("joint", losses) if late else losses  # one graph, of the most frequent shapes
            inputs = (pixels, constants, *self.text(batch), labels, *weights, kept, late)
            total, answers, hints, metrics, said = graph(*inputs)
        total.backward()
        if how:
            return {f"answers_{how}": answers.item()}
        self.score(batch, asked, said)
        if not alone:
            return {"answers_two": answers.item()}
        named = (*METRICS, *WORD_METRICS, *SLOT_METRICS) if self.heads.states else METRICS
        return {"answers": answers.item(), "hints": hints.item(), **dict(zip(named, metrics.tolist(), strict=True))}

    def missing(
        self, rng: np.random.Generator, stage: Stage, images: np.ndarray, pictures: int, labels: Labels
    ) -> tuple[Kept | None, Late | None, str]:
        """What the decoder does not get, if anything, and what to call it: tokens cut before it or inside it."""
        rows, slots = labels.shape.shape
        if rng.random() < stage.cut_share:
            size = images.shape[2], images.shape[1]
            things = ((labels.shape > 0) | (labels.char > 0)).cpu().numpy()
            count = int(rng.choice(COUNTS))
            kept = draw_cut(rng, images, things, self.backend.grid(size), count)
            return Kept(kept.index.to(self.device), kept.original.to(self.device)), None, str(count)
        if pictures > 1:
            return None, None, ""
        if rng.random() < stage.late_share:
            late, how = draw_late(rng, rows, slots, self.backend.layers), "late"
        else:  # nothing leaves: steps with and without share one compiled graph
            late, how = Late(torch.tensor(self.backend.layers), torch.zeros(rows, slots, dtype=torch.bool)), ""
        return None, Late(late.layer.to(self.device), late.dropped.to(self.device)), how

    def contrast_step(self, stage: Stage) -> dict[str, float]:
        """Scenes against their captions."""
        rng = self.rng()
        size = self.backend.sizes[int(rng.integers(len(self.backend.sizes)))]
        scenes = [draw_scene(rng, size) for _ in range(stage.pairs)]
        pixels = self.backend.pixels(np.stack([scene.image for scene in scenes])).to(self.device)
        constants = self.backend.constants(size, self.device)
        captions = [caption(scene, rng) for scene in scenes]
        with autocast(self.device, not self.args.no_autocast):
            pooled, patches, change = self.backend.contrast(self.model, self.before, pixels, constants)
            loss, right = self.contrast(pooled, patches, captions)
        (loss + CHANGE_WEIGHT * change).backward()
        return {"contrast": loss.item(), "change": change.item(), "retrieved": right.item()}

    def graph(self, key: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled function, once a key."""
        if key not in self.graphs:
            self.graphs[key] = self.compile(function)
        return self.graphs[key]

    def score(self, batch: TextBatch, kept: list[list[Question]], said: Tensor) -> None:
        """Update the running accuracy of each task type."""
        hits: dict[str, list[bool]] = {}
        for questions, row in zip(kept, verdicts(batch, kept, said.cpu()), strict=True):
            for question, hit in zip(questions, row, strict=True):
                hits.setdefault(question.task, []).append(hit)
        for task, values in hits.items():
            old = self.accuracy.get(task)
            now = float(np.mean(values))
            decay = _ACCURACY_DECAY if old is not None else 0.0
            self.accuracy[task] = decay * (old or 0.0) + (1 - decay) * now


def verdicts(batch: TextBatch, kept: list[list[Question]], said: Tensor) -> list[list[bool]]:
    """For each question in `kept`, whether `said` is right at every token of its answer, end token included."""
    wrong = ((said != batch.target) & (batch.target >= 0)).numpy()
    missed = [set(segment[bad].tolist()) for segment, bad in zip(batch.segment.numpy(), wrong, strict=True)]
    return [[k not in row for k in range(len(questions))] for row, questions in zip(missed, kept, strict=True)]


def origins(text: str) -> list[int | None]:
    """The layers that --layers names."""
    return [None if word == "new" else int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("llava", "qwen2_5_vl"), required=True)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-autocast", action="store_true", help="float32 all through")
    parser.add_argument("--start", type=Path, help="exported model to go on from; it may have fewer words and layers")
    parser.add_argument("--layers", type=origins, help="which of its decoder layers ours are: 3,4,5,6,7,new,new,new")
    parser.add_argument("--stage", help="name of the first stage; by default the recipe's first")
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "checkpoints")
    parser.add_argument("--logs", type=Path, default=ROOT / "logs")
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--force", action="store_true", help="write into a folder of --out that holds other files")
    args = parser.parse_args()
    try:
        check_folder(args.out / args.model, "model", force=args.force or args.out == ASSETS)
    except UserError as error:
        parser.error(error.typed)
    torch.set_num_threads(args.threads)
    Trainer(args).run()


if __name__ == "__main__":
    main()

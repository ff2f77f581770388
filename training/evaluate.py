"""Held-out accuracy of an embedded model: python -m training.evaluate --model llava.

Pictures are those of `training.held_out`, questions in mixed wordings. Every question is scored teacher-forced and
packed (right when each token of its answer is the arg-max, which is what greedy decoding would have said; a box at an
intersection over union of 0.5, each digit behind the true ones); a sample also goes through `generate`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.backend import Backend, get_backend
from training.held_out import BOXES, KINDS, answered, draw_case
from training.tokenizer import word_ids
from training.train import ROOT
from vlmprune.assets import load_embedded
from vlmprune.assets.questions import BENCHMARK_TASKS, CHANCE, Question, normalise_answer
from vlmprune.core.errors import UserError
from vlmprune.core.outputs import check_file

MARGIN = 0.10  # a task nearer than this to chance says nothing, and is left out of averages
_OTHERS = 3  # a third as many pages, screenshots and pairs as scenes


def all_answers(model: Any, backend: Backend, images: int) -> list[tuple[Question, bool]]:
    """Every question about `images` scenes and the other kinds, and whether it was answered right."""
    counts = {kind: images if kind == "scene" else -(-images // _OTHERS) for kind in KINDS}
    return [result for kind, count in counts.items() for result in answered(model, backend, kind, count)]


def generated_answers(model: Any, processor: Any, sizes: tuple[tuple[int, int], ...], images: int) -> tuple[int, int]:
    """How many questions about scenes `generate` answers exactly right, and how many it was asked; boxes are not."""
    right = asked = 0
    for index in range(images):
        case = draw_case("scene", index, sizes[index % len(sizes)])
        for question in case.questions:
            if question.task in BOXES:
                continue
            content = [{"type": "image"}, {"type": "text", "text": question.text}]
            prompt = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            inputs = processor(images=case.pictures[0].image, text=prompt, return_tensors="pt")
            with torch.no_grad():
                output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
            reply = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            right += normalise_answer(reply) == question.answer
            asked += 1
    return right, asked


def summarise(results: list[tuple[Question, bool]]) -> dict[str, Any]:
    """Accuracy by task type and by benchmark task, with counts and chance levels."""
    types: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(question.task for question, _ in results):
        hits = [hit for question, hit in results if question.task == task]
        accuracy = float(np.mean(hits))
        types[task] = {"n": len(hits), "accuracy": round(accuracy, 4), "chance": round(CHANCE[task], 4)}
        types[task]["left_out_of_averages"] = accuracy < CHANCE[task] + MARGIN
    benchmark: dict[str, dict[str, Any]] = {}
    for name, tasks in BENCHMARK_TASKS.items():
        if not any(task in types for task in tasks):
            continue
        hits = [hit for question, hit in results if question.task in tasks]
        chance = float(np.mean([CHANCE[question.task] for question, _ in results if question.task in tasks]))
        accuracy = float(np.mean(hits))
        benchmark[name] = {"n": len(hits), "accuracy": round(accuracy, 4), "chance": round(chance, 4)}
        benchmark[name]["left_out_of_averages"] = accuracy < chance + MARGIN
    clear = [row["accuracy"] for row in types.values() if not row["left_out_of_averages"]]
    return {
        "mean_of_task_types": round(float(np.mean(clear)), 4),
        "task_types": types,
        "benchmark_tasks": benchmark,
    }


def table(report: dict[str, Any]) -> str:
    """The report as Markdown: one row a task type, then one a benchmark task."""

    def row(name: str, cells: dict[str, Any]) -> str:
        left_out = "left out of averages" if cells["left_out_of_averages"] else ""
        return f"| {name} | {100 * cells['accuracy']:.1f} | {100 * cells['chance']:.0f} | {cells['n']} | {left_out} |"

    lines = [
        f"`{report['model']}`, {report['images']} scenes, mean of the question types "
        f"{100 * report['mean_of_task_types']:.1f} %; `generate` gave the exact answer to "
        f"{report['generate']['right']} of {report['generate']['asked']} questions.",
        "",
        "| question type or task | accuracy, % | chance, % | questions | |",
        "| --- | --- | --- | --- | --- |",
        *(row(f"`{name}`", cells) for name, cells in report["task_types"].items()),
        *(row(f"**{name}**", cells) for name, cells in report["benchmark_tasks"].items()),
    ]
    return "\n".join(lines)


def write_table(report: dict[str, Any], page: Path) -> None:
    """Put the table between the model's two comments on a page."""
    start, end = f"<!-- {report['model']} table -->", f"<!-- end of {report['model']} table -->"
    before, rest = page.read_text().split(start)
    page.write_text(f"{before}{start}\n{table(report)}\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("llava", "qwen2_5_vl"), required=True)
    parser.add_argument("--images", type=int, default=1000, help="scenes scored teacher-forced")
    parser.add_argument("--generate-images", type=int, default=20, help="scenes also answered by generate")
    parser.add_argument("--checkpoint", type=Path, help="score a training checkpoint instead of the shipped folder")
    parser.add_argument(
        "--out", type=Path, help="where to write; by default training/results/MODEL.json and docs/embedded.md"
    )
    parser.add_argument("--force", action="store_true", help="overwrite a file that is at --out")
    args = parser.parse_args()
    try:
        if args.out:
            check_file(args.out, "report", force=args.force)
    except UserError as error:
        parser.error(error.typed)
    torch.set_num_threads(1)
    backend = get_backend(args.model)
    if args.checkpoint:
        model = backend.build(len(word_ids(backend)))
        model.load_state_dict(torch.load(args.checkpoint, weights_only=False)["parts"][0])
        print(json.dumps(summarise(all_answers(model.eval(), backend, args.images)), indent=1))
        return
    model, processor = load_embedded(args.model)
    report = {
        "model": args.model,
        "images": args.images,
        **summarise(all_answers(model, backend, args.images)),
    }
    right, asked = generated_answers(model, processor, backend.sizes, args.generate_images)
    report["generate"] = {"right": right, "asked": asked}
    out = args.out or ROOT / "results" / f"{args.model}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    if not args.out:
        write_table(report, ROOT.parent / "docs" / "embedded.md")
    print(table(report))


if __name__ == "__main__":
    main()

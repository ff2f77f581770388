"""The data sets: every task reads a made-up file in each of its layouts, and the real files where they are at hand."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmprune.core.errors import UserError
from vlmprune.data.sample import Sample
from vlmprune.data.source import Files
from vlmprune.scoring.metrics import METRICS
from vlmprune.scoring.replies import SCORERS, score_reply
from vlmprune.tasks import built_in_tasks, get_task
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.task import Place

SHARED = Path(__file__).parents[2] / "shared" / "data"
SETS = {name: task for name, task in built_in_tasks().items() if isinstance(task, DataTask)}


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((8, 8), 50).save(buffer, "PNG")
    return buffer.getvalue()


PNG = _png()
B64 = base64.b64encode(PNG).decode()
CELL = {"bytes": PNG, "path": "1.png"}
TEN = ["a cat"] * 6 + ["cat"] * 4
PAIR = "Is this a cat? Please answer yes or no."
MMBENCH = {"index": 1_000_241, "question": "What is it?", "hint": "", "A": "cat", "B": "dog", "C": "", "D": ""}
MMBENCH |= {"answer": "B", "category": "object_localization"}
HALLUSION = {"category": "VS", "subcategory": "chart", "set_id": "0", "figure_id": "1", "question_id": "2"}
HALLUSION |= {"question": "Is it so?", "gt_answer": "1"}
MATHVISTA = {"pid": "7", "question": "How long?", "unit": "cm", "precision": 1.0, "choices": None, "answer": "1.2"}
MATHVISTA |= {"question_type": "free_form", "answer_type": "float", "query": "Hint: ..."}
MATHVISTA_TSV = {"index": 7, "image": B64, "answer": "145°", "choices": "['135°', '145°']", "precision": ""}
MATHVISTA_TSV |= {"question": "Hint: Please.\nQuestion: Which angle?\nChoices:\n(A) 135°\n(B) 145°"}
MATHVISTA_TSV |= {"question_type": "multi_choice", "answer_type": "text"}
MATHVISION = {"id": "2", "question": "Which bike?\n<image1>", "options": ["A", "B"], "answer": "A", "subject": "logic"}
MIA = {"instruction": "Describe it in two lines.", "type": "basic", "components": ["Describe it", "in two lines"]}
MIA |= {"component_weight": [6, 4]}
SCIENCE = {"question": "Which is it?", "choices": ["one", "two"], "answer": 1, "hint": "A fact.", "subject": "biology"}
SEED = {"question": "Where?", "answer": "C", "question_id": "5", "question_image_type": "map"}
SEED |= {f"choice_{letter}": f"place {letter}" for letter in "ABCD"}
VIDEO = {"video_name": "v1", "question_id": "v1_0", "question": "who runs?"}

# task: for each layout its files, the pictures or videos beside them, and question, answers and options of the sample
Layout = tuple[Mapping[str, Sequence[Any] | Mapping[str, Any]], str, tuple[str, tuple[str, ...], tuple[str, ...]]]
LAYOUTS: dict[str, list[Layout]] = {
    "mme": [
        (
            {
                "MME.tsv": [
                    {"index": k, "category": "OCR", "question": PAIR, "answer": a, "image_path": "1.jpg", "image": B64}
                    for k, a in enumerate(("Yes", "No"))
                ]
            },
            "",
            (PAIR, ("yes",), ()),
        ),
        (
            {
                "data/test-00000-of-00001.parquet": [
                    {"question_id": "OCR/1.jpg", "image": CELL, "question": PAIR, "answer": a, "category": "OCR"}
                    for a in ("Yes", "No")
                ]
            },
            "",
            (PAIR, ("yes",), ()),
        ),
    ],
    "mmbench": [
        ({"MMBench_DEV_EN.tsv": [{**MMBENCH, "image": B64}]}, "", ("What is it?", ("B",), ("cat", "dog"))),
        ({"mmbench_dev_20230712.tsv": [{**MMBENCH, "image": B64}]}, "", ("What is it?", ("B",), ("cat", "dog"))),
        (
            {"en/dev-00000-of-00001.parquet": [{**MMBENCH, "hint": "nan", "C": "nan", "D": "nan", "image": CELL}]},
            "",
            ("What is it?", ("B",), ("cat", "dog")),
        ),
    ],
    "mmbench-cn": [
        ({"MMBench_DEV_CN.tsv": [{**MMBENCH, "image": B64}]}, "", ("What is it?", ("B",), ("cat", "dog"))),
        ({"mmbench_dev_cn_20231003.tsv": [{**MMBENCH, "image": B64}]}, "", ("What is it?", ("B",), ("cat", "dog"))),
        ({"cn/dev-0.parquet": [{**MMBENCH, "image": CELL}]}, "", ("What is it?", ("B",), ("cat", "dog"))),
    ],
    "seedbench-2-plus": [
        (
            {
                "SEEDBench2_Plus.tsv": [
                    {"index": 1, "question": "Where?", "answer": "C", "category": "map", "image": B64}
                    | {letter: f"place {letter}" for letter in "ABCD"}
                ]
            },
            "",
            ("Where?", ("C",), ("place A", "place B", "place C", "place D")),
        ),
        (
            {"test-0.parquet": [{**SEED, "image": CELL}]},
            "",
            ("Where?", ("C",), ("place A", "place B", "place C", "place D")),
        ),
    ],
    "ocrbench": [
        (
            {
                "OCRBench.tsv": [
                    {"index": 0, "question": "what?", "answer": "['CENTRE']", "category": "x", "image": B64}
                ]
            },
            "",
            ("what?", ("CENTRE",), ()),
        ),
        (
            {
                "OCRBench.json": [
                    {
                        "dataset_name": "IIIT5K",
                        "id": 2843,
                        "image_path": "a/1.png",
                        "question": "what?",
                        "answers": "CENTRE",
                        "type": "Regular Text Recognition",
                    }
                ]
            },
            "OCRBench_Images/a/1.png",
            ("what?", ("CENTRE",), ()),
        ),
        (
            {
                "test-0.parquet": [
                    {
                        "dataset": "IIIT5K",
                        "question": "what?",
                        "question_type": "x",
                        "answer": ["CENTRE"],
                        "image": CELL,
                    }
                ]
            },
            "",
            ("what?", ("CENTRE",), ()),
        ),
    ],
    "scienceqa": [
        (
            {
                "ScienceQA_TEST.tsv": [
                    {
                        "index": 3,
                        "question": "Which is it?",
                        "hint": "A fact.",
                        "A": "one",
                        "B": "two",
                        "C": "",
                        "D": "",
                        "E": "",
                        "answer": "B",
                        "category": "bio",
                        "image": B64,
                    }
                ]
            },
            "",
            ("Which is it?", ("B",), ("one", "two")),
        ),
        *(
            (
                {
                    f"{folder}problems.json": {
                        "1": {**SCIENCE, "split": "train", "image": "image.png"},
                        "2": {**SCIENCE, "split": "test", "image": None},
                        "3": {**SCIENCE, "split": "test", "image": "image.png"},
                    }
                },
                f"{folder}test/3/image.png",
                ("Which is it?", ("B",), ("one", "two")),
            )
            for folder in ("", "data/scienceqa/")
        ),
        (
            {"ScienceQA-IMG/test-0.parquet": [{**SCIENCE, "image": CELL}]},
            "",
            ("Which is it?", ("B",), ("one", "two")),
        ),
    ],
    "pope": [
        (
            {
                "POPE.tsv": [
                    {
                        "index": 0,
                        "question": "Is there a dog?",
                        "answer": "No",
                        "category": "random",
                        "image_path": "1.jpg",
                        "image": B64,
                    }
                ]
            },
            "",
            ("Is there a dog?", ("no",), ()),
        ),
        *(
            (
                {
                    f"{folder}coco_pope_random.json": [
                        {"question_id": 1, "image": "1.jpg", "text": "Is there a dog?", "label": "no"}
                    ]
                },
                f"{pictures}1.jpg",
                ("Is there a dog?", ("no",), ()),
            )
            for folder, pictures in (("", "val2014/"), ("coco/", "val2014/"), ("output/coco/", "val2014/"))
        ),
        (
            {
                "test-0.parquet": [
                    {
                        "question_id": "1",
                        "question": "Is there a dog?",
                        "answer": "no",
                        "image": CELL,
                        "category": "random",
                        "image_source": "1",
                    }
                ]
            },
            "",
            ("Is there a dog?", ("no",), ()),
        ),
    ],
    "hallusionbench": [
        (
            {
                "HallusionBench.tsv": [
                    {
                        "index": 0,
                        "category": "VS",
                        "l2-category": "chart",
                        "set_id": 0,
                        "figure_id": 1,
                        "question_id": 2,
                        "question": "Is it so?",
                        "answer": "Yes",
                        "image": B64,
                    }
                ]
            },
            "",
            ("Is it so?", ("yes",), ()),
        ),
        (
            {"HallusionBench.json": [{**HALLUSION, "filename": None}, {**HALLUSION, "filename": "./VS/chart/0_1.png"}]},
            "hallusion_bench/VS/chart/0_1.png",
            ("Is it so?", ("yes",), ()),
        ),
        ({"image-0.parquet": [{**HALLUSION, "image": CELL}]}, "", ("Is it so?", ("yes",), ())),
    ],
    "mathvista": [
        ({"MathVista_MINI.tsv": [MATHVISTA_TSV]}, "", ("Which angle?", ("145°",), ("135°", "145°"))),
        (
            {"testmini.json": {"7": {**MATHVISTA, "image": "images/7.jpg"}}},
            "images/7.jpg",
            ("How long? (Unit: cm)", ("1.2",), ()),
        ),
        (
            {"data/testmini.json": {"7": {**MATHVISTA, "image": "images/7.jpg"}}},
            "images/7.jpg",
            ("How long? (Unit: cm)", ("1.2",), ()),
        ),
        (
            {"testmini-0.parquet": [{**MATHVISTA, "image": "images/7.jpg", "decoded_image": CELL}]},
            "",
            ("How long? (Unit: cm)", ("1.2",), ()),
        ),
    ],
    "mathvision": [
        (
            {"test.jsonl": [{**MATHVISION, "image": "images/2.jpg"}]},
            "images/2.jpg",
            ("Which bike?\n<image1>", ("A",), ("A", "B")),
        ),
        (
            {"data/test.jsonl": [{**MATHVISION, "image": "images/2.jpg"}]},
            "images/2.jpg",
            ("Which bike?\n<image1>", ("A",), ("A", "B")),
        ),
        (
            {"test-0.parquet": [{**MATHVISION, "image": "images/2.jpg", "decoded_image": CELL}]},
            "",
            ("Which bike?\n<image1>", ("A",), ("A", "B")),
        ),
    ],
    "mia-bench": [
        *(
            (
                {
                    name: [
                        {
                            "index": 0,
                            "question": MIA["instruction"],
                            "components": "['Describe it', 'in two lines']",
                            "component_weight": "[6, 4]",
                            "image": B64,
                        }
                    ]
                },
                "",
                (MIA["instruction"], ("Describe it", "in two lines"), ()),
            )
            for name in ("MIA-Bench.tsv", "Mia-Bench.tsv")
        ),
        (
            {"instruction_benchmark_all.json": [{**MIA, "image": "http://images.cocodataset.org/val2017/1.jpg"}]},
            "images/1.jpg",
            (MIA["instruction"], ("Describe it", "in two lines"), ()),
        ),
        ({"test-0.parquet": [{**MIA, "image": CELL}]}, "", (MIA["instruction"], ("Describe it", "in two lines"), ())),
    ],
    "gqa": [
        (
            {"GQA_TestDev_Balanced.tsv": [{"index": 1, "question": "Is it red?", "answer": "no", "image": B64}]},
            "",
            ("Is it red?", ("no",), ()),
        ),
        *(
            (
                {
                    f"{folder}testdev_balanced_questions.json": {
                        "20": {"question": "Is it red?", "answer": "no", "imageId": "n1"}
                    }
                },
                f"{folder}images/n1.jpg",
                ("Is it red?", ("no",), ()),
            )
            for folder in ("", "data/")
        ),
    ],
    "vqav2": [
        (
            {
                "data/validation-0.parquet": [
                    {
                        "question_id": 1,
                        "image_id": 2,
                        "question": "What?",
                        "answer_type": "other",
                        "answers": [{"answer": a, "answer_id": 1} for a in TEN],
                        "image": CELL,
                    }
                ]
            },
            "",
            ("What?", tuple(TEN), ()),
        )
    ],
    "textvqa": [
        (
            {
                "validation-0.parquet": [
                    {
                        "question_id": 1,
                        "image_id": "2",
                        "question": "what?",
                        "answers": TEN,
                        "ocr_tokens": ["STOP"],
                        "image": CELL,
                    }
                ]
            },
            "",
            ("what?", tuple(TEN), ()),
        ),
        (
            {"TextVQA_VAL.tsv": [{"index": 1, "question": "what?", "answer": str(TEN), "image": B64}]},
            "",
            ("what?", tuple(TEN), ()),
        ),
    ],
    "vizwiz": [
        (
            {"VizWiz.tsv": [{"index": 1, "question": "what?", "answers": str(TEN), "image": B64}]},
            "",
            ("what?", tuple(TEN), ()),
        ),
        *(
            (
                {
                    name: [
                        {
                            "image": "1.jpg",
                            "question": "what?",
                            "answer_type": "other",
                            "answers": [{"answer": a, "answer_confidence": "yes"} for a in TEN],
                        }
                    ]
                },
                "val/1.jpg",
                ("what?", tuple(TEN), ()),
            )
            for name in ("val.json", "Annotations/val.json")
        ),
        (
            {
                "val-0.parquet": [
                    {"question_id": "1", "question": "what?", "answers": TEN, "category": "other", "image": CELL}
                ]
            },
            "",
            ("what?", tuple(TEN), ()),
        ),
    ],
    "docvqa": [
        (
            {"DocVQA_VAL.tsv": [{"index": 1, "question": "Who?", "answer": "['ITC', 'itc']", "image": B64}]},
            "",
            ("Who?", ("ITC", "itc"), ()),
        ),
        (
            {
                "DocVQA/validation-0.parquet": [
                    {"questionId": "1", "question": "Who?", "answers": ["ITC", "itc"], "docId": 4, "image": CELL}
                ]
            },
            "",
            ("Who?", ("ITC", "itc"), ()),
        ),
    ],
    "chartqa": [
        (
            {"ChartQA_TEST.tsv": [{"index": 1, "question": "How many?", "answer": "14", "split": "x", "image": B64}]},
            "",
            ("How many?", ("14",), ()),
        ),
        *(
            (
                {
                    f"{folder}test_{name}.json": [{"imgname": "1.png", "query": "How many?", "label": "14"}]
                    for name in ("human", "augmented")
                },
                f"{folder}png/1.png",
                ("How many?", ("14",), ()),
            )
            for folder in ("", "test/", "ChartQA Dataset/test/")
        ),
        (
            {"test-0.parquet": [{"question": "How many?", "answer": ["14"], "type": "human_test", "image": CELL}]},
            "",
            ("How many?", ("14",), ()),
        ),
    ],
    "msvd-qa": [
        (
            {"test_q.json": [VIDEO], "test_a.json": [{"answer": "man", "question_id": "v1_0", "type": 2}]},
            "videos/v1.avi",
            ("who runs?", ("man",), ()),
        )
    ],
    "msrvtt-qa": [
        (
            {"test_q.json": [VIDEO], "test_a.json": [{"answer": "man", "question_id": "v1_0", "type": 2}]},
            "videos/all/v1.mp4",
            ("who runs?", ("man",), ()),
        )
    ],
    "tgif-qa": [
        (
            {"test_q.json": [VIDEO], "test_a.json": [{"answer": "man", "question_id": "v1_0"}]},
            "mp4/v1.mp4",
            ("who runs?", ("man",), ()),
        ),
        (
            {
                "Test_frameqa_question.csv": [
                    {"gif_name": "t_1", "question": "who runs?", "answer": "man", "vid_id": "9"}
                ]
            },
            "gifs/t_1.gif",
            ("who runs?", ("man",), ()),
        ),
    ],
    "videomme": [
        (
            {
                "videomme/test-00000-of-00001.parquet": [
                    {
                        "video_id": "001",
                        "duration": "short",
                        "videoID": "x1",
                        "question_id": "001-1",
                        "question": "When?",
                        "options": ["A. July.", "B. May."],
                        "answer": "B",
                    }
                ]
            },
            "data/x1.mp4",
            ("When?", ("B",), ("July.", "May.")),
        )
    ],
    "mvbench": [
        (
            {
                "json/action_count.json": [
                    {"video": "v2.mp4", "question": "How often?", "candidates": ["3", "2"], "answer": "2"}
                ]
            },
            "video/perception/videos/v2.mp4",
            ("How often?", ("B",), ("3", "2")),
        )
    ],
}
SAME_DATA = {
    "mme-perception": "mme",
    "hallusionbench-all": "hallusionbench",
    "mathvista-judged": "mathvista",
    "mathvision-mini": "mathvision",
    "mathvision-judged": "mathvision",
    "msvd-qa-exact": "msvd-qa",
    "msrvtt-qa-exact": "msrvtt-qa",
    "tgif-qa-exact": "tgif-qa",
}
CASES = [f"{name}/{number}" for name, layouts in LAYOUTS.items() for number in range(len(layouts))]


def write(path: Path, rows: Any) -> None:
    """A data file by its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:  # as pandas writes tables: a cell with line breaks in quotes
        cells = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
        lines = ["\t".join(f'"{cell}"' if "\n" in cell else cell for cell in line) for line in cells]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def lay_out(folder: Path, name: str, number: int) -> DataTask:
    files, beside, _ = LAYOUTS[name][number]
    for file, rows in files.items():
        write(folder / file, rows)
    if beside:
        (folder / beside).parent.mkdir(parents=True, exist_ok=True)
        (folder / beside).write_bytes(PNG)
    return SETS[name]


@pytest.mark.parametrize("case", CASES)
def test_a_task_reads_each_of_its_layouts(tmp_path: Path, case: str) -> None:
    name, number = case.split("/")[0], int(case.split("/")[1])
    task = lay_out(tmp_path / (SETS[name].folder or name), name, number)
    if task.dimension == "video":
        pytest.importorskip("av")
    samples = list(task.samples(Place(data=tmp_path)))
    _, _, (question, answers, options) = LAYOUTS[name][number]
    assert samples and [sample.problem for sample in samples] == [""] * len(samples)
    first = samples[0]
    assert (first.question, first.answers, first.options) == (question, answers, options)
    assert (first.video is not None) == (task.dimension == "video") and len(first.pictures) == (first.video is None)
    assert all(picture.open().size == (8, 8) for picture in first.pictures)
    assert len({sample.id for sample in samples}) == len(samples)
    if not task.judged:  # the right answer counts as right
        assert score_reply(first.kind, first.answers[0], first.answers, first.options, first.facts).score == 1.0


def test_files_that_any_set_may_have_are_read_from_the_folder_of_the_task_alone(tmp_path: Path) -> None:
    """POPE's parquet files have the names and columns of MME's."""
    lay_out(tmp_path, "pope", 4)
    with pytest.raises(UserError, match="The data of mme is missing"):
        next(SETS["mme"].samples(Place(data=tmp_path)))


def test_every_layout_is_read_by_some_case() -> None:
    """Layouts of one task in parquet differ in their folders alone, and one of these stands for the others."""
    for name, task in SETS.items():
        if name in SAME_DATA:
            continue
        layouts = {layout: [files for files, _, _ in LAYOUTS[name] if _is(layout, files)] for layout in task.files}
        read = {id(layout.columns) for layout, files in layouts.items() if files}
        for layout, files in layouts.items():
            assert files or (layout.names[0].endswith(".parquet") and id(layout.columns) in read), (name, layout.names)


def _is(layout: Files, files: Mapping[str, Any]) -> bool:
    return len(layout.names) in (1, len(files)) and all(
        any(fnmatch(file, pattern) and file.count("/") == pattern.count("/") for file in files)
        for pattern in layout.names
    )


def test_sets_are_whole() -> None:
    """Each task names a kind and a metric that are there, where its data is, and the words of the three protocols."""
    for name, task in SETS.items():
        assert task.kind in SCORERS or task.judged, name
        assert METRICS[task.metric.name] is task.metric
        assert {"lmms", "vlmevalkit", "llava"} <= task.wordings.keys(), name
        for wording in task.wordings.values():
            assert wording.reads is None or wording.reads in SCORERS
        assert task.where.startswith("https://") and task.size, name
        assert task.folder or task.name not in SAME_DATA, "a task that shares data says in which folder"


def test_a_pair_a_rotation_and_a_set_are_one_group(tmp_path: Path) -> None:
    for name in ("mme", "mmbench", "hallusionbench"):
        assert SETS[name].grouped
    pair = list(lay_out(tmp_path / "a", "mme", 0).samples(Place(data=tmp_path / "a")))
    assert pair[0].group == pair[1].group == "mme/OCR-1.jpg"
    (rotated,) = lay_out(tmp_path / "b", "mmbench", 0).samples(Place(data=tmp_path / "b"))
    assert rotated.group == "mmbench/241"
    (asked,) = lay_out(tmp_path / "c", "hallusionbench", 1).samples(Place(data=tmp_path / "c"))
    assert asked.group == "hallusionbench/VS-chart-0" and asked.facts == {"question": "2", "figure": "1"}


def test_formulas_are_scored_as_formulas(tmp_path: Path) -> None:
    row = {"dataset_name": "HME100k", "id": 1, "image_path": "1.png", "question": "what?", "answers": "x ^ 2"}
    write(tmp_path / "OCRBench.json", [{**row, "type": "Handwritten Mathematical Expression Recognition"}])
    (sample,) = SETS["ocrbench"].samples(Place(data=tmp_path))
    assert sample.kind == "contains-formula" or sample.problem


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("pope", {"question_id": 1, "image": "1.jpg", "text": "Is there a dog?"}, "it has no column 'label'"),
        ("pope", {"question_id": 1, "image": "1.jpg", "text": "Is there a dog?", "label": "no"}, "there is no picture"),
        ("mvbench", {"video": "v", "question": "?", "candidates": ["a", "b"], "answer": "c"}, "no video"),
        ("hallusionbench", {**HALLUSION, "filename": "1.png", "gt_answer": "2"}, "its columns do not give 'gt_answer'"),
    ],
)
def test_a_row_that_does_not_fit_says_why(tmp_path: Path, name: str, row: Mapping[str, Any], problem: str) -> None:
    files = {"pope": "coco_pope_random.json", "mvbench": "json/action_count.json"}
    if name == "mvbench":
        pytest.importorskip("av")
    write(tmp_path / files.get(name, "HallusionBench.json"), [row])
    (sample,) = SETS[name].samples(Place(data=tmp_path))
    assert problem in sample.problem


def test_missing_data_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The data of pope is missing: .* Get it from https://.*9,000 questions"):
        next(SETS["pope"].samples(Place(data=tmp_path)))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("pope", 900),
        ("ocrbench", 1000),
        ("hallusionbench", 951),
        ("hallusionbench-all", 1129),
        ("mathvista", 1000),
        ("mathvision", 3040),
        ("mathvision-mini", 304),
    ],
)
def test_the_real_files_have_all_their_questions(name: str, count: int) -> None:
    samples: list[Sample] = list(get_task(name).samples(Place(data=SHARED)))
    assert len(samples) == len({sample.id for sample in samples}) == count
    assert {sample.problem.partition("'")[0] for sample in samples} <= {"", "there is no picture "}

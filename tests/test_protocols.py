"""Protocols: the words of each, letter by letter, system messages, lengths of replies and limits of pictures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from vlmprune.assets import embedded_path
from vlmprune.bench.protocol import Asker, takes_pixels
from vlmprune.bench.protocols import LLAVA, LMMS, PLAIN, PROTOCOLS, SHORT, VLMEVALKIT, Pixels, Protocol
from vlmprune.bench.store import Run
from vlmprune.core.errors import UserError
from vlmprune.data.sample import FilePicture, Sample
from vlmprune.models.processors import load_processor
from vlmprune.tasks import get_task

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
PICTURE = FilePicture(Path("1.png"))
SAMPLES = {
    "mme": Sample("mme/1", "Is this a cat? Please answer yes or no.", "yesno", ("yes",), (PICTURE,)),
    "mmbench": Sample("m/1", "What is it?", "option", ("A",), (PICTURE,), options=("cat", "dog"), hint="Look."),
    "mmbench-cn": Sample("m/1", "这是什么？", "option", ("A",), (PICTURE,), options=("猫", "狗")),
    "pope": Sample("pope/1", "Is there a dog in the image?", "yesno", ("no",), (PICTURE,)),
    "gqa": Sample("gqa/1", "Is it red?", "exact", ("no",), (PICTURE,)),
    "textvqa": Sample("t/1", "what is the Name?", "vqa", ("x",), (PICTURE,), hint="Reference OCR token: STOP, 40"),
    "scienceqa": Sample("s/1", "Which is it?", "option", ("B",), (PICTURE,), options=("one", "two"), hint="A fact."),
    "chartqa": Sample("c/1", "How many?", "relaxed", ("14",), (PICTURE,)),
    "mathvision": Sample("v/1", "Which bike?\n<image1>", "mathvision", ("A",), (PICTURE,), options=("red", "blue")),
    "mathvista": Sample("v/2", "Which angle?", "mathvista", ("2",), (PICTURE,), options=("1", "2"), hint="Please do."),
}


class Words:
    """A processor that shows what a chat template would get."""

    def apply_chat_template(self, messages: list[dict[str, Any]], **_: Any) -> str:
        parts = [(m["role"], part.get("text", f"<{part['type']}>")) for m in messages for part in m["content"]]
        return "|".join(text if role == "user" else f"[{role}: {text}]" for role, text in parts)


def prompt(protocol: Protocol, task: str, model_type: str = "qwen2_5_vl") -> str:
    processor: Any = Words()
    processor.image_processor = SimpleNamespace()
    bare = Protocol(protocol.name, tails=protocol.tails, systems=protocol.systems)  # pixels need a real processor
    return Asker(bare, get_task(task), processor, model_type).prompt(SAMPLES[task])


SHORT_TAIL = "\nAnswer the question using a single word or phrase."
LETTER_TAIL = "\nAnswer with the option's letter from the given choices directly."
SELECT = "Please select the correct answer from the options above."
EXPECTED = {
    ("lmms", "mme", "qwen2_5_vl"): f"<image>|Is this a cat?{SHORT_TAIL}",
    ("vlmevalkit", "mme", "qwen2_5_vl"): "<image>|Is this a cat? Please answer yes or no.",
    ("vlmevalkit", "mme", "internvl"): "<image>|Is this a cat? Please answer yes or no. Answer the question using a "
    "single word or phrase.",
    ("llava", "mme", "llava"): f"[system: {VICUNA}]|<image>|Is this a cat?{SHORT_TAIL}",
    ("lmms", "mmbench", "llava"): f"[system: {VICUNA}]|<image>|Look. What is it? There are several options:\nA. cat\n"
    "B. dog\n\nAnswer with the option's letter from the given choices directly.",
    ("vlmevalkit", "mmbench", "qwen2_5_vl"): f"<image>|Hint: Look.\nQuestion: What is it?\nOptions:\nA. cat\nB. dog\n"
    f"{SELECT} \n",
    ("vlmevalkit", "mmbench", "qwen2_vl"): f"<image>|Hint: Look.\nQuestion: What is it?\nOptions:\nA. cat\nB. dog\n"
    f"{SELECT}",
    ("vlmevalkit", "mmbench", "internvl"): f"<image>|Look.\nWhat is it?\nA. cat\nB. dog{LETTER_TAIL}",
    ("llava", "mmbench", "llava_next"): f"<image>|Look.\nWhat is it?\nA. cat\nB. dog{LETTER_TAIL}",
    ("lmms", "mmbench-cn", "qwen2_5_vl"): "<image>|这是什么？ 有如下几个选项：\nA. 猫\nB. 狗\n\n"
    "请直接使用所提供的选项字母作为答案回答。",
    ("vlmevalkit", "mmbench-cn", "internvl"): "<image>|这是什么？\nA. 猫\nB. 狗\n请直接回答选项字母。",
    ("lmms", "pope", "qwen2_5_vl"): f"<image>|Is there a dog in the image?{SHORT_TAIL}",
    ("vlmevalkit", "pope", "qwen2_vl"): "<image>|Is there a dog in the image? Please answer yes or no.",
    (
        "vlmevalkit",
        "pope",
        "llava",
    ): f"[system: {VICUNA.replace('user', 'human')}]|<image>|Is there a dog in the image?",
    ("llava", "pope", "llava_next"): f"<image>|Is there a dog in the image?{SHORT_TAIL}",
    ("lmms", "gqa", "qwen2_5_vl"): f"<image>|Is it red?{SHORT_TAIL}",
    ("vlmevalkit", "gqa", "qwen2_5_vl"): f"<image>|Is it red?{SHORT_TAIL}",
    ("llava", "gqa", "llava_next"): f"<image>|Is it red?{SHORT_TAIL}",
    ("short", "gqa", "llava"): "<image>|Is it red?\nAnswer with a single word or phrase.",
    ("lmms", "textvqa", "qwen2_5_vl"): f"<image>|What is the name?{SHORT_TAIL}",
    ("vlmevalkit", "textvqa", "qwen2_vl"): "<image>|what is the Name?\nPlease try to answer the question with short "
    "words or phrases if possible.",
    ("llava", "textvqa", "llava_next"): f"<image>|what is the Name?\nReference OCR token: STOP, 40{SHORT_TAIL}",
    ("short", "textvqa", "llava"): "<image>|what is the Name?\nAnswer with a single word or phrase.",
    ("lmms", "scienceqa", "qwen2_5_vl"): f"<image>|Context: A fact.\nWhich is it?\nA. one\nB. two{LETTER_TAIL}",
    ("vlmevalkit", "scienceqa", "llava_next"): f"<image>|A fact.\nWhich is it?\nA. one\nB. two{LETTER_TAIL}",
    ("llava", "scienceqa", "llava_next"): f"<image>|Context: A fact.\nWhich is it?\nA. one\nB. two{LETTER_TAIL}",
    ("short", "scienceqa", "llava"): "<image>|A fact.\nWhich is it?\nA. one\nB. two\nAnswer with the letter of the "
    "right option.",
    ("lmms", "chartqa", "qwen2_5_vl"): "<image>|How many?\nAnswer the question with a single word.",
    ("vlmevalkit", "chartqa", "internvl"): f"<image>|How many?{SHORT_TAIL}",
    ("llava", "chartqa", "llava_next"): f"<image>|How many?{SHORT_TAIL}",
    ("lmms", "mathvision", "qwen2_5_vl"): "<image>|Please solve the problem step by step and put your answer in one "
    '"\\boxed{}".Which bike?\n<image1>\nChoices: A. red\nB. blue\nAnswer the question with the option\'s letter from '
    "the given choices directly.",
    ("vlmevalkit", "mathvision", "internvl"): "Which bike?|<image>|\nChoices:\n(A) red\n(B) blue",
    ("llava", "mathvision", "llava_next"): f"Which bike?|<image>|\nA. red\nB. blue{LETTER_TAIL}",
    ("lmms", "mathvista", "qwen2_5_vl"): "<image>|Question: Which angle?\nChoices:\n(A) 1\n(B) 2\nHint: Please do.",
    ("vlmevalkit", "mathvista", "qwen2_5_vl"): "<image>|Hint: Please do.\nQuestion: Which angle?\nChoices:\n(A) 1\n"
    "(B) 2",
}


@pytest.mark.parametrize("case", EXPECTED, ids="-".join)
def test_the_words_are_those_of_the_protocol(case: tuple[str, str, str]) -> None:
    protocol, task, model_type = case
    assert prompt(PROTOCOLS[protocol], task, model_type).replace("Which bike?\n|", "Which bike?|") == EXPECTED[case]


def test_a_question_may_hold_what_looks_like_a_field() -> None:
    sample = Sample("pope/1", "Is {options} or {hint} written there?", "yesno", ("no",), (PICTURE,), hint="H")
    assert get_task("pope").wordings["llava"].of(sample) == f"Is {{options}} or {{hint}} written there?{SHORT_TAIL}"


def test_words_that_need_what_the_data_lacks_are_refused() -> None:
    sample = Sample("textvqa/1", "what?", "vqa", ("x",), (PICTURE,))
    with pytest.raises(UserError, match="textvqa/1 cannot be asked"):
        get_task("textvqa").wordings["llava"].of(sample)
    assert get_task("textvqa").wordings["lmms"].of(sample) == f"What?{SHORT_TAIL}"


def test_lengths_of_replies() -> None:
    def length(protocol: Protocol, task: str, model_type: str = "qwen2_5_vl") -> int:
        return protocol.length(get_task(task), model_type)

    assert (length(LMMS, "mme"), length(LMMS, "pope"), length(LMMS, "textvqa")) == (16, 128, 128)
    assert (length(LMMS, "textvqa", "llava"), length(LMMS, "mathvision")) == (1024, 16384)
    assert (length(VLMEVALKIT, "mme", "llava"), length(VLMEVALKIT, "mme", "internvl"), length(VLMEVALKIT, "mme")) == (
        512,
        4096,
        2048,
    )
    assert (length(LLAVA, "gqa", "llava"), length(LLAVA, "mmbench", "llava")) == (128, 1024)
    assert (length(SHORT, "gqa"), length(PLAIN, "mathvision"), length(PLAIN, "synth-ocr")) == (16, 1024, 16)


def test_replies_are_read_as_the_protocol_does() -> None:
    def kind(protocol: Protocol, task: str) -> str:
        return Asker(protocol, get_task(task), Words(), "llava").kind(SAMPLES[task])

    assert kind(LMMS, "scienceqa") == kind(LLAVA, "scienceqa") == "option-first"
    assert kind(VLMEVALKIT, "scienceqa") == kind(SHORT, "scienceqa") == "option"


def test_limits_of_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "1.png")
    sample = Sample("gqa/1", "what?", "exact", ("x",), (FilePicture(tmp_path / "1.png"),))
    qwen, llava = (load_processor(embedded_path(name)) for name in ("qwen2_5_vl", "llava"))
    assert takes_pixels(qwen) and not takes_pixels(llava)

    def slots(pixels: Pixels | None, protocol: Protocol = PLAIN) -> int:
        inputs = Asker(protocol, get_task("gqa"), qwen, "qwen2_5_vl", pixels).inputs([sample])
        assert int((inputs["input_ids"] == qwen.image_token_id).sum()) == int(inputs["image_grid_thw"].prod()) // 4
        return int(inputs["image_grid_thw"].prod())

    free = slots(None)
    assert slots(Pixels(400, 5_000)) < free < slots(Pixels(30_000, 40_000))
    assert slots(None, LMMS) > free, "lmms-eval has its own limits for Qwen2.5-VL"
    assert slots(None) == free, "a processor is left as it was"
    with pytest.raises(UserError, match="is not possible: LlavaProcessor scales pictures"):
        Asker(PLAIN, get_task("gqa"), llava, "llava", Pixels(1, 2))
    for least, most in ((10, 5), (0, 5)):
        with pytest.raises(UserError, match="is not a range"):
            Pixels(least, most)


def test_limits_are_in_the_key_and_their_absence_is_not() -> None:
    common: dict[str, Any] = dict.fromkeys(
        ("model", "weights", "dtype", "attention", "method", "recipe", "positions", "task", "samples", "protocol"), "x"
    )
    common |= {"keep": 0.5, "version": 1, "n": 1, "canvas": "", "generation": {}, "seed": 0, "batch_size": 1}
    common |= {"versions": {}}
    plain, limited = Run(**common), Run(**common, pixels="1,2")
    assert plain.key != limited.key and plain.setting != limited.setting
    assert Run(**common, code={"f": "1"}).setting == plain.setting

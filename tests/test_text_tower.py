"""CLIP's text tower beside a model: against transformers' own CLIP, through the runtime, and what stands in for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from harness import SEEDS, batch, built
from harness_text import QUESTION, clip_model, clip_tokenizer, prompt_tokenizer, tower
from torch import Tensor
from transformers import LlamaConfig

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.needs import Need
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.signals import Alignment, Features, PromptText
from vlmprune.core.view import ImageView, ModelInfo
from vlmprune.runtime.text_tower import TextTower
from vlmprune.testing import FAMILIES, alone, prompt
from vlmprune.testing.weights import IMAGE, VIDEO

LONG = " ".join([QUESTION] * 20)  # of 11 words: 222 tokens with start and end, three pieces
EXACT = 1e-6


# ------------------------------------------------------------------ a small CLIP


def words(ids: Tensor) -> str:
    return " ".join(prompt_tokenizer().convert_ids_to_tokens(ids[ids > 2].tolist()))


def largest(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype == torch.float32
    return float((a - b).detach().abs().max())


# ------------------------------------------------------------------ against transformers' own CLIP


@torch.no_grad()
@pytest.mark.parametrize("end", [None, 2])  # OpenAI's configs call it 2, newer ones by its id
@pytest.mark.parametrize("sentence", [QUESTION, "circle", "", " ".join(["red"] * 75)])
def test_a_question_is_what_clip_makes_of_it(sentence: str, end: int | None) -> None:
    ids = clip_tokenizer()([sentence], return_tensors="pt", padding="max_length", max_length=77)
    want = tower(end=end).clip.get_text_features(**ids).pooler_output
    for truncate in (False, True):
        assert largest(tower(end=end).text(sentence, truncate), want) < EXACT


@torch.no_grad()
@pytest.mark.parametrize("end", [None, 2])
@pytest.mark.parametrize("sentence", [LONG, " ".join(["red"] * 76), " ".join(["square"] * 152)])
def test_a_long_text_is_cut_into_pieces_of_77_tokens(sentence: str, end: int | None) -> None:
    ids = clip_tokenizer()(sentence).input_ids
    pieces = [ids[k : k + 77] for k in range(0, len(ids), 77)]
    padded = torch.tensor([piece + [0] * (77 - len(piece)) for piece in pieces])
    mask = torch.tensor([[1] * len(piece) + [0] * (77 - len(piece)) for piece in pieces])
    # CLIP with "end token 2" reads at the highest id: the end token in the last piece, any token in the others
    want = tower(end=2).clip.get_text_features(padded, attention_mask=mask).pooler_output
    found = tower(end=end).text(sentence)
    assert len(found) == len(pieces) >= 2 and largest(found, want) < EXACT


@torch.no_grad()
def test_a_cut_text_keeps_its_end_token() -> None:
    ids = clip_tokenizer()(LONG, truncation=True, max_length=77, return_tensors="pt")
    assert int(ids.input_ids[0, -1]) == clip_tokenizer().eos_token_id and ids.input_ids.shape == (1, 77)
    found = tower().text(LONG, truncate=True)
    assert largest(found, tower().clip.get_text_features(**ids).pooler_output) < EXACT
    assert largest(found, tower().text(LONG)[:1]) > 1e-3


@torch.no_grad()
def test_rows_are_projected_as_clip_projects_its_own() -> None:
    clip, pixels = tower().clip, torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    rows = clip.vision_model(pixels).last_hidden_state[:, 0]
    assert largest(tower().visual(rows), clip.get_image_features(pixels).pooler_output) < EXACT
    assert largest(tower().visual(rows.half()), tower().visual(rows.half().float())) < EXACT


def test_a_half_precision_tower_gives_float32() -> None:
    half = TextTower(clip_model().bfloat16(), clip_tokenizer(), prompt_tokenizer())
    rows = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    for a, b in ((half.text(QUESTION), tower().text(QUESTION)), (half.visual(rows), tower().visual(rows))):
        assert largest(a, b) < 0.1 * float(b.abs().max())


# ------------------------------------------------------------------ through the runtime


@dataclass
class Recorded(Method):
    """Keeps the first tokens and remembers what it was shown."""

    name: ClassVar[str] = "recorded"
    stage: ClassVar[str] = "vision"

    truncate: bool = False
    seen: list[ImageView] = field(default_factory=list)

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"aligned": Alignment(self.truncate), "features": Features(), "text": PromptText(after_image=True)}

    def select(self, view: ImageView) -> Tensor:
        self.seen.append(view)
        return torch.arange(view.keep)


def recorded(
    family: str,
    inputs: dict[str, Tensor],
    text_tower: TextTower | None = None,
    question: str | list[str] | None = None,
    truncate: bool = False,
    tokenizer: object = None,
) -> tuple[list[ImageView], str | None]:
    """What a method sees of each image, in the order of the prompt, and what the report says."""
    method = Recorded(truncate, per="image")
    read = {"text_tower": text_tower, "tokenizer": tokenizer}
    with torch.no_grad(), vlmprune.prune(built(family), Recipe((Stage(method, 1),)), **read) as session:
        session.question = question
        built(family)(**inputs)
    return method.seen, session.last.text


@cache
def tower_rows(family: str) -> tuple[Tensor, ...]:
    """Patches [tiles, N, width] that the projector reads, of each image of SEEDS in the prompt's order."""
    inputs, states = batch(FAMILIES[family], SEEDS), []
    with torch.no_grad():
        if family == "llava_next":  # padded with tiles of nothing
            shapes = [FAMILIES[family].image(seed)[0]["pixel_values"].shape[1] for sample in SEEDS for seed in sample]
            pictures = [image[:tiles] for image, tiles in zip(inputs["pixel_values"], shapes, strict=True)]
        else:
            pictures = list(inputs["pixel_values"][:, None])
        for picture in pictures:
            states.append(built(family).model.vision_tower(picture, output_hidden_states=True).hidden_states[-2][:, 1:])
    return tuple(states)


@torch.no_grad()
@pytest.mark.parametrize(("family", "size"), [("llava", 24), ("llava_next", 16)])
def test_tokens_of_every_tile_and_the_instruction_meet_in_clips_space(family: str, size: int) -> None:
    """The patches of the tower behind each slot, laid out by hand; slots without one are not shown."""
    inputs, own = batch(FAMILIES[family], SEEDS), tower(size)
    views, said = recorded(family, inputs, own)
    assert said == "CLIP text tower"
    seeds = [(row, seed) for row, sample in enumerate(SEEDS) for seed in sample]
    starts = iter(_ends(inputs["input_ids"], [FAMILIES[family].slots(seed) for _, seed in seeds], seeds))
    for view, rows, (row, seed) in zip(views, tower_rows(family), seeds, strict=True):
        aligned = view["aligned"]
        patches = [slot[0] for slot in FAMILIES[family].patches(seed) if slot]
        side = size // 4
        want = torch.stack([rows[tile, r * side + c] for tile, r, c in patches])
        assert aligned.clip and largest(aligned.visual, own.visual(want)) < 1e-5
        after = inputs["input_ids"][row, next(starts) + 1 :]
        assert largest(aligned.text, own.text(words(after[after != IMAGE]))) < EXACT


def _ends(ids: Tensor, counts: list[int], seeds: list[tuple[int, int]]) -> list[int]:
    """The column of the last slot of each image."""
    taken: dict[int, int] = {}
    found = []
    for count, (row, _) in zip(counts, seeds, strict=True):
        taken[row] = taken.get(row, 0) + count
        found.append(int((ids[row] == IMAGE).nonzero()[taken[row] - 1]))
    return found


def test_a_batch_with_questions_of_its_own_is_each_sample_alone() -> None:
    samples: list[list[int | None]] = [[0, 1], [2], [None, 3]]
    family = FAMILIES["llava"]
    asked = [QUESTION, "how many", LONG]
    for questions in (None, asked):
        together, _ = recorded("llava", prompt(family, samples), tower(), questions)
        single = [
            view
            for row in range(3)
            for view in recorded("llava", alone(family, samples, row), tower(), questions and questions[row])[0]
        ]
        assert len(together) == len(single) == 4
        for a, b in zip(together, single, strict=True):
            assert largest(a["aligned"].visual, b["aligned"].visual) < 1e-4
            assert largest(a["aligned"].text, b["aligned"].text) < EXACT
    assert [len(view["aligned"].text) for view in together] == [1, 1, 1, 3]
    with torch.no_grad():
        assert largest(together[2]["aligned"].text, tower().text("how many")) < EXACT


@torch.no_grad()
@pytest.mark.parametrize("own", [None, "clip"])
def test_a_later_stage_sees_what_is_left_and_encoded_images_carry_all_it_needs(own: str | None) -> None:
    model, inputs = built("llava_next"), batch(FAMILIES["llava_next"], SEEDS)
    text_tower = tower(16) if own else None
    whole, _ = recorded("llava_next", inputs, text_tower)
    method = Recorded(per="image")
    chain = Recipe((*vlmprune.recipe("hiprune:9").stages, Stage(method, 4)))
    for given in (inputs, vlmprune.encode_images(model, inputs, [chain]).inputs()):
        method.seen.clear()
        with vlmprune.prune(model, chain, text_tower=text_tower):
            model(**given)
        assert len(method.seen) == len(whole)
        for view, before in zip(method.seen, whole, strict=True):
            places = torch.searchsorted(before.slots, view.slots)
            assert len(view.slots) == 9 and torch.equal(before.slots[places], view.slots)
            assert largest(view["aligned"].visual, before["aligned"].visual[places]) < EXACT
            assert largest(view["aligned"].text, before["aligned"].text) < EXACT


def test_one_question_for_all_and_a_method_that_reads_its_beginning() -> None:
    inputs = batch(FAMILIES["llava"], SEEDS)
    for truncate in (False, True):
        views, _ = recorded("llava", inputs, tower(), LONG, truncate)
        with torch.no_grad():
            want = tower().text(LONG, truncate)
        assert len(views) == 4 and all(largest(view["aligned"].text, want) < EXACT for view in views)


def test_a_list_of_questions_has_one_for_each_sample() -> None:
    with pytest.raises(UserError, match=r"session\.question has 2 questions"):
        recorded("llava", batch(FAMILIES["llava"], SEEDS), tower(), [QUESTION, QUESTION])


def test_a_prompt_of_embeddings_needs_the_question() -> None:
    model, inputs = built("llava"), batch(FAMILIES["llava"], [[2]])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    given = {**{name: value for name, value in inputs.items() if name != "input_ids"}, "inputs_embeds": embeds}
    with pytest.raises(UserError, match=r"set session\.question"):
        recorded("llava", given, tower())
    views, _ = recorded("llava", given, tower(), QUESTION)
    plain, _ = recorded("llava", inputs, tower(), QUESTION)
    assert largest(views[0]["aligned"].visual, plain[0]["aligned"].visual) < EXACT
    assert recorded("llava", given)[1] == "instruction embeddings"


# ------------------------------------------------------------------ without a tower


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_without_a_tower_a_question_is_read_by_the_tokenizer(family: str) -> None:
    inputs, asked = batch(FAMILIES[family], [[0], [1]]), [QUESTION, "what letter is there"]
    views, said = recorded(family, inputs, None, asked, tokenizer=prompt_tokenizer())
    assert said == "instruction embeddings"
    for question, view in zip(asked, views, strict=True):
        ids = prompt_tokenizer()(question, add_special_tokens=False, return_tensors="pt").input_ids[0]
        assert torch.equal(view["aligned"].text, built(family).get_input_embeddings()(ids).float())
        assert not torch.equal(view["text"], view["aligned"].text), "the prompt's own tokens stay what they are"
    with pytest.raises(UserError, match="give prune tokenizer=, the model's tokenizer or processor"):
        recorded(family, inputs, None, asked)


@torch.no_grad()
@pytest.mark.parametrize(
    "family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl video", "internvl", "llava_onevision"]
)
def test_without_a_tower_the_instructions_embeddings_stand_in(family: str) -> None:
    inputs = batch(FAMILIES[family], [[0], [1]])
    views, said = recorded(family, inputs)
    assert said == "instruction embeddings" and len(views) == 2
    table = built(family).get_input_embeddings()
    for row, view in enumerate(views):
        aligned = view["aligned"]
        ids = inputs["input_ids"][row]
        slot = VIDEO if "video" in family else IMAGE
        last = int((ids == slot).nonzero()[-1])
        assert not aligned.clip and torch.equal(aligned.visual, view["features"])
        assert torch.equal(aligned.text, table(ids[last + 1 :]).float()) and torch.equal(aligned.text, view["text"])


def test_the_report_says_nothing_where_no_method_reads_text() -> None:
    with torch.no_grad(), vlmprune.prune(built("llava"), "divprune:0.5", text_tower=tower()) as session:
        built("llava")(**batch(FAMILIES["llava"], [[0]]))
    assert session.last.text is None


# ------------------------------------------------------------------ a tower that does not belong


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl", "llava with SigLIP", "llava_onevision", "paligemma"])
def test_a_tower_for_a_model_without_clip_is_one_sentence(family: str) -> None:
    name = FAMILIES[family].name
    with pytest.raises(UserError, match=f"^A text tower has no use here: the vision tower of {name} is not CLIP's.$"):
        vlmprune.prune(built(family), "fuse(cdpruner:5)", text_tower=tower())  # before a picture comes


def test_a_tower_that_no_method_asks_for_is_no_mistake() -> None:
    session = vlmprune.prune(built("qwen2_5_vl"), "divprune:5", text_tower=tower())
    assert session.text is None
    assert vlmprune.prune(built("llava"), "trim:5", text_tower=tower()).text == "CLIP text tower"
    assert vlmprune.prune(built("llava"), "gridprune:5").text == "instruction embeddings"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"hidden_size": 64}, "hidden_size is 64, that of llava 32"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, that of llava 5"),
        ({"patch_size": 8}, "patch_size is 8, that of llava 4"),
        ({"image_size": 48}, "image_size is 48, that of llava 24"),
    ],
)
def test_a_tower_of_another_clip_is_one_sentence(other: dict[str, int], said: str) -> None:
    wrong = TextTower(clip_model(**other), clip_tokenizer(), prompt_tokenizer())
    with pytest.raises(UserError, match=f"^This text tower belongs to another vision tower: its {said}.$"):
        recorded("llava", batch(FAMILIES["llava"], [[0]]), wrong)


# ------------------------------------------------------------------ from a folder


def test_it_loads_from_a_folder(tmp_path: Path) -> None:
    clip_model().half().save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    loaded = vlmprune.TextTower.from_pretrained(str(tmp_path), prompt_tokenizer())
    assert loaded.clip.dtype == torch.float32 and not loaded.clip.training
    assert largest(loaded.text(LONG), tower().text(LONG)) < 0.02


def test_what_is_no_clip_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^No CLIP model could be loaded from [^\n]*[^.\n]\.$"):
        TextTower.from_pretrained(str(tmp_path / "nowhere"), prompt_tokenizer())
    clip_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="is broken"):
        TextTower.from_pretrained(str(tmp_path), prompt_tokenizer())
    for config, kind in ((LlamaConfig(), "llama"), (clip_model().config.vision_config, "clip_vision_model")):
        config.save_pretrained(tmp_path)
        with pytest.raises(UserError, match=f" is a {kind} model, not a CLIP model with a text and a vision tower.$"):
            TextTower.from_pretrained(str(tmp_path), prompt_tokenizer())

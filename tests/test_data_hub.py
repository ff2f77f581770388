"""Data sets of the hub: read by the library `datasets` itself from local copies, and errors by a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from harness_data import lines, picture, png, problems

from vlmprune.core.errors import UserError
from vlmprune.data.hub import RemoteFile, hub_rows
from vlmprune.tasks.own import own_task


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def save(folder: Path, split: str = "test") -> Path:
    """A data set as the hub has it: parquet below data/, with pictures and numbered classes."""
    features = datasets.Features({
        "image": datasets.Image(),
        "question": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
    })  # fmt: skip
    rows = {
        "image": [{"bytes": png(k), "path": None} for k in range(3)], "question": ["q"] * 3, "label": [1, 0, None],
    }  # fmt: skip
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def load(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """`datasets` finds "owner/name" in a folder."""
    original = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *args, **more: original(str(folder), *args, **more))


def test_rows_stream_with_pictures_still_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, save(tmp_path / "set"))
    rows = list(hub_rows("owner/name", split="test"))
    assert [row["label"] for row in rows] == ["dog", "cat", None]
    assert [row["image"]["bytes"] for row in rows] == [png(k) for k in range(3)]
    samples = list(own_task("owner/name::test").samples())
    assert [sample.answers for sample in samples[:2]] == [("dog",), ("cat",)]
    assert samples[1].images[0].tobytes() == picture(1).tobytes()
    assert problems(samples) == {"name::test/line-3": "it has no answer in the column 'answer'"}


@pytest.mark.parametrize(("splits", "taken"), [(["train", "test"], "test"), (["train", "validation"], "validation"),
                                               (["train"], "train")])  # fmt: skip
def test_the_split_where_none_is_named(
    splits: list[str], taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in splits:
        lines(tmp_path / f"{split}.jsonl", [{"question": split}])
    load(monkeypatch, tmp_path)
    assert [row["question"] for row in hub_rows("owner/name")] == [taken]


def test_splits_of_which_none_is_for_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Splits(dict[str, Any]):
        pass

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Splits(first=None, second=None))
    with pytest.raises(UserError) as caught:
        next(hub_rows("owner/name"))
    assert "has the splits first, second" in str(caught.value) and "--tasks owner/name::first" in caught.value.typed


class Broken:
    """A stream that ends in the middle."""

    features = None

    def decode(self, enable: bool) -> Iterator[dict[str, Any]]:
        assert not enable
        yield {"question": "q"}
        raise ConnectionError("Connection reset. Try again")


def test_the_errors_of_the_hub_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub.\nMaxRetryError: ...")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"'owner/name:c:s' cannot be read from .*: Couldn't reach the Hub; where"):
        next(hub_rows("owner/name", "c", "s"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Broken())
    rows = hub_rows("owner/name", split="s")
    assert next(rows)["question"] == "q"
    with pytest.raises(UserError, match="Connection reset; where"):
        next(rows)


def test_pictures_that_are_files_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(2).save(tmp_path / "a.png")
    url = (tmp_path / "a.png").as_uri()
    assert RemoteFile(url).read() == (tmp_path / "a.png").read_bytes()

    class Remote:
        features = None

        def decode(self, enable: bool) -> Iterator[dict[str, Any]]:
            yield {"image": {"bytes": None, "path": url}, "question": "q", "answer": "x"}
            yield {"image": [{"bytes": None, "path": url + "x"}], "question": "q", "answer": "x"}

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Remote())
    good, gone = own_task("owner/name::s").samples()
    assert good.images[0].tobytes() == picture(2).tobytes()
    with pytest.raises(UserError, match=r"The picture of owner/name::s/line-2 cannot be read"):
        _ = gone.images

"""Rows of every kind of file, the faults that a file may have, and how little of it is in memory at once."""

from __future__ import annotations

import base64
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from harness_data import lines, separated, text64
from pyarrow import parquet

from vlmprune.core.errors import UserError
from vlmprune.data import rows as readers
from vlmprune.data.rows import LINE, PROBLEM, READERS, read_rows
from vlmprune.data.separated import EarlierImage
from vlmprune.data.source import data_files

ROWS = [
    {"id": "a", "question": "Was ist das?"},
    {"id": "b", "question": "são\nzwei"},
    {"id": "c", "question": '"x", y'},
]


def write(path: Path) -> Path:
    """ROWS in the format of the ending."""
    if path.suffix == ".jsonl":
        return lines(path, ROWS)
    if path.suffix == ".json":
        path.write_text(json.dumps(ROWS, indent=2))
    elif path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        separated(path, ROWS)
    return path


def plain(path: Path) -> list[dict]:
    """Rows without the columns that the reader adds."""
    return [{name: value for name, value in row.items() if name not in ("_file", "_line")} for row in read_rows(path)]


@pytest.mark.parametrize("ending", READERS)
def test_every_format_gives_the_same_rows(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"data{ending}")
    assert plain(path) == ROWS
    assert [(row["_file"], row[LINE]) for row in read_rows(path)] == [("data", 1), ("data", 2), ("data", 3)]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv"])
def test_a_byte_order_mark_is_no_part_of_the_text(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"data{ending}")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert plain(path) == ROWS


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_json_of_any_shape(indent: int | None, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmprune.data.stream._CHUNK", chunk)
    path = tmp_path / "data.json"
    path.write_text(json.dumps(ROWS, indent=indent))
    assert plain(path) == ROWS
    path.write_text(json.dumps({row["id"]: {"question": row["question"]} for row in ROWS}, indent=indent))
    assert plain(path) == ROWS
    path.write_text("\n" + json.dumps(ROWS[:1] * 2, indent=indent) + "\n")
    assert plain(path) == ROWS[:1] * 2


def test_json_lines_under_the_ending_json(tmp_path: Path) -> None:
    path = lines(tmp_path / "data.json", ROWS)
    assert plain(path) == ROWS
    assert plain(lines(path, ROWS[:1])) == ROWS[:1]  # one row is a row, not rows by id


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[{"id": 1}, {"id": ', "is not JSON"),
        ('[{"id": 1} {"id": 2}]', r"',' expected, '\{' found at character 12"),
        ('[{"id": 1}', "it ends too early at character 11"),
        ('{1: {"a": 2}}', "a name expected, '1' found"),
        ("7", "must be a JSON list or object"),
        ("", "must be a JSON list or object"),
    ],
)
def test_json_that_is_none(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        list(read_rows(tmp_path / "data.json"))


def faults(path: Path) -> dict[int, str]:
    return {row[LINE]: row.get(PROBLEM, "") for row in read_rows(path)}


def test_unreadable_json_lines_cost_themselves_alone(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"id": 1}\n\n{"id": 2\n[3]\n{"id": "\xff"}\n{"id": 6}')
    assert faults(path) == {
        1: "",
        3: "the line is not JSON",  # the empty line counts, as an editor counts it
        4: "it is not an object with columns, {...}",
        5: "the line is not text in UTF-8",
        6: "",
    }


@pytest.mark.parametrize(("ending", "sign"), [(".csv", ","), (".tsv", "\t")])
def test_unreadable_cells_cost_their_row_alone(ending: str, sign: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{ending}"
    rows = ["id,question", "1,a", "2,b,c", "3", "4,\udcff", '5,"e"f', "6,g", '7,"never closed', "8,h"]
    text = "\n".join(row.replace(",", sign) for row in rows)
    path.write_bytes(text.encode("utf-8", errors="surrogateescape"))
    found = faults(path)
    assert found[1] == found[6] == ""
    assert found[2] == "the line has 3 cells, and 2 columns are named" and "1 cells" in found[3]
    assert found[4] == "the line is not text in UTF-8"
    assert found[5].startswith("the line cannot be split into cells")
    assert "unexpected end of data" in found[7] and len(found) == 7  # not one word about the rows it swallowed is lost


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("id,id\n1,2\n")
    with pytest.raises(UserError, match="two columns 'id'"):
        list(read_rows(tmp_path / "data.csv"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content, sentence in [
        ("data.txt", b"", "must end in .jsonl, .json, .csv, .tsv, .parquet"),
        ("data.parquet", b"PAR1 nothing", "is not a parquet file, or it is damaged"),
        ("data.json", b'["\xff"]', "not text in UTF-8"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            list(read_rows(tmp_path / name))
    with pytest.raises(UserError, match="No such file"):
        list(read_rows(tmp_path / "gone.jsonl"))
    for ending in (".csv", ".tsv", ".jsonl"):
        (tmp_path / f"empty{ending}").write_bytes(b"")
        assert list(read_rows(tmp_path / f"empty{ending}")) == []


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str, what: str = "This data") -> object:
        from vlmprune.core.extras import DATA, needs

        raise UserError(f"{what} {needs(['pyarrow'], DATA['pyarrow'])}")

    write(tmp_path / "data.parquet")
    monkeypatch.setattr(readers, "load_package", gone)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'vlmprune\[bench\]'"):
        list(read_rows(tmp_path / "data.parquet"))


# ---------------------------------------------------------------- pictures that rows share


def kit(path: Path) -> Path:
    rows = [
        {"index": 1, "image": text64(1), "question": "a\nwith a line"},
        {"index": 2, "image": "1", "question": "b"},
        {"index": 1000001, "image": "2", "question": "of a row that shares"},
        {"index": 3, "image": text64(3), "question": "ü, so that bytes are not characters"},
        {"index": 4, "image": "3", "question": "c"},
        {"index": 5, "image": "9", "question": "none"},
    ]
    return separated(path, rows)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_pictures_by_earlier_index(mark: bytes, tmp_path: Path) -> None:
    path = kit(tmp_path / "kit.tsv")
    path.write_bytes(mark + path.read_bytes())
    rows = list(read_rows(path))
    pictures = {1: base64.b64decode(text64(1)), 3: base64.b64decode(text64(3))}
    for place, number in ((1, 1), (2, 1), (4, 3)):
        assert isinstance(rows[place]["image"], EarlierImage) and rows[place]["image"].read() == pictures[number]
    assert "the row 9, and no row before has that index" in rows[5][PROBLEM]


def large_tsv(path: Path, count: int, size: int) -> Path:
    noise = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("index\timage\tquestion\n")
        for number in range(count):
            image = base64.b64encode(noise.bytes(size)).decode() if number % 2 == 0 else str(number - 1)
            file.write(f"{number}\t{image}\tq\n")
    return path


def as_json(path: Path) -> Path:
    """The file's own pictures in one JSON list."""
    to = path.with_suffix(".json")
    with to.open("w") as file:
        for number, row in enumerate(read_rows(path)):
            image = row["image"] if isinstance(row["image"], str) else ""
            file.write(("," if number else "[") + json.dumps({"image": image}))
        file.write("]")
    return to


def peak_memory(path: Path) -> int:
    """Bytes that Python has at once while all rows and pictures of a file are read."""
    tracemalloc.start()
    try:
        for row in read_rows(path):
            if isinstance(row["image"], EarlierImage):
                row["image"].read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ending", [".tsv", ".json"])
def test_a_longer_file_takes_no_more_memory(ending: str, tmp_path: Path) -> None:
    size = 1 << 18
    short, long = (large_tsv(tmp_path / f"{count}.tsv", count, size) for count in (16, 96))
    if ending == ".json":
        short, long = as_json(short), as_json(long)
    assert long.stat().st_size > 40 * size
    assert peak_memory(long) < peak_memory(short) + size


# ---------------------------------------------------------------- folders


def test_the_data_files_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no data file: it needs one that ends in"):
        data_files(tmp_path)
    pieces = [tmp_path / f"test-0000{k}-of-00002.parquet" for k in range(2)]
    for path in pieces:
        write(path)
    assert data_files(tmp_path) == tuple(pieces)
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(UserError, match=r"several data files \(test-00000-of-00002.parquet"):
        data_files(tmp_path)
    (tmp_path / "metadata.csv").write_text("")
    assert data_files(tmp_path) == (tmp_path / "metadata.csv",)
    (tmp_path / "outer" / "data").mkdir(parents=True)
    inner = write(tmp_path / "outer" / "data" / "test.parquet")
    assert data_files(tmp_path / "outer") == (inner,)

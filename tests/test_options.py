"""Options are checked by the annotations of their fields, wherever the class is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pytest

from vlmprune.author import AtLeast, DecoderMethod, Method, NotNegative, Positive, Share, ShareBelowOne, UserError
from vlmprune.cli import main
from vlmprune.core.files import method_in_file

if TYPE_CHECKING:
    from fractions import Fraction


@dataclass
class Asked(Method):
    name: ClassVar[str] = "asked"
    stage: ClassVar[str] = "vision"

    mode: Literal["a", "b"] = "a"
    sign: Literal[None, 1, -1] = None
    part: Annotated[float, Share] = 0.5
    theta: Annotated[float, ShareBelowOne] | None = None
    width: Annotated[float, Positive] = 1.0
    decay: Annotated[float, NotNegative] = 0.0
    steps: Annotated[int, AtLeast(1)] = 1
    flag: bool = False
    count: Annotated[float, Share] | Annotated[int, AtLeast(2)] = 0.5
    free: int = 0
    names: Sequence[str] = ()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("mode", "c", "'a' or 'b'"),
        ("mode", None, "'a' or 'b'"),
        ("sign", 2, "None or 1 or -1"),
        ("part", 1.5, "a number from 0 to 1"),
        ("part", True, "a number from 0 to 1"),
        ("part", "1", "a number from 0 to 1"),
        ("part", None, "a number from 0 to 1"),
        ("part", float("nan"), "a number from 0 to 1"),
        ("theta", 1, "a number from 0 to below 1"),
        ("width", 0, "a number above 0"),
        ("width", float("inf"), "a number above 0"),
        ("decay", -0.1, "a number from 0"),
        ("steps", 0, "a whole number of at least 1"),
        ("steps", 1.0, "a whole number of at least 1"),
        ("steps", True, "a whole number of at least 1"),
        ("flag", 1, "True or False"),
        ("count", 1, "a whole number of at least 2"),
        ("count", 1.5, "a number from 0 to 1"),
        ("count", "x", "a number from 0 to 1"),
    ],
)
def test_what_an_annotation_does_not_allow_is_refused(option: str, value: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        Asked(**{option: value})
    assert str(error.value) == f"asked: {option}={value!r} must be {words}."


def test_what_it_allows_passes() -> None:
    Asked(mode="b", sign=-1, part=1, theta=None, width=1e9, decay=0, steps=3, flag=True, count=2)
    Asked(theta=0, count=0.0, part=0)
    Asked(free="anything", names=["a"])  # type: ignore[arg-type]  # neither says what it may be


def test_a_class_in_a_function_keeps_what_its_base_says() -> None:
    @dataclass
    class Deeper(DecoderMethod):
        name: ClassVar[str] = "deeper"
        layer: int = 3
        share: Annotated[float, Share] = 0.5

    assert Deeper().layer == 3
    with pytest.raises(UserError, match="deeper: layer=0 must be a whole number of at least 1"):
        Deeper(layer=0)
    with pytest.raises(UserError, match="deeper: share=2 must be a number from 0 to 1"):
        Deeper(share=2)


@pytest.mark.parametrize("first", ["", "from __future__ import annotations\n"])
def test_a_class_in_a_file_of_ones_own(first: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        f"{first}from dataclasses import dataclass\nfrom typing import Annotated\n"
        "from vlmprune.author import Method, Share\n\n"
        "@dataclass\nclass Own(Method):\n    name = 'own'\n    stage = 'vision'\n"
        "    part: Annotated[float, Share] = 0.5\n"
    )
    with pytest.raises(UserError, match=r"^own: part=2 must be a number from 0 to 1\.$"):
        method_in_file(str(file))(part=2)  # type: ignore[call-arg]


def test_what_only_a_type_checker_knows_is_an_error_that_says_what_to_write() -> None:
    @dataclass
    class Unread(Method):
        name: ClassVar[str] = "unread"
        stage: ClassVar[str] = "vision"
        part: Fraction | None = None

    for _ in range(2):  # not only the first time
        with pytest.raises(UserError, match=r"Unread annotates .*'part' with .*outside of 'if TYPE_CHECKING:'"):
            Unread()


def test_what_only_the_function_around_a_class_knows_is_one_too() -> None:
    Half = Literal[0.5]

    @dataclass
    class Local(Method):
        name: ClassVar[str] = "local"
        stage: ClassVar[str] = "vision"
        part: Half = 0.5  # type: ignore[valid-type]

    with pytest.raises(UserError, match=r"Local annotates its option 'part' with 'Half'.*or define them there"):
        Local()


def test_an_annotation_that_is_no_option_may_name_anything() -> None:
    @dataclass
    class Noted(Method):
        name: ClassVar[str] = "noted"
        stage: ClassVar[str] = "vision"
        table: ClassVar[Fraction | None] = None

    assert Noted().table is None


def test_the_command_says_it_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import TYPE_CHECKING\n"
        "from vlmprune.author import Method\n\nif TYPE_CHECKING:\n    from fractions import Fraction\n\n\n"
        "@dataclass\nclass Own(Method):\n    name = 'own'\n    stage = 'vision'\n    part: Fraction = 1\n"
    )
    assert main(["check", f"{file}:Own"]) == 2
    said = "".join(capsys.readouterr())
    assert "Own annotates its option 'part' with 'Fraction'" in said and "Traceback" not in said

"""The wordings of every question type, and how texts are split into words."""

from __future__ import annotations

import re

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
MARKERS = ("(a)", "(b)", "(c)", "(d)")
ORDINALS = ("first", "second")

# Word pattern of the tokenizer: an option marker, a run of letters, one digit, or one other sign.
WORD_PATTERN = r"\([a-d]\)|[a-z]+|[0-9]|[^a-z0-9\s]"

WORDINGS: dict[str, tuple[str, ...]] = {
    "exist": (
        "is there {a} {color} {shape} ?",
        "does the image contain {a} {color} {shape} ?",
        "can you see {a} {color} {shape} ?",
        "is {a} {color} {shape} in the picture ?",
    ),
    "attr_yn": (
        "is the {shape} {color} ?",
        "is the color of the {shape} {color} ?",
        "does the {shape} have the color {color} ?",
        "is it true that the {shape} is {color} ?",
    ),
    "spatial": (
        "is the {first} {relation} the {second} ?",
        "does the {first} lie {relation} the {second} ?",
        "is it true that the {first} is {relation} the {second} ?",
    ),
    "side": (
        "is the {first} {relation} the {second} ?",
        "does the {first} lie {relation} the {second} ?",
        "is it true that the {first} is {relation} the {second} ?",
    ),
    "count": (
        "how many objects are there ?",
        "how many objects can you see ?",
        "count the objects .",
        "what is the number of objects ?",
    ),
    "more": ("are there more than {number} objects ?", "is the number of objects greater than {number} ?"),
    "fewer": ("are there fewer than {number} objects ?", "is the number of objects less than {number} ?"),
    "color": (
        "what color is the {shape} ?",
        "which color does the {shape} have ?",
        "what is the color of the {shape} ?",
        "name the color of the {shape} in one word .",
    ),
    "shape": (
        "what shape is the {color} object ?",
        "which shape does the {color} object have ?",
        "what is the shape of the {color} object ?",
        "name the shape of the {color} object in one word .",
    ),
    "position": (
        "where is the {color} {shape} ?",
        "in which part of the image is the {color} {shape} ?",
        "what is the position of the {color} {shape} ?",
        "name the position of the {color} {shape} in two words .",
    ),
    "size": (
        "what size is the {color} {shape} ?",
        "how big is the {color} {shape} ?",
        "what is the size of the {color} {shape} ?",
        "name the size of the {color} {shape} in one word .",
    ),
    "texture": (
        "what is the background ?",
        "which background does the image have ?",
        "what is behind the objects ?",
        "name the background in one word .",
    ),
    "ocr": (
        "what number is on the plate ?",
        "read the number .",
        "which number does the plate have ?",
        "name the number on the plate .",
    ),
    "letter": (
        "which letter is there ?",
        "what letter can you see ?",
        "read the letter .",
        "name the letter in the image .",
    ),
    "option": ("which option is {value} ? {options}",),
    "mcq_color": ("what color is the {shape} ? {options}", "choose the color of the {shape} : {options}"),
    "mcq_shape": (
        "what shape is the {color} object ? {options}",
        "choose the shape of the {color} object : {options}",
    ),
    "mcq_size": (
        "what size is the {color} {shape} ? {options}",
        "choose the size of the {color} {shape} : {options}",
    ),
    "mcq_texture": ("what is the background ? {options}", "choose the background : {options}"),
    "twice": ("{lookup} answer twice .", "{lookup} answer two times ."),
    "form": ("{lookup} answer in the form {name} = value .", "{lookup} answer as {name} = value ."),
    "sentence": ("{lookup} answer in a sentence .", "{lookup} answer with a sentence ."),
    "color_shape": (
        "describe the {referent} as color then shape .",
        "name color then shape of the {referent} .",
    ),
    "shape_color": (
        "describe the {referent} as shape then color .",
        "name shape then color of the {referent} .",
    ),
    "box": (
        "give the box of the {color} {shape} .",
        "what is the box of the {color} {shape} ?",
        "name the box of the {color} {shape} .",
    ),
    "entry": ("what number is at {letter} ?", "read the number at {letter} .", "which number does {letter} have ?"),
    "key": ("which letter has {number} ?", "what letter has the number {number} ?", "name the letter of {number} ."),
    "button_color": (
        "what color is the button {letter} ?",
        "which color does the button {letter} have ?",
        "name the color of the button {letter} in one word .",
    ),
    "button_letter": (
        "which letter is on the {color} button ?",
        "read the letter on the {color} button .",
        "what letter does the {color} button have ?",
    ),
    "button_box": (
        "give the box of the button {letter} .",
        "what is the box of the button {letter} ?",
        "name the box of the button {letter} .",
    ),
    "which_image": (
        "which image has {a} {color} {shape} ?",
        "in which image is {a} {color} {shape} ?",
        "does the first or the second image contain {a} {color} {shape} ?",
    ),
    "image_color": (
        "what color is the {shape} in the {which} image ?",
        "which color does the {shape} in the {which} image have ?",
        "name the color of the {shape} in the {which} image .",
    ),
    "image_count": (
        "how many objects are in the {which} image ?",
        "count the objects in the {which} image .",
        "what is the number of objects in the {which} image ?",
    ),
    "moves": (
        "where does the {shape} move ?",
        "in which direction does the {shape} move ?",
        "name the direction of the {shape} .",
    ),
    "becomes": (
        "what color does the {shape} become ?",
        "which color does the {shape} become ?",
        "name the color that the {shape} becomes .",
    ),
    "appears": ("what appears ?", "which shape appears ?", "name the shape of the object that appears ."),
    "order": ("which came first , the {one} or the {other} ?", "which appears first , the {one} or the {other} ?"),
    "flash": ("what number is shown ?", "which number is shown ?", "read the number that is shown ."),
    "events": ("how many objects appear ?", "count the objects that appear ."),
}
RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}


def split_words(text: str) -> list[str]:
    """The words of a text, as the embedded models' tokenizer splits them."""
    return re.findall(WORD_PATTERN, text.lower())


def normalise_answer(text: str) -> str:
    """A reply in the form of `Question.answer`: lower-case words, digits apart, no stop at its end."""
    return " ".join(split_words(text.strip().rstrip("."))).strip()

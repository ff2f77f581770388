"""What the toolkits ask with: tails that several tasks share, and VLMEvalKit's prompts by model family.

The words are those of lmms-eval 0.7.3, of VLMEvalKit 0.1 and of LLaVA-1.5's scripts, letter by letter.

VLMEvalKit: a data set has a prompt, and some model classes replace it. LLaVA-1.5 and LLaVA-NeXT replace it for multiple
choice, Qwen2-VL and InternVL for nearly everything. Its configurations of Qwen2.5-VL and Qwen3-VL turn the replacement
off, so these are asked in the data set's own words.
"""

from __future__ import annotations

from vlmprune.tasks.wording import Wording

SHORT = "\nAnswer the question using a single word or phrase."
DIRECTLY = "\nAnswer with the option's letter from the given choices directly."
DIRECTLY_CN = "\n请直接回答选项字母。"
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
YES_OR_NO = " Please answer yes or no."
SELECT = "Please select the correct answer from the options above."

CHOICES = "\nChoices:\n{options}"
_QWEN2 = "\nPlease try to answer the question with short words or phrases if possible."

Wordings = dict[str, Wording]

# A question with its options, as LLaVA's scripts write it, and VLMEvalKit for LLaVA and InternVL.
CHOICE = Wording("{hint}\n{question}\n{options}" + DIRECTLY)
_KIT_CHOICE = Wording("Hint: {hint}\nQuestion: {question}\nOptions:\n{options}\n" + SELECT + " \n")
_LETTER_FAMILIES = ("llava", "llava_next", "internvl")


def kit_choice(tail: str = DIRECTLY, qwen: str = f"\n{SELECT}") -> Wordings:
    """VLMEvalKit's prompts for multiple choice.

    Args:
        tail: what it ends with for LLaVA and InternVL.
        qwen: what it ends with for Qwen2-VL. In both, Chinese where the question is.
    """
    letter = Wording("{hint}\n{question}\n{options}" + tail)
    qwen2 = Wording("Hint: {hint}\nQuestion: {question}\nOptions:\n{options}" + qwen)
    return kit(_KIT_CHOICE, **dict.fromkeys(_LETTER_FAMILIES, letter), qwen2_vl=qwen2)


def kit_words(tail: str = SHORT, internvl: str = SHORT, query: str = "{question}", choices: str = "") -> Wordings:
    """VLMEvalKit's prompts for a free answer.

    Args:
        tail: what the data set's prompt ends with.
        internvl: what InternVL's ends with. Qwen2-VL has one end for all.
        query: what comes before.
        choices: what is between where a question has options.
    """

    def words(tail: str) -> Wording:
        if not choices:
            return Wording(query + tail)
        return Wording(query + tail, with_options=query + choices + tail, option="({letter}) {text}")

    return kit(words(tail), internvl=words(internvl), qwen2_vl=words(_QWEN2))


def kit(plain: Wording, **families: Wording) -> Wordings:
    """VLMEvalKit's wordings: the data set's, and those of model types that have their own."""
    return {"vlmevalkit": plain, **{f"vlmevalkit/{name}": wording for name, wording in families.items()}}

"""The fast part of the suite that `tools/window.py` repeats with other versions of the libraries (`pytest -m window`).

All of it in one place: which tests, and of those with many parameters, which values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Part:
    """What is selected of a test file.

    Attributes:
        tests: names of tests; none for all of them.
        only: by parameter, the values that are run; a test without that parameter is run as it is.
    """

    tests: tuple[str, ...] = ()
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def has(self, test: str, values: Mapping[str, Any]) -> bool:
        """Whether a test with these values of its parameters is selected."""
        wanted = not self.tests or test in self.tests
        return wanted and all(values[name] in some for name, some in self.only.items() if name in values)


SELECTION = {
    "test_equivalence.py": Part(
        (
            "test_keeping_everything_is_bit_identical",
            "test_equals_the_masking_oracle",
            "test_the_oracle_notices_one_token",
            "test_cached_equals_uncached",
            "test_batch_equals_alone",
            "test_beams_score_as_the_oracle_says",
            "test_static_cache_equals_dynamic",
            "test_prompt_lookup_equals_greedy",
            "test_second_turn_on_the_same_cache",
            "test_new_image_in_the_second_turn",
            "test_loop_written_by_hand",
            "test_encoded_once_equals_encoded_each_time",
        ),
        {
            # plain; tiles; M-RoPE and windows in the tower; recurrent layers; sliding windows; a bidirectional prefix;
            # tiles with markers; two towers; deepstack features of a video
            "family": (
                "llava", "llava_next", "qwen2_5_vl", "qwen3_5", "gemma3", "paligemma", "smolvlm", "video_llava",
                "qwen3_vl video",
            ),
            "name": ("divprune", "fastv", "three stages", "visionzip"),  # before the LLM, inside, both, and made anew
        },
    ),
    "test_generic.py": Part(
        (
            "test_keeping_everything_is_bit_identical_and_all_is_undone",
            "test_equals_the_oracle",
            "test_budget_is_exact_and_a_batch_is_each_sample_alone",
        ),
        {"name": ("aya_vision", "mistral3", "deepseek_vl", "lfm2_vl", "gemma4")},
    ),
    "test_session.py": Part(("test_the_model_is_what_it_was", "test_an_adopted_cache_outside_its_context")),
    "test_deprecations.py": Part(),
    "test_embedded_llava.py": Part(),
    "test_embedded_qwen.py": Part(("test_shipped_folder_is_small_and_answers", "test_processor_round_trip")),
    "test_doctor.py": Part(("test_report_of_a_folder", "test_embedded_models", "test_folders_of_families")),
    "test_processors.py": Part(),
}  # fmt: skip

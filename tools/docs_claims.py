"""What docs/models.md says of each family, and the tests that prove it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlmprune.testing import Family


@dataclass(frozen=True)
class Claim:
    """A column of a table.

    Attributes:
        title: of the column.
        meaning: what a "yes" says.
        tests: file.function; all of them must run on a family for a "yes".
        recipe: the name of the recipe with which they run, where they run with several.
        applies: whether there is anything to test on a family.
        reads: whether they read the vision encoder.
        sampled: whether the tests run on some families only, because the others would show nothing else.
    """

    title: str
    meaning: str
    tests: tuple[str, ...]
    recipe: str = ""
    applies: Callable[[Family], bool] = lambda family: True
    reads: bool = False
    sampled: bool = False


DROPS = (
    "test_equivalence.test_equals_the_masking_oracle",
    "test_equivalence.test_both_position_policies_equal_the_oracle",
)
MAKES = ("test_equivalence.test_cached_equals_uncached", "test_equivalence.test_batch_equals_alone")
METHODS = (
    Claim(
        "before", "dropping before the language model equals the oracle, positions of either kind", DROPS, "divprune"
    ),
    Claim("inside", "the same before a decoder layer, by the attention of the layer before it", DROPS, "fastv"),
    Claim(
        "chain",
        "the same with stages before the language model and at two of its layers",
        DROPS,
        "three stages",
        reads=True,
    ),
    Claim(
        "merging",
        "new tokens: cached equals uncached, a batch equals each sample alone",
        MAKES,
        "visionzip",
        reads=True,
    ),
    Claim(
        "by hand",
        "new tokens: equal to the text model alone on a sequence put together by hand",
        ("test_frames.test_merged_tokens_stand_where_their_frame_stands",),
        applies=lambda family: not family.mixed,
    ),
    Claim("downsample", "pictures resized before the encoder: the same two tests", MAKES, "downsample"),
)
SLOTS = (
    Claim(
        "encoder",
        "attention and keys of the vision encoder, as rows of slots, equal those of eager attention",
        ("test_mapping.test_statistics_equal_those_of_eager_attention",),
    ),
    Claim(
        "object",
        "of a picture with bright patches painted into it, exactly the slots that show them are kept",
        ("test_mapping.test_keys_find_a_planted_object", "test_mapping.test_attention_finds_a_planted_object"),
        reads=True,
    ),
    Claim(
        "budget",
        "a share is of each image's own tokens, a number is for each image",
        ("test_mapping.test_a_share_is_of_each_image_and_a_number_is_for_each_image",),
    ),
    Claim(
        "frames",
        "tiles or frames compete for one budget; with `per=frame` each is the method on it alone",
        (
            "test_frames.test_the_default_is_one_budget_for_the_image",
            "test_frames.test_each_frame_is_the_method_on_that_frame_alone",
        ),
        applies=lambda family: family.in_parts,
    ),
    Claim(
        "text between",
        "timestamps and markers between frames or tiles all stay",
        ("test_frames.test_text_between_frames_is_never_lost",),
        applies=lambda family: family.text_between,
    ),
)
MODES = (
    Claim("keep=1.0", "bit-identical to vanilla", ("test_equivalence.test_keeping_everything_is_bit_identical",)),
    Claim("batch", "padded, equals each sample alone", ("test_equivalence.test_batch_equals_alone",)),
    Claim(
        "sampling",
        "beams score as the oracle says, and so do several sampled answers",
        ("test_equivalence.test_beams_score_as_the_oracle_says", "test_equivalence.test_sampling_and_several_answers"),
    ),
    Claim("static cache", "equals a dynamic one", ("test_equivalence.test_static_cache_equals_dynamic",)),
    Claim("lookup", "prompt-lookup decoding equals greedy", ("test_equivalence.test_prompt_lookup_equals_greedy",)),
    Claim("next turn", "on the same cache equals the oracle", ("test_equivalence.test_second_turn_on_the_same_cache",)),
    Claim("new image", "in that turn equals the oracle", ("test_equivalence.test_new_image_in_the_second_turn",)),
    Claim(
        "encoded once",
        "`encode_images` gives what encoding each time gives",
        ("test_equivalence.test_encoded_once_equals_encoded_each_time",),
    ),
)
BACKENDS = (
    Claim("eager", "equals SDPA", ("test_equivalence.test_eager_equals_sdpa",)),
    Claim(
        "flash",
        "FlashAttention-2 keeps what SDPA keeps and gives its logits, with a static cache too; its scores are the same",
        (
            "test_backends.test_flash_keeping_everything_is_bit_identical",
            "test_backends.test_flash_equals_sdpa",
            "test_backends.test_flash_with_a_static_cache",
            "test_backends.test_flash_scores_are_sdpas",
        ),
        sampled=True,
    ),
    Claim(
        "flex",
        "FlexAttention keeps what SDPA keeps and gives its logits; its scores are the same",
        (
            "test_backends.test_flex_keeping_everything_is_bit_identical",
            "test_backends.test_flex_equals_sdpa",
            "test_backends.test_flex_scores_are_sdpas",
        ),
        sampled=True,
    ),
    Claim(
        "half",
        "bfloat16 and float16 keep as many tokens; scores are float32, within 1e-6 of float64 on the same numbers",
        (
            "test_equivalence.test_half_precision_runs_and_keeps_as_many",
            "test_devices.test_half_precision_is_scored_in_single",
        ),
    ),
    Claim(
        "offloaded",
        "accelerate's offloading to CPU or disk gives the same bits",
        ("test_devices.test_offloaded_models_give_the_same_bits",),
        sampled=True,
    ),
    Claim(
        "devices",
        "encoder, embeddings and decoder layers on different devices",
        ("test_devices.test_indices_follow_the_device_of_what_they_index",),
        sampled=True,
    ),
    Claim("int8", "dynamically quantised linear layers", ("test_devices.test_int8_models",), sampled=True),
    Claim(
        "compiled",
        "decoding under torch.compile with a static cache",
        ("test_devices.test_compiled_decoding_with_a_static_cache",),
        sampled=True,
    ),
)
CLAIMS = {"methods": METHODS, "slots": SLOTS, "modes": MODES, "backends": BACKENDS}

GENERIC = tuple(
    f"test_generic.{name}"
    for name in (
        "test_keeping_everything_is_bit_identical_and_all_is_undone",
        "test_equals_the_oracle",
        "test_budget_is_exact_and_a_batch_is_each_sample_alone",
    )
)
READ = "test_generic.test_encoder_statistics_where_every_slot_is_a_patch"
REFUSED = "test_generic.test_methods_that_read_the_encoder_are_refused_in_words"

INAPPLICABLE = ""  # nothing there that could be tested
UNTESTED = "untested"
FAILING = "a test is marked as expected to fail"

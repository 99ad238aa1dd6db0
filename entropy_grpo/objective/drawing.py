"""Sampling settings of rollouts: settings that change the distribution, and the note of truncated sampling."""

from collections.abc import Mapping
from typing import Any

_NEUTRAL_AT_1 = "typical_p encoder_repetition_penalty length_penalty num_beams num_beam_groups guidance_scale".split()
_NEUTRAL_AT_0 = (
    "min_length min_new_tokens min_tokens no_repeat_ngram_size diversity_penalty epsilon_cutoff eta_cutoff "
    "penalty_alpha"
).split()
_NEUTRAL_WHEN_ABSENT = (
    "top_h bad_words_ids bad_words sequence_bias logit_bias suppress_tokens begin_suppress_tokens allowed_token_ids "
    "forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty watermarking_config"
).split()
# Settings of transformers and vLLM that change the sampling distribution -> values that leave it unchanged.
# By default the loss assumes that tokens are sampled from the model's whole distribution.
NEUTRAL_SAMPLING: dict[str, tuple[Any, ...]] = {
    "top_p": (1.0,),
    "top_k": (0, -1),
    "min_p": (None, 0.0),
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    **dict.fromkeys(_NEUTRAL_AT_1, (None, 1.0)),
    **dict.fromkeys(_NEUTRAL_AT_0, (None, 0.0)),
    **dict.fromkeys(_NEUTRAL_WHEN_ABSENT, (None,)),
}
# Settings that truncate the distribution without changing the proportions of the remaining tokens.
TRUNCATING = ("top_p", "top_k", "min_p")


def truncation_note(settings: Mapping[str, Any]) -> str:
    """Return sentences on the effect of truncated sampling on a run's loss, or an empty text without it."""
    if settings.get("allow_truncated_sampling") is not True:
        return ""
    given = {name: settings.get(name, NEUTRAL_SAMPLING[name][0]) for name in TRUNCATING}
    told = ", ".join(f"{name} {value}" for name, value in given.items() if value not in NEUTRAL_SAMPLING[name])
    return (
        f"Rollouts are drawn from a truncated distribution ({told}), and the loss scores them by the same truncation "
        "of the trained policy. A token that the policy of a later optimiser step would not draw still counts as "
        "drawable. "
        "Entropies, which choose the kept tokens, are of the whole distribution."
    )

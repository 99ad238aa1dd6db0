"""Numbers out of bounds and mappings of other types: one sentence that names the setting, before a model loads."""

import pytest

from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.config.bounds import ABOVE_ZERO, LEAST
from entropy_grpo.config.sft import TeacherSFTConfig


def config(folder, **settings):
    return EntropyForkGRPOConfig(str(folder), use_cpu=True, bf16=False, **settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, 0) for name in ABOVE_ZERO],
        *[(name, least - 1) for name, least in LEAST.items()],
        *[(name, float(text)) for name in ("learning_rate", "temperature", "beta") for text in ("nan", "inf")],
        *[("seed", 2**32), ("generation_kwargs", "5"), ("chat_template_kwargs", "[1]"), ("model_init_kwargs", "x")],
        *[("generation_kwargs", {"tempreature": 0.5}), ("max_steps", 0), ("max_steps", -2), ("adam_beta1", 1.0)],
        *[(name, float("nan")) for name in ("delta", "entropy_coef", "reward_seconds", "position_shaping_gamma")],
        *[("reward_weights", [1.0, float("nan")]), ("adam_beta2", 1.5)],
    ],
)
def test_a_value_that_cannot_be_trained_with_is_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"^{name} (is|names) "):
        config(tmp_path, **{name: value})


def test_the_smallest_values_and_texts_of_mappings_are_taken(tmp_path):
    smallest = {"learning_rate": 0.0, "max_grad_norm": 0.0, "seed": 0, "gradient_accumulation_steps": 1}
    args = config(tmp_path, model_init_kwargs='{"dtype": "float32"}', **smallest)
    assert args.model_init_kwargs == {"dtype": "float32"}
    with pytest.raises(ValueError, match=r"^learning_rate is -1: it must be a finite number, 0 or more"):
        TeacherSFTConfig(str(tmp_path), use_cpu=True, bf16=False, learning_rate=-1)

"""Bounds of numbers that TRL and transformers accept and cannot train with."""

import dataclasses
import math
from typing import Any

# The smallest value of a setting; null is allowed where TRL allows it.
LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("steps_per_generation", "num_iterations", "generation_batch_size", "num_generations_eval"), 1),
    # A negative limit of the gradient's norm would turn the gradient around.
    **dict.fromkeys(("learning_rate", "max_grad_norm", "weight_decay", "beta", "epsilon", "epsilon_high"), 0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon", "seed", "data_seed"), 0),
}
ABOVE_ZERO = ("temperature", "repetition_penalty", "num_train_epochs", "save_steps", "eval_steps")
BELOW_ONE = ("adam_beta1", "adam_beta2")
SEEDS, MOST_SEED = ("seed", "data_seed"), 2**32 - 1
MAPPINGS = ("generation_kwargs", "chat_template_kwargs", "model_init_kwargs")


def has_nan(value: Any) -> bool:
    """Return whether a setting is NaN or holds it, which passes every comparison with a bound."""
    if isinstance(value, (list, tuple, dict)):
        return any(map(has_nan, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and math.isnan(value)


def check_bounds(config: Any) -> None:
    """Refuse numbers that are not finite or out of bounds, and text in the place of a mapping.

    Raises:
        ValueError: the message names the setting, its value and its bound.
    """
    for name in (*LEAST, *ABOVE_ZERO):
        value = getattr(config, name, None)
        if value is None or isinstance(value, str):
            continue
        least = LEAST.get(name, 0)
        if not math.isfinite(value) or value < least or (value == 0 and name in ABOVE_ZERO):
            bound = "above 0" if name in ABOVE_ZERO else f"{least} or more"
            raise ValueError(f"{name} is {value}: it must be a finite number, {bound}.")
        if name in SEEDS and value > MOST_SEED:
            raise ValueError(f"{name} is {value}: it must be {MOST_SEED} or less.")
        if name in BELOW_ONE and value >= 1:
            raise ValueError(f"{name} is {value}: it must be below 1.")
    # A number of rollouts is text until the batches are known.
    if not isinstance(config.max_steps, str) and (config.max_steps == 0 or config.max_steps < -1):
        raise ValueError(f"max_steps is {config.max_steps}: it must be 1 or more, or -1 to train num_train_epochs.")
    for field in dataclasses.fields(config):
        if has_nan(getattr(config, field.name)):
            raise ValueError(f"{field.name} is {getattr(config, field.name)}: it must be a number, which nan is not.")
    for name in MAPPINGS:
        value = getattr(config, name, None)
        reads_json = name in config._VALID_DICT_FIELDS and str(value).startswith("{")
        if value is not None and not isinstance(value, dict) and not reads_json:
            raise ValueError(f"{name} is {value!r}: write a mapping, such as {{name: value}}.")

"""Problems as a training run loads them."""

from entropy_grpo.config.run import RunConfig
from entropy_grpo.data.problems import Problems, load_problems


def load(config: RunConfig, seed: int = 0, **options) -> Problems:
    """`load_problems` with the grading limits of the run's own settings."""
    return load_problems(config, seed, config.reference_grading, keeps_columns=config.has_own_rewards, **options)

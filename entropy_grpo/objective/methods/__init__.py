"""Methods that weigh tokens or shape advantages, by name: pure functions on a read-only view of an optimiser step."""

# Each module registers its methods.
from . import (  # noqa: F401
    covariance,
    entropy,
    masks,
    outcome,
    planning,
    quantile_advantage,
    ratios,
    shaping,
    spurious,
)

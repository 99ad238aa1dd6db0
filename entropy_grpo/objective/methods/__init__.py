"""Methods that weigh tokens or shape advantages, by name: pure functions on a read-only view of an optimiser step."""

from . import covariance, entropy, outcome, planning, quantile_advantage, ratios, spurious  # noqa: F401  Each module registers its methods.

"""Names of figures that a run logs and that plots, reports and watchers read."""

# Percentiles of the token entropy by their level: `entropy/p95` is the 95th.
ENTROPY_PERCENTILES = {level: f"p{level}" for level in (5, 25, 50, 75, 90, 95, 99)}

"""A trainer that shapes its advantages (see `shaping`) and knows in which stage it is (see `stages`).

Perplexities are those of the pass that scores the old log-probabilities, taken while the rollout is in the order of
its groups; the weights travel with the rollout. Advantages are shaped where an optimiser step begins, so that a
schedule is kept to the step, and stay raw in the rollout, from which the next step begins anew.
"""

from typing import Any

from torch import Tensor

from ..objective.advantages import log_perplexities, perplexity_weights, position_advantages, ppl_advantages
from ..objective.stages import StageDetector
from ..objective.window import Inputs, loss_mask
from ..runs.state import State
from .rollouts import RolloutGRPOTrainer


class ShapedGRPOTrainer(RolloutGRPOTrainer):
    """`RolloutGRPOTrainer` with what its subclass needs to shape the advantages of an optimiser step."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._stages = StageDetector(self.args.plateau_window, self.args.plateau_share)

    def _active_shaping(self) -> dict[str, bool]:
        """Whether a method shapes the optimiser step under way, for the methods that are on."""
        args, now = self.args, (self.state.global_step, self._stages.plateau_step)
        active = {}
        if args.ppl_shaping_alpha is not None:
            active["ppl"] = args.ppl_schedule.active(*now)
        if args.position_shaping_gamma is not None:
            active["position"] = args.position_schedule.active(*now)
        return active

    def _needs_weights(self, output: Inputs) -> bool:
        """Whether a step of this rollout may be shaped by perplexity."""
        if not self.model.training or self.args.ppl_shaping_alpha is None:
            return False
        # Without old log-probabilities, which would have to be scored, it has no steps but the one that begins.
        return "old_per_token_logps" in output or self._active_shaping()["ppl"]

    def _perplexity_weights(self, logps: Tensor, output: Inputs) -> Tensor:
        """(B,) of this rank's responses in a rollout whose groups, in their order, may span ranks."""
        found = self.accelerator.gather(log_perplexities(logps, loss_mask(output)))
        weights = perplexity_weights(found, self.num_generations)
        return weights[self.accelerator.process_index * logps.size(0) :][: logps.size(0)]

    def _shaped(self, inputs: Inputs) -> Inputs:
        """A micro-batch with the advantages that it has in the optimiser step under way."""
        args, active, advantages = self.args, self._active_shaping(), inputs["advantages"]
        if active.get("ppl"):
            advantages = ppl_advantages(advantages, inputs["perplexity_weights"], args.ppl_shaping_alpha)
        if active.get("position"):
            advantages = position_advantages(
                advantages,
                loss_mask(inputs),
                args.position_shaping_gamma,
                args.position_shaping_d,
                args.position_shaping_m,
                args.position_shaping_n,
                args.position_shaping_cap,
            )
        return inputs | {"advantages": advantages}

    def _close_stage(self, mean_entropy: float) -> dict[str, float]:
        """Take in the optimiser step that ends, and return what it logs."""
        found = {f"shaping/{method}": float(active) for method, active in self._active_shaping().items()}
        self._stages.update(self.state.global_step + 1, mean_entropy, self._rollout_accuracy)
        return found | {"stage": float(self._stages.stage)}

    # Records

    def _shared_state(self) -> State:
        return super()._shared_state() | {"stages": self._stages.state()}

    def _restore_shared_state(self, state: State) -> None:
        super()._restore_shared_state(state)
        self._stages.restore(state["stages"])

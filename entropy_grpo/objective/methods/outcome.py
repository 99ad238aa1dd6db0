"""Advantages from the outcome alone, without a baseline of the group (arXiv 2506.01347, sections 3 and 5).

    psr           A = 1 for a right response, 0 for a wrong one
    nsr           A = 0 for a right response, -1 for a wrong one
    w_reinforce   A = lambda for a right response, -1 for a wrong one

A response that the first reward did not score is neither, and has no advantage. Groups with only right or only wrong
responses are trained on. Dynamic sampling drops such groups, so that the methods cannot be used with it. Rewards other
than the first, such as a penalty for length, have no effect.

Shapes: B responses; advantages (B,) float32.
"""

from torch import Tensor

from .registry import Share, advantage
from .view import StepView

PAPER = "arXiv 2506.01347"


@advantage(stage="rollout", needs={"right", "wrong"}, revives=True, paper=PAPER)
def psr(view: StepView, advantages: Tensor) -> Tensor:
    """(B,) advantages of positive-sample reinforcement: 1 for right responses, 0 for wrong ones."""
    return _by_outcome(view, 1.0, 0.0)


@advantage(stage="rollout", needs={"right", "wrong"}, revives=True, paper=PAPER)
def nsr(view: StepView, advantages: Tensor) -> Tensor:
    """(B,) advantages of negative-sample reinforcement: 0 for right responses, -1 for wrong ones."""
    return _by_outcome(view, 0.0, -1.0)


@advantage(stage="rollout", needs={"right", "wrong"}, revives=True, paper=PAPER)
def w_reinforce(view: StepView, advantages: Tensor, positive: Share = 0.1) -> Tensor:
    """(B,) advantages of weighted REINFORCE: `positive` for right responses, -1 for wrong ones.

    Args:
        positive: lambda. The authors use 0.1.
    """
    return _by_outcome(view, positive, -1.0)


def _by_outcome(view: StepView, right: float, wrong: float) -> Tensor:
    return right * view.right.float() + wrong * view.wrong.float()

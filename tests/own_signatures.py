"""Methods of a user with signatures of every kind, that tests name as `tests.own_signatures:NAME`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from entropy_grpo.objective.methods.registry import Share, advantage, weight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from entropy_grpo.objective.methods.view import StepView


def typed_for_checkers(view: StepView, powers: Sequence[float] = (1.0,), power: float = 1.0, most: Steps = 2):  # noqa: F821
    return torch.full(view.mask.shape, power * powers[0] * most)


def untyped(view, power=1.0, number=2, text="", flag=False, powers=(1.0,)):
    return torch.full(view.mask.shape, float(power))


def of_no_type(view, power: 3 = 1.0, other: torch.Tensor = 1.0):
    return torch.full(view.mask.shape, power * other)


def any_keyword(view, power: float = 1.0, **others):
    return torch.full(view.mask.shape, power + sum(others.values()))


def any_arguments(*arguments, power: float = 1.0):
    view, *_ = arguments
    return torch.full(view.mask.shape, power)


@weight(stage="loss", needs={"logps"})
def declared(view: StepView, share: Share = 0.5):
    return torch.full_like(view.logps, share)


squared = functools.partial(untyped, power=2.0)
half_declared = functools.partial(declared, share=0.25)


def doubles(function):
    @functools.wraps(function)
    def doubled(*arguments, **named):
        return 2 * function(*arguments, **named)

    return doubled


twice_declared = doubles(declared)


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, view: StepView, power: float = 1.0):
        return torch.full(view.mask.shape, self.scale * power)


scaled = Scaled(3.0)


class Shaped:
    @advantage(stage="rollout", needs={"rewards"})
    def __call__(self, view: StepView, advantages, factor: float = 2.0):
        return factor * advantages


shaped = Shaped()

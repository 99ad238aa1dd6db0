"""Methods of a user, right and wrong, that tests name as `tests.own_methods:NAME`."""

import torch

from entropy_grpo.objective.methods import over_ranks
from entropy_grpo.objective.methods.registry import advantage, weight


@weight(stage="step", denominator="valid", needs={"completion_ids"})
def by_id(view, least: float = 0.5):
    """Between `least` and 1, by the token alone."""
    return least + (1 - least) * (view.completion_ids % 7) / 6


@weight(stage="step", needs={"logps", "entropies"})
def around_the_mean(view):
    """By the step's mean log-probability and a quantile of its entropies under the current policy."""
    far = (view.logps - over_ranks.mean(view.logps, view.mask, view.ranks)).abs()
    return far / (1 + far) * (view.entropies >= over_ranks.quantile(view.entropies, view.mask, 0.3, view.ranks))


@weight(stage="step", needs={"residual_norms"})
def by_norm(view):
    """The gradient norms as shares of the step's largest."""
    return view.residual_norms / over_ranks.largest(view.residual_norms, view.mask, view.ranks)


@weight(stage="step", needs={"logps"})
def ones_for_the_step(view):
    return torch.ones_like(view.logps)


@weight(stage="loss", needs={"logps", "old_logps", "entropies"})
def in_the_loss(view):
    return 1 / (1 + view.ratios) * view.entropies


@weight(stage="rollout", needs={"old_entropies"}, denominator="valid")
def of_the_rollout(view):
    return view.old_entropies / (1 + view.old_entropies)


@advantage(stage="rollout", needs={"old_entropies"})
def unchanged(view, advantages):
    return advantages * (view.old_entropies >= 0).any(dim=1)


@advantage(stage="step", needs={"entropies"})
def louder(view, advantages):
    """(B, T) advantages, larger at tokens of higher entropy than the step's mean."""
    mean = over_ranks.mean(view.entropies, view.mask, view.ranks)
    return view.token_advantages * (1 + (view.entropies > mean))


@weight(stage="loss", needs={"logps", "entropies"})
def ones_in_the_loss(view):
    return torch.ones_like(view.logps) + 0 * view.entropies


def plain(view, factor: float = 1.0):
    """A function without a declaration."""
    return torch.full(view.mask.shape, factor)


@weight(stage="step")
def drawn(view):
    """1 for 20 random tokens of the step, else 0."""
    return over_ranks.draw(view.mask, 20, view.places, view.seed, view.ranks)


@weight(stage="step")
def drawn_too(view):
    return drawn(view)


# Faults


def raises(view):
    raise KeyError("no such\nkey")


def of_another_shape(view):
    return torch.ones(view.mask.size(0))


def not_finite(view):
    return torch.full(view.mask.shape, torch.nan)


def negative(view):
    return -torch.ones(view.mask.shape)


def with_gradient(view):
    return torch.ones(view.mask.shape, requires_grad=True)


def whole_numbers(view):
    return torch.ones(view.mask.shape, dtype=torch.int64)


def no_tensor(view):
    return 1.0


def in_place(view):
    view.advantages.mul_(2)
    return torch.ones(view.mask.shape)


def undeclared(view):
    return view.entropies.exp()


@weight(stage="loss", needs={"logps"})
def statistics_in_the_loss(view):
    return torch.full_like(view.logps, over_ranks.mean(view.logps, view.mask, view.ranks))


def revives(view, advantages):
    return advantages + 1

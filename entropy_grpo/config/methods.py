"""Settings of methods by name: their short forms, and combinations that no loss computes.

The selections of tokens, PPL shaping and position shaping have settings of their own, their short forms. An entry with
one of their names sets the short form, so that both spellings are one run with one record.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from typing import Any

from ..objective.methods.entries import SCHEDULE, SETTINGS, Entry, parse, split
from ..objective.methods.masks import MASKS
from ..objective.objective import TOKEN_LEVEL_LOSSES, Objective

# Passes that choose the kept tokens in the loss, see `Objective.ranked_in`.
LATE = ("loss", "last step")
_SELECTION = {"rho": "top_entropy_quantile", "scope": "entropy_scope", "denominator": "entropy_denominator"}
# Name of an entry -> short form of each of its parameters.
SHORT_FORMS = dict.fromkeys(MASKS, _SELECTION) | {
    "ppl": {"alpha": "ppl_shaping_alpha"} | {key: f"ppl_shaping_{key}" for key in SCHEDULE},
    "position": {key: f"position_shaping_{key}" for key in ("gamma", *"dmn", "cap", *SCHEDULE)},
}


def to_short_forms(config: Any) -> None:
    """Move the entries that have short forms into the settings of a configuration.

    A short form runs after the named advantages of its moment. Entries that are listed in another order also stay in
    the list, which has the order.

    Raises:
        ValueError: a setting has another value already, or an entry or the list is invalid.
    """
    defaults = {f.name: f.default if f.default is not MISSING else None for f in fields(config)}
    for setting in SETTINGS:
        if not isinstance(getattr(config, setting), (list, tuple)):
            raise ValueError(f"{setting} is {getattr(config, setting)!r}: write a list of entries.")
        listed = [(given, short_values(setting, given)) for given in getattr(config, setting)]
        entries = _without_schedules(setting, getattr(config, setting))
        _refuse_two_selections(setting, entries)
        for given, values in listed:
            for short, value in values.items():
                now = getattr(config, short)
                if now not in (defaults[short], value) and not (short == _SELECTION["rho"] and now == 1):
                    raise ValueError(contradiction(setting, given, short, value, now))
                setattr(config, short, value)
        pairs = itertools.pairwise(entries if setting == "advantages" else ())
        stays = any(first.name in SHORT_FORMS and first.moment == second.moment for first, second in pairs)
        setattr(config, setting, [given for given, values in listed if stays or not values])


def _without_schedules(setting: str, given: Sequence[Any]) -> tuple[Entry, ...]:
    """Return the entries of a list whose schedules may still count rollouts, without the schedules."""
    named = [split(setting, one) for one in given]
    return parse(setting, [{"name": name} | params for name, params, _ in named])


def _refuse_two_selections(setting: str, entries: Iterable[Entry]) -> None:
    """Refuse a list that names two selections of tokens."""
    masks = [entry.name for entry in entries if entry.name in MASKS]
    if len(masks) > 1:
        raise ValueError(
            f"{setting} names {masks[0]} and {masks[1]}, and a step has one selection of tokens: leave one of the two "
            "out."
        )


def short_values(setting: str, given: Any) -> dict[str, Any]:
    """Return the values of the short forms that an entry of `advantages` or `token_weights` sets, by name.

    Raises:
        ValueError: the entry has short forms and is invalid.
    """
    name, params, schedule = split(setting, given)
    if name not in SHORT_FORMS:
        return {}
    forms, (entry,) = SHORT_FORMS[name], parse(setting, [{"name": name} | params])
    strength = next(iter(forms))
    values = {forms[strength]: entry.record()["parameters"][strength]}
    if name in MASKS:
        if schedule:
            raise ValueError(f"{setting}: {next(iter(schedule))} of {name}: a selection of tokens has no schedule.")
        values["entropy_selection"] = MASKS[name]
    return values | {forms[key]: value for key, value in (entry.params | schedule).items()}


def contradiction(setting: str, given: Any, short: str, value: Any, now: Any) -> str:
    """Return the sentence about an entry that sets a short form to `value`, which has the value `now` already."""
    name, _, _ = split(setting, given)
    return f"{setting} names {name} with {short} {value!r}, but {short} is {now!r}: leave one of the two out."


def count_in_steps(config: Any) -> None:
    """Replace `"N rollouts"` in the schedules of entries by optimiser steps."""
    for setting in SETTINGS:
        entries = []
        for given in getattr(config, setting):
            name, params, schedule = split(setting, given)
            steps = {key: config.in_steps(f"{setting}: {key} of {name}", value) for key, value in schedule.items()}
            entries.append({"name": name} | params | steps if params or steps else name)
        setattr(config, setting, entries)


def check_combinations(objective: Objective, dynamic_sampling: bool) -> None:
    """Refuse methods that do not fit the loss, the batches or the rollouts of a run.

    Raises:
        ValueError: the message names the method and the setting.
    """
    for entry in objective.entries():
        reason = _refusal(entry, objective, dynamic_sampling)
        if reason:
            raise ValueError(f"{entry.setting} names {entry.name}, {reason}.")


def _refusal(entry: Entry, objective: Objective, dynamic_sampling: bool) -> str:
    """Return the reason why a method cannot run, empty if it can."""
    method = entry.method
    divides = method.denominator == "valid"
    if method.revives and dynamic_sampling:
        return (
            "which trains on groups that are all right or all wrong, but dynamic_sampling is true, which drops them: "
            "set dynamic_sampling: false"
        )
    if {"logps", "old_logps"} <= entry.needs and not objective.token_ratio:
        return (
            "which reads the importance ratio of each token, but importance_sampling_level is not 'token': set it to "
            "'token'"
        )
    if divides and not objective.token_level:
        return (
            f"which divides the loss by a sum of token weights, but loss_type is {objective.loss_type!r}: use "
            f"loss_type {' or '.join(TOKEN_LEVEL_LOSSES)}"
        )
    if divides and objective.selects and objective.denominator == "kept" and objective.ranked_in in LATE:
        scopes = "global" if objective.trusts_sampler else "global or rollout"
        return f"which divides the loss by a sum of token weights: set entropy_scope to {scopes}"
    if divides and objective.matches_norms:
        return (
            "which divides the loss by a sum of token weights, but random_matched divides it by the tokens of the "
            "other arm: choose another entropy_selection"
        )
    if not objective.whole_steps and (method.kind == "weight" or entry.moment == "step"):
        return (
            "which sees whole optimiser steps: set steps_per_generation to a multiple of gradient_accumulation_steps"
        )
    return method.refusal(objective, entry.values) if method.refusal is not None else ""

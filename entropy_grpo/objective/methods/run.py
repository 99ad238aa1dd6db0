"""Calls of a run's entries: their views, checks of their results, and the columns that travel with a micro-batch.

An entry runs at one of four moments (`entries.MOMENTS`):

- `rollout`: once per rollout, while its groups are in order. The results travel with the rollout as columns.
- `sequence`: advantages of the stage `loss` that do not read the current policy, before the step is planned.
- `step`: while the step is planned, on all tokens of the step that this process holds.
- `loss`: in the loss of a micro-batch, with the log-probabilities and entropies of the training pass.

Shapes: B responses, T completion tokens including padding.
"""

import itertools
import zlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...registry import FunctionError, line_of
from ..batching import merge
from ..ranks import ALONE, Ranks
from ..tokens import Inputs, loss_mask
from .entries import Entry
from .over_ranks import group_sum
from .view import COMPUTED, FREE, StepView

if TYPE_CHECKING:
    from ..objective import Objective
    from ..window import Pass

# Names of the columns of a rollout or a micro-batch.
SHAPED, WEIGHT, WEIGHTS, LOSS_WEIGHTS = "advantages/", "weight/", "token_weights", "loss_weights"
OLD_LOGPS, OLD_ENTROPIES, FIRST = "old_logps", "old_entropies", "first_step/"
_OF_A_VIEW = (
    *("completion_mask", "tool_mask", "completion_ids", "sequence_index", "sequence_count", "advantages"),
    *("rewards", "right", "wrong", "old_per_token_logps", OLD_LOGPS, OLD_ENTROPIES),
)


class MethodError(FunctionError):
    """A fault of a method's function."""


def _refuse(*args: Any) -> None:
    raise RuntimeError(
        "over_ranks needs all tokens of the optimiser step, which the stage loss does not have: declare the stage step"
    )


def _float32(value: Tensor | None) -> Tensor | None:
    return value.float() if value is not None and value.is_floating_point() else value


def make_view(inputs: Inputs, scored: "Pass | None", moment: str, **others: Any) -> StepView:
    """Make the view of a rollout, a step or a micro-batch, with all fields that are known.

    Args:
        scored: at the moment `rollout` the pass over the rollout, and later the current policy's pass; or None.
        others: fields that do not come from tensors.
    """
    logps = None if scored is None else scored.logps
    entropies = None if scored is None else scored.entropies
    in_rollout = moment == "rollout"
    fields: dict[str, Any] = {
        "mask": loss_mask(inputs).bool(),
        "order": inputs["sequence_index"],
        "responses": int(inputs["sequence_count"]),
        "advantages": inputs["advantages"],
        "completion_ids": inputs["completion_ids"],
        "rewards": inputs.get("rewards"),
        "right": inputs.get("right"),
        "wrong": inputs.get("wrong"),
        # TRL omits the old log-probabilities while the policy is the rollout's.
        "old_logps": inputs.get("old_per_token_logps", inputs.get(OLD_LOGPS, logps)),
        "old_entropies": entropies if in_rollout else inputs.get(OLD_ENTROPIES, entropies),
        "logps": None if in_rollout else logps,
        "entropies": None if in_rollout else entropies,
        "residual_norms": None if scored is None else scored.residual_norms,
    }
    fields = {k: _float32(v.detach()) if isinstance(v, Tensor) else v for k, v in fields.items()}
    return StepView(**fields, **others)


def call(entry: Entry, view: StepView) -> Tensor:
    """Call an entry's function, and return its checked result, float32 with zeros in the padding.

    At the moments `sequence` and `loss`, the function cannot use the collectives of the view, because a micro-batch is
    not an optimiser step.

    Raises:
        MethodError: the function raises an error, changes the view, or its result breaks the contract of
            `registry.Method`. The check of values is agreed between processes, so that all of them raise it.
    """
    hidden: dict[str, Any] = {name: None for name in (*COMPUTED, *FREE) if name not in entry.needs}
    ranks = view.ranks
    if entry.moment in ("sequence", "loss"):
        hidden["ranks"] = Ranks(ranks.index, ranks.count, sum=_refuse, largest=_refuse, gather=_refuse)
    view = replace(view, **hidden)
    versions = {name: value._version for name, value in vars(view).items() if isinstance(value, Tensor)}
    is_advantage = entry.method.kind == "advantage"
    leading = (view, view.advantages) if is_advantage else (view,)
    try:
        with torch.no_grad():
            result = entry.method.function(*leading, **entry.params)
    except Exception as error:  # a user's function may raise any error
        reason = " ".join((str(error).strip() or "no message").split()).rstrip(".")
        if "NoneType" in reason:
            reason += " (fields of the view that the function does not declare in needs are None)"
        raise MethodError(
            f"{entry.setting}: {entry.name} fails at step {view.step + 1}: {type(error).__name__}: {reason}, "
            f"{line_of(error, entry.method.function)}."
        ) from error
    changed = [name for name, version in versions.items() if getattr(view, name)._version != version]
    fault = _fault_of_form(result, view, is_advantage) or (
        f"changes {changed[0]} of the view in place" if changed else ""
    )
    if fault:
        raise MethodError(f"{entry.setting}: {entry.name} {fault} at step {view.step + 1}.")
    result = result.float()
    mask = view.mask if result.dim() > 1 else view.mask.any(dim=1)
    result = result.masked_fill(~mask, 0.0)
    fault = _fault_of_values(entry, result, view, ranks)
    if fault:
        raise MethodError(f"{entry.setting}: {entry.name} {fault} at step {view.step + 1}.")
    return result


def _fault_of_form(result: Any, view: StepView, is_advantage: bool) -> str:
    """Describe the fault in the kind of a result, or return an empty text."""
    if not isinstance(result, Tensor):
        return f"returns {type(result).__name__} instead of a tensor"
    shapes = [tuple(view.mask.shape), *[tuple(view.order.shape)] * is_advantage]
    if tuple(result.shape) not in shapes:
        return f"returns the shape {tuple(result.shape)} instead of {' or '.join(map(str, shapes))}"
    if result.requires_grad:
        return "returns a tensor with a gradient: detach it"
    if not result.is_floating_point() and result.dtype != torch.bool:
        return f"returns {str(result.dtype).removeprefix('torch.')} instead of float32"
    return f"returns a tensor on {result.device} instead of {view.mask.device}" * (result.device != view.mask.device)


def _fault_of_values(entry: Entry, result: Tensor, view: StepView, ranks: Ranks) -> str:
    """Describe the fault in a result's values on any process, or return an empty text."""
    faults = {"returns a value that is not finite": ~result.isfinite()}
    if entry.method.kind == "weight":
        faults["returns a negative weight"] = result < 0
    elif not entry.method.revives:
        without = view.mask & (view.token_advantages == 0)
        if entry.moment == "rollout":
            some = (view.mask & ~without).any(dim=1)
            without = view.mask & (group_sum(some, torch.ones_like(some), replace(view, ranks=ranks)) == 0)[
                view.group
            ].unsqueeze(1)
        after = result if result.dim() > 1 else result.unsqueeze(1) * view.mask
        faults["gives an advantage to tokens without one: declare revives=True"] = without & (after != 0)
    counts = ranks.sum(torch.stack([fault.sum() for fault in faults.values()])).tolist()
    return next((fault for fault, count in zip(faults, counts, strict=True) if count), "")


@dataclass(frozen=True)
class Methods:
    """The entries of a run at one optimiser step.

    Attributes:
        objective: decisions of the run, with its entries.
        ranks: processes that share the step.
        step, seed: optimiser step, counted from 0, and the seed of its random choices.
        plateau_step: first step of the plateau, or None.
        tokenizer: tokenizer of the policy.
    """

    objective: "Objective"
    ranks: Ranks = ALONE
    step: int = 0
    seed: int = 0
    plateau_step: int | None = None
    tokenizer: Any = None

    def is_active(self, entry: Entry) -> bool:
        return entry.schedule.active(self.step, self.plateau_step)

    def active(self, kind: str, *moments: str) -> list[Entry]:
        """Return the entries of a kind that run at these moments and are active in this step, in their order."""
        return [e for e in self.objective.entries(kind, *moments) if self.is_active(e)]

    def _call(self, entry: Entry, inputs: Inputs, scored: "Pass | None") -> Tensor:
        # Entries draw independently of each other, and of the selection of tokens.
        own = zlib.crc32(f"{entry.method.kind} {entry.name}".encode())
        objective = self.objective
        view = make_view(
            inputs,
            scored,
            entry.moment,
            group_size=objective.group_size,
            ranks=self.ranks,
            epsilon_low=objective.epsilon_low,
            epsilon_high=objective.epsilon_high,
            delta=objective.delta,
            tokenizer=self.tokenizer,
            step=self.step,
            seed=self.seed * 2**32 + own,
        )
        return call(entry, view)

    def _shape(self, inputs: Inputs, entries: Iterable[Entry], scored: "Pass | None") -> Inputs:
        """Return inputs with the advantages of some entries."""
        for entry in entries:
            inputs = inputs | {"advantages": self._call(entry, inputs, scored)}
        return inputs

    # The rollout

    def in_rollout(self, rollout: Inputs, scored: "Pass | None", has_steps: bool) -> Inputs:
        """Return a rollout with the columns of its entries.

        Args:
            scored: pass over the rollout under the policy that wrote it, if a method or the log needs it.
            has_steps: whether several optimiser steps may share the rollout. Their schedules may differ, so that the
                advantages with and without every entry that has a schedule are computed.
        """
        entries = self.objective.entries("advantage", "rollout")
        chains = [tuple(e for e in entries if self.is_active(e))]
        if has_steps:
            sometimes = [e for e in entries if e.schedule != type(e.schedule)()]
            subsets = itertools.product((False, True), repeat=len(sometimes))
            left_out = [{e.name for e, used in zip(sometimes, chosen, strict=True) if not used} for chosen in subsets]
            chains = [tuple(e for e in entries if e.name not in names) for names in left_out]
        columns = {_column(chain): self._shape(rollout, chain, scored)["advantages"] for chain in chains if chain}
        for entry in self.objective.entries("weight", "rollout"):
            if has_steps or self.is_active(entry):
                columns[WEIGHT + entry.name] = self._call(entry, rollout, scored)
        if scored is not None:
            kept = self.objective.kept_of_rollout
            if OLD_LOGPS in kept and "old_per_token_logps" not in rollout:
                columns[OLD_LOGPS] = scored.logps
            if OLD_ENTROPIES in kept and scored.entropies is not None:
                columns[OLD_ENTROPIES] = scored.entropies
            columns |= {FIRST + name: getattr(scored, name) for name in sorted(self.objective.first_step_reads)}
        return rollout | columns

    # The step

    def shape(self, inputs: Inputs) -> Inputs:
        """Return a micro-batch or a rollout with the advantages that this step begins with."""
        chain = tuple(self.active("advantage", "rollout"))
        if chain:
            inputs = inputs | {"advantages": inputs[_column(chain)]}
        return self._shape(inputs, self.active("advantage", "sequence"), None)

    def reads_pass(self, columns: Container[str]) -> bool:
        """Return whether an active entry reads a pass of the current policy over the step, before its loss.

        If no pass has scored the rollout, the policy that wrote it is the current one, and the step's pass gives its
        values, too (see `Objective.reads_rollout_pass`).

        Args:
            columns: names of the columns of the step's micro-batches.
        """
        known = {
            "old_logps": "old_per_token_logps" in columns or OLD_LOGPS in columns,
            "old_entropies": OLD_ENTROPIES in columns,
        }
        return any(e.current or any(not known[name] for name in e.old) for e in self.active("", "step"))

    def plan(self, batches: list[Inputs], passes: "Sequence[Pass] | None") -> list[Inputs]:
        """Return the micro-batches of a step with the advantages and the weights that are known before its loss.

        Args:
            batches: micro-batches of this process, which `shape` has shaped.
            passes: passes of the current policy over the micro-batches, if a method needs them.
        """
        advantages = self.active("advantage", "step")
        weights = self.active("weight", "rollout", "sequence", "step")
        if not advantages and not weights:
            return batches
        sizes = [b["completion_ids"].size(0) for b in batches]
        whole = merge([{key: b[key] for key in _OF_A_VIEW if key in b} for b in batches])
        scored = None if passes is None else _merged(passes)
        columns = {}
        if advantages:
            whole = self._shape(whole, advantages, scored)
            columns["advantages"] = whole["advantages"]
        for entry in weights:
            column = WEIGHT + entry.name
            if entry.moment == "rollout":
                columns[column] = torch.cat([b[column] for b in batches])
            else:
                columns[column] = self._call(entry, whole, scored)
        if weights:
            columns[WEIGHTS] = _product(columns[WEIGHT + entry.name] for entry in weights)
        parts = {name: value.split(sizes) for name, value in columns.items()}
        return [b | {name: part[i] for name, part in parts.items()} for i, b in enumerate(batches)]

    def valid_weights(self, inputs: Inputs) -> Tensor | None:
        """(B, T) float32: product of the weights by whose sum the loss is divided, or None without such a weight."""
        columns = [
            inputs[WEIGHT + entry.name]
            for entry in self.active("weight", "rollout", "sequence", "step")
            if entry.method.denominator == "valid"
        ]
        return _product(columns) if columns else None

    def sums(self, batches: Sequence[Inputs], *moments: str) -> dict[str, Tensor]:
        """Return, by the name of each active method, the sum of its weights of this process's tokens and their number.

        Args:
            moments: moments of the weights that the micro-batches have, by default all before the loss.
        """
        moments = moments or ("rollout", "sequence", "step")
        found = {}
        for entry in self.active("weight", *moments):
            pairs = [(b[WEIGHT + entry.name].double(), loss_mask(b).bool()) for b in batches]
            sums = [torch.stack([(weights * mask).sum(), mask.sum().double()]) for weights, mask in pairs]
            found[entry.name] = torch.stack(sums).sum(dim=0)
        return found

    # The loss

    def in_loss(self, inputs: Inputs, scored: "Pass") -> Inputs:
        """Return the columns that the entries of the loss change: advantages, and the product of their weights.

        Args:
            scored: training pass over the micro-batch, without its graph.
        """
        columns: Inputs = {}
        advantages, weights = (self.active(kind, "loss") for kind in ("advantage", "weight"))
        if advantages:
            columns["advantages"] = self._shape(inputs, advantages, scored)["advantages"]
        results = {WEIGHT + e.name: self._call(e, inputs | columns, scored) for e in weights}
        return columns | results | ({LOSS_WEIGHTS: _product(results.values())} if results else {})


def _column(chain: Iterable[Entry]) -> str:
    """Name of the column with the advantages of these entries."""
    return SHAPED + "+".join(entry.name for entry in chain)


def _product(weights: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(weights)).prod(dim=0)


def _merged(passes: "Sequence[Pass]") -> "Pass":
    def joined(name: str) -> Tensor | None:
        parts = [getattr(p, name) for p in passes]
        return None if any(part is None for part in parts) else torch.cat(parts)

    return replace(
        passes[0], **{name: joined(name) for name in ("logps", "entropies", "residual_norms")}, aux_loss=None
    )

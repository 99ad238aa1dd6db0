"""Declarations of methods, by name.

A method declares what the trainer needs to know about it. The trainer derives from the declarations which forward
passes it makes, which tokens it may skip, and which combinations it refuses (`objective.objective`).

    @advantage(stage="rollout", needs={"rewards"}, paper="arXiv 2509.22611")
    def qae(view, advantages, k: Share = 0.4): ...

A function of a user has the same form. Without a declaration it is a method of the stage `step` that reads only what
costs no pass.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from .view import COMPUTED, FREE

if TYPE_CHECKING:
    from ..objective import Objective

# Kind -> number of arguments before the parameters: the view, and the advantages.
KINDS = {"advantage": 2, "weight": 1}
STAGES = ("rollout", "step", "loss")
DENOMINATORS = ("all", "valid")
# (decisions of the run, parameters) -> reason why the method cannot run, empty if it can.
Refusal = Callable[["Objective", dict[str, Any]], str]
# Types of parameters, which are checked before a model loads.
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Method:
    """Declaration of a method.

    Attributes:
        name: name in recipes, logs and cards.
        kind: `advantage` or `weight`.
        stage: the tokens that a call sees, and the policy whose log-probabilities and entropies are known.
            `rollout`: whole groups, in order; the policy that wrote them.
            `step`: all tokens of an optimiser step; also the current policy, at the cost of a pass without gradient if
            the step has several micro-batches.
            `loss`: whole responses of one micro-batch; the current policy, from the training pass itself. A token's
            result may depend on its own response only, so `over_ranks` may not be used.
        needs: fields of the view that the function reads, of `view.COMPUTED` and `view.FREE`.
        function: of an advantage `(view, advantages, **parameters) -> (B,) or (B, T)`, of a weight
            `(view, **parameters) -> (B, T)`; float32, finite, without gradient, and weights at least 0. Of a selection
            of tokens, which the trainer makes, the class of its parameters (see `masks`).
        denominator: of a weight. `all`: the loss is divided by the same number as without the weight. `valid`: by the
            sum of the weights.
        revives: whether a token may get an advantage that has none. Otherwise advantages of 0 must stay 0. In the
            stage `rollout` this concerns groups in which no response has an advantage.
        refusal: reason why the method cannot run with the clip of a loss, empty if it can, by the run's decisions and
            the values of all parameters. None for a method that runs with every clip.
        paper: source, for the model card.
    """

    name: str
    kind: str
    stage: str
    needs: frozenset[str]
    function: Callable[..., Any]
    denominator: str = "all"
    revives: bool = False
    paper: str = ""
    refusal: Refusal | None = None

    def __post_init__(self) -> None:
        unknown = self.needs - {*COMPUTED, *FREE}
        if unknown:
            raise ValueError(f"{self.name} needs {sorted(unknown)}: choose among {', '.join((*COMPUTED, *FREE))}.")
        for value, choices in ((self.kind, KINDS), (self.stage, STAGES), (self.denominator, DENOMINATORS)):
            if value not in choices:
                raise ValueError(f"{self.name} declares {value!r}: choose one of {', '.join(choices)}.")
        current = sorted(self.needs & {"logps", "entropies"})
        if self.stage == "rollout" and current:
            raise ValueError(
                f"{self.name} needs {current} in the stage rollout: name the old policy's, or another stage."
            )
        if self.stage == "loss" and self.denominator == "valid":
            raise ValueError(f"{self.name} has the stage loss, where a sum of weights is not known: declare 'step'.")

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Parameters that a recipe may give."""
        leading = 0 if isinstance(self.function, type) else KINDS[self.kind]
        by_place = [p for p in self._signature if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][leading:]
        by_name = [p for p in self._signature if p.kind is p.KEYWORD_ONLY]
        return {p.name: p for p in (*by_place, *by_name) if p.kind is not p.POSITIONAL_ONLY}

    def takes(self, name: str) -> bool:
        """Return whether the function takes a keyword argument, perhaps among others as `**`."""
        taken = {p.name for p in self._signature if p.kind is not p.VAR_KEYWORD}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in self._signature)
        return name in self.parameters or (takes_any and name not in taken)

    @property
    def _signature(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.function).parameters.values())


REGISTERED: dict[str, Method] = {}


def _declare(kind: str, needs: Iterable[str], fields: dict[str, Any]) -> Callable[[Callable], Callable]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        method = Method(function.__name__, kind, needs=frozenset(needs), function=function, **fields)
        if function.__module__.startswith(f"{__package__}."):
            if REGISTERED.setdefault(method.name, method) is not method:
                raise ValueError(f"{method.name} is declared twice: give one of the two methods another name.")
        vars(function)["method"] = method
        return function

    return decorate


def advantage(
    *,
    stage: str,
    needs: Iterable[str] = (),
    revives: bool = False,
    paper: str = "",
    refusal: Refusal | None = None,
) -> Callable[[Callable], Callable]:
    """Declare a function as an advantage (see `Method`), whose name is that of the function."""
    return _declare("advantage", needs, {"stage": stage, "revives": revives, "paper": paper, "refusal": refusal})


def weight(
    *,
    stage: str,
    needs: Iterable[str] = (),
    denominator: str = "all",
    paper: str = "",
    refusal: Refusal | None = None,
) -> Callable[[Callable], Callable]:
    """Declare a function as a token weight (see `Method`), whose name is that of the function."""
    fields = {"stage": stage, "denominator": denominator, "paper": paper, "refusal": refusal}
    return _declare("weight", needs, fields)

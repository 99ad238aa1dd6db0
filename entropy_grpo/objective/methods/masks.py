"""Declarations of the forking mask (arXiv 2506.01939, Eq. 6) and its controls as methods by name.

An entry with one of these names sets the short forms `top_entropy_quantile` (rho), `entropy_selection`,
`entropy_scope` and `entropy_denominator` (`config.methods`). The trainer selects the tokens by them
(`window.select_tokens`), so that a declaration has parameters and no function.
"""

from dataclasses import dataclass

from ..objective import Denominator
from ..selection import SELECTIONS, Scope
from ..share import MATCHED, RHO
from .registry import REGISTERED, Method, Share

# Name of an entry that selects tokens -> `entropy_selection`.
MASKS = {"forking" if kind == "top" else kind: kind for kind in SELECTIONS}
_NORMS = frozenset({"residual_norms", "logps", "old_logps"})
# Selection -> what ranks its tokens.
_NEEDS = {
    "top": frozenset({"entropies"}),
    "bottom": frozenset({"entropies"}),
    "random": frozenset(),
    "gradient_norm": _NORMS,
    MATCHED: _NORMS | {"entropies"},
}
_PAPERS = dict.fromkeys(("top", "bottom"), "arXiv 2506.01939")


@dataclass(frozen=True)
class Mask:
    """Parameters of an entry that selects tokens.

    Attributes:
        rho: share of tokens that `forking` keeps, and `bottom` drops.
        scope, denominator: `entropy_scope` and `entropy_denominator`.
    """

    rho: Share = RHO
    scope: Scope = "rollout"
    denominator: Denominator = "kept"


for _name, _kind in MASKS.items():
    # Both arms of a comparison with `random_matched` divide the loss by the tokens that `forking` keeps.
    _divides = "all" if _kind == MATCHED else "valid"
    REGISTERED[_name] = Method(
        _name, "weight", "step", _NEEDS[_kind], Mask, denominator=_divides, paper=_PAPERS.get(_kind, "")
    )

"""Categories of tokens by their text: the four categories of arXiv 2508.02260, appendix C.

The paper names the categories and gives examples, but no word lists. Its examples of formal reasoning have `frac`,
`sqrt`, `times`, `cdot`, `x`, `n`, `sin` and `mod` (Fig. 1b, appendix C). Each token is classified without its context.
The parts of a word that a tokenizer splits are therefore classified separately: `\\frac` arrives as `\\` and `frac`.
`so` is always a connective, `a` and `I` are always words, and every other single letter is a variable.
"""

import unicodedata
from functools import cache

FORMAL, LOGICAL, METACOGNITIVE, SEMANTIC = (
    "formal reasoning",
    "logical structuring",
    "metacognitive",
    "semantic support",
)
CATEGORIES = (FORMAL, LOGICAL, METACOGNITIVE, SEMANTIC)

# Connectives: cause, contrast, condition, order, addition.
LOGICAL_WORDS = frozenset(
    "so but however therefore thus hence because since as if then else otherwise unless although though while whereas "
    "yet nevertheless nonetheless moreover furthermore also besides additionally first second third firstly secondly "
    "thirdly next finally lastly meanwhile instead accordingly consequently thereby either neither or and given when "
    "suppose assuming assume implies".split()
)
# The model comments on its own reasoning: checks, doubts, changes of direction, plans, summaries.
METACOGNITIVE_WORDS = frozenset(
    "wait hmm hm ah oh oops alternatively actually maybe perhaps check checking recheck double verify verifying "
    "confirm reconsider rethink let try trying consider think thinking recall remember notice realize mistake wrong "
    "sure correct incorrect indeed summarize conclude conclusion overall again".split()
)
# Commands of LaTeX without their backslash, and names of functions. Words that prose uses as often (`text`, `left`,
# `to`, `begin`) are left out.
FORMAL_WORDS = frozenset(
    "frac dfrac tfrac cfrac sqrt times cdot cdots ldots div pm mp leq geq neq approx equiv cong infty sum prod "
    "int lim binom pmod bmod mod gcd lcm sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp "
    "min max det boxed overline vec mathbb mathrm mathbf mathcal operatorname lfloor rfloor lceil rceil langle "
    "rangle subset subseteq cup cap setminus emptyset notin forall iff rightarrow leftarrow mapsto angle triangle "
    "circ perp parallel nabla partial alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu "
    "xi pi rho sigma tau phi varphi chi psi omega aligned pmatrix bmatrix quad".split()
)
# Single letters that are words of prose.
LETTER_WORDS = frozenset("ai")
# Punctuation of prose, which does not make a token formal.
PUNCTUATION = frozenset(".,;:!?'\"`´’‘“”…")  # noqa: RUF001


@cache
def category(text: str) -> str:
    """Return the category of a token's text."""
    word = text.strip().casefold()
    if word in METACOGNITIVE_WORDS:
        return METACOGNITIVE
    if word in LOGICAL_WORDS:
        return LOGICAL
    if word.startswith("\\") or word in FORMAL_WORDS or _is_variable(word) or _is_formal(word):
        return FORMAL
    return SEMANTIC


def _is_variable(word: str) -> bool:
    """True for a single Latin or Greek letter that is no word of prose."""
    return len(word) == 1 and ("a" <= word <= "z" or "\u03b1" <= word <= "\u03c9") and word not in LETTER_WORDS


def _is_formal(word: str) -> bool:
    """True if a token has digits, operators, brackets or other symbols but no letter. Punctuation does not count."""
    if not word or word.isspace() or any(unicodedata.category(c)[0] in "LCM" for c in word):
        return False
    return not all(c in PUNCTUATION or c.isspace() for c in word)

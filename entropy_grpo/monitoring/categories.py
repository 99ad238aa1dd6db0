"""Categories of tokens by their text: the four categories of arXiv 2508.02260, appendix C.

The paper names the categories and gives examples, but no word lists. Each token is classified without its context. The
parts of a word that a tokenizer splits are therefore classified separately, and `so` is always a connective.
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
    if word.startswith("\\") or _is_formal(word):
        return FORMAL
    return SEMANTIC


def _is_formal(word: str) -> bool:
    """True if a token has digits, operators, brackets or other symbols but no letter. Punctuation does not count."""
    if not word or word.isspace() or any(unicodedata.category(c)[0] in "LCM" for c in word):
        return False
    return not all(c in PUNCTUATION or c.isspace() for c in word)

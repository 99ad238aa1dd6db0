"""What kind of work a token does, by its text: the four categories of arXiv 2508.02260, appendix C.

The paper names the categories and gives examples; the lists are ours. A token is looked at by itself, so that a word
that a tokenizer splits counts by its parts, and `so` counts as a connective wherever it stands.
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
# The model speaks of its own thinking: it checks, doubts, turns round, plans, sums up.
METACOGNITIVE_WORDS = frozenset(
    "wait hmm hm ah oh oops alternatively actually maybe perhaps check checking recheck double verify verifying "
    "confirm reconsider rethink let try trying consider think thinking recall remember notice realize mistake wrong "
    "sure correct incorrect indeed summarize conclude conclusion overall again".split()
)
# Marks of prose, which count no more than the words that they stand between.
PUNCTUATION = frozenset(".,;:!?'\"`´’‘“”…")  # noqa: RUF001


@cache
def category(text: str) -> str:
    """The category of a token's text."""
    word = text.strip().casefold()
    if word in METACOGNITIVE_WORDS:
        return METACOGNITIVE
    if word in LOGICAL_WORDS:
        return LOGICAL
    if word.startswith("\\") or _is_formal(word):
        return FORMAL
    return SEMANTIC


def _is_formal(word: str) -> bool:
    """Digits, operators, brackets and other symbols, without a letter; prose marks alone do not count."""
    if not word or word.isspace() or any(unicodedata.category(c)[0] in "LCM" for c in word):
        return False
    return not all(c in PUNCTUATION or c.isspace() for c in word)

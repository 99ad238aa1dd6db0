"""HICRA (arXiv 2509.03646): more advantage for the tokens of phrases that announce a step of the reasoning.

The authors mine their phrases, of three to five words, from right solutions: they cluster n-grams by meaning and keep
the clusters that occur in most solutions. Here the phrases come from a file of the user, one per line, where empty
lines and lines that begin with # do not count.

Shapes: B sequences, T completion tokens.
"""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch import Tensor

from .registry import Positive, advantage
from .view import StepView

PACKAGE = Path(__file__).parents[2]


def read_phrases(path: str) -> list[str]:
    """Return the phrases of a file, which is in the working directory or travels with the package.

    Raises:
        ValueError: the file cannot be read, is not UTF-8, or has no phrase.
    """
    # A wheel holds recipes inside of the package, a checkout beside it.
    shipped = (folder / path for folder in (PACKAGE, PACKAGE.parent))
    file = next((file for file in (Path(path), *shipped) if file.is_file()), Path(path))
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}): name a file with a phrase per line") from error
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8: save the file as UTF-8") from error
    phrases = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not phrases:
        raise ValueError("has no phrase: write one phrase per line")
    return phrases


def _readable(path: str) -> str:
    read_phrases(path)
    return path


# A file of phrases, which is read before a model loads.
Phrases = Annotated[str, AfterValidator(_readable)]


@lru_cache(maxsize=4)
def token_ngrams(path: str, tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    """Token ids of every phrase: as written and with its first letter in the other case, each also after a space.

    Raises:
        ValueError: the tokenizer has no token for a part of a phrase, in any of its spellings.
    """
    found = set()
    for phrase in read_phrases(path):
        other = phrase[0].swapcase() + phrase[1:]
        texts = (phrase, f" {phrase}", other, f" {other}")
        spellings = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        known = [ids for ids in spellings if ids and tokenizer.unk_token_id not in ids]
        if not known:
            raise ValueError(f"ngrams: the tokenizer cannot write the phrase {phrase!r} of {path}: remove the phrase.")
        found.update(known)
    return tuple(sorted(found))


def in_ngrams(ids: Tensor, ngrams: tuple[tuple[int, ...], ...]) -> Tensor:
    """(B, T) bool, tokens that belong to an occurrence of an n-gram, which may overlap others.

    Args:
        ids: (B, T) int64.
    """
    inside = torch.zeros_like(ids, dtype=torch.bool)
    for ngram in ngrams:
        starts = ids.size(1) - len(ngram) + 1
        if starts < 1:
            continue
        found = ids[:, :starts] == ngram[0]
        for i, token in enumerate(ngram[1:], 1):
            found = found & (ids[:, i : i + starts] == token)
        for i in range(len(ngram)):
            inside[:, i : i + starts] |= found
    return inside


@advantage(stage="loss", needs={"completion_ids", "tokenizer"}, paper="arXiv 2509.03646")
def hicra(view: StepView, advantages: Tensor, ngrams: Phrases, alpha: Positive = 0.2) -> Tensor:
    """(B, T) advantages A + alpha |A| on planning tokens, and A on others.

    Planning tokens are those of the phrases in `ngrams`. In right responses they are reinforced more, and in wrong
    ones punished less. The formula is quoted from notes on the paper, whose own list of phrases was not seen. A phrase
    is found by the tokens of its usual spelling, alone or after a space (`token_ngrams`), also where another token
    continues its last word.

    Args:
        ngrams: file of phrases.
        alpha: the authors use 0.2.
    """
    occurrences = in_ngrams(view.completion_ids.masked_fill(~view.mask, -1), token_ngrams(ngrams, view.tokenizer))
    values = view.token_advantages
    return values + alpha * values.abs() * occurrences

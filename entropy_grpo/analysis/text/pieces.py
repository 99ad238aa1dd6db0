"""A token's text, so that every token can be told apart and none hides, reorders or runs anything.

Decoding a token by itself, as is usual, turns each half of an emoji into the same replacement character, and drops the
space before a word where a tokenizer keeps it as a mark. Here such a token is written as its bytes.
"""

import re
import unicodedata
from functools import cache
from typing import Any

BROKEN = "\N{REPLACEMENT CHARACTER}"
SPACE_MARK = "▁"  # how SentencePiece writes a space
SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥"}
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@cache
def _byte_of() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}


def piece(tokenizer: Any, token: int) -> str:
    r"""The text of one token; of bytes that are no text by themselves, `\xf0` and the like stand for each."""
    text, name = tokenizer.decode([token]), tokenizer.convert_ids_to_tokens(token)
    if name is None:  # a row of the model's vocabulary beyond the tokenizer's
        return f"<{token}>"
    if BROKEN in text:
        match, table = _BYTE.fullmatch(name), _byte_of()
        if match:
            return f"\\x{match[1].lower()}"
        if all(character in table for character in name):
            return bytes(table[character] for character in name).decode("utf-8", "backslashreplace")
    if name.startswith(SPACE_MARK) and not text.startswith(" "):
        return " " + text
    return text


def visible(text: str) -> str:
    """Text in which every character shows: spaces and line ends as signs, what is invisible by its number."""
    return "".join(map(_visible, text)) or "(empty)"


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if character in SIGNS:
        return SIGNS[character]
    if category[0] in "CZ":  # controls, formats such as direction marks, surrogates, private and unassigned; spaces
        return f"⟨U+{ord(character):04X}⟩"
    if category[0] == "M":  # it would sit on its neighbour
        return "◌" + character
    return character

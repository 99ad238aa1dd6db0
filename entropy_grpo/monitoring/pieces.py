"""Text of single tokens that distinguishes every token and cannot hide, reorder or run anything.

Usual decoding of single tokens turns each half of an emoji into the same replacement character. It also drops the
space before a word if the tokenizer stores it as a mark. Here tokens with incomplete characters are written as bytes,
and the space is kept.
"""

import re
import unicodedata
from functools import cache
from typing import Any

BROKEN = "\N{REPLACEMENT CHARACTER}"
SPACE_MARK = "▁"  # SentencePiece's space
SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥"}
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@cache
def _byte_of() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}


def piece(tokenizer: Any, token: int) -> str:
    r"""Return the text of one token. Bytes that are not valid text by themselves are written as `\xf0`."""
    text, name = tokenizer.decode([token]), tokenizer.convert_ids_to_tokens(token)
    if name is None:  # a row of the model's embedding beyond the tokenizer's vocabulary
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
    """Return text with only visible characters: signs for spaces and line ends, code points for invisible ones."""
    return "".join(map(_visible, text)) or "(empty)"


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if character in SIGNS:
        return SIGNS[character]
    if category[0] in "CZ":  # controls, formats such as direction marks, surrogates, private and unassigned; spaces
        return f"⟨U+{ord(character):04X}⟩"
    if category[0] == "M":  # a combining mark would attach to its neighbour
        return "◌" + character
    return character

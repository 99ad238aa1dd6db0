"""Characters of other alphabets and styles in one spelling: LaTeX in ASCII for mathematics, letters for words.

Text in, text out. This is the first step of every reading, so that full-width forms, superscripts, fractions in one
character, degree signs, foreign punctuation and currencies mean the same everywhere. It is Unicode's NFKC with a
meaning: NFKC itself makes `2⁵` 25 and `3¼` 31/4. The letters of a word stay as they are.
"""
# ruff: noqa: RUF001

import re
import unicodedata
from collections.abc import Callable

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑᵢⱼₖₘₙₒₚᵣₛₜₓ", "0123456789+-=()aeijkmnoprstx")
_UP = "[" + re.escape("".join(map(chr, _SUPERSCRIPTS))) + "]+"
_DOWN = "[" + re.escape("".join(map(chr, _SUBSCRIPTS))) + "]+"
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "κ": "kappa", "λ": "lambda", "μ": "mu", "µ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma",
    "τ": "tau", "φ": "varphi", "ϕ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta",
    "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_ALONE = re.compile(r"(?<![Ͱ-Ͽµ])[Ͱ-Ͽµ](?![Ͱ-Ͽµ])")
_SIGNS = str.maketrans({
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ",
    "∙": "\\cdot ", "∗": "*", "÷": "/", "∕": "/", "∶": ":", "∞": "\\infty ", "≤": "\\leq ",
    "⩽": "\\leq ", "≥": "\\geq ", "⩾": "\\geq ", "≠": "\\neq ", "∪": "\\cup ", "∩": "\\cap ", "∅": "\\emptyset ",
    "∈": "\\in ", "±": "\\pm ", "∓": "\\mp ", "≈": "\\approx ", "∖": "\\setminus ", "∧": "\\wedge ", "∨": "\\vee ",
    "∣": "|", "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "∠": "\\angle ",
    "〈": "⟨", "〉": "⟩", "…": "\\ldots ", "⋯": "\\ldots ", "’": "'", "‘": "'", "′": "'", "“": '"', "”": '"',
    "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}", "ℂ": "\\mathbb{C}",
    "、": ", ", "،": ", ", "。": ". ", "【": "[", "】": "]", "～": "\\sim ", "〜": "\\sim ", "¢": "\\text{ cents}",
    "‰": "\\text{ per mille}", "℃": "^\\circ\\text{C}", "℉": "^\\circ\\text{F}",
    **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad", ""), "\n": " ", "\t": " ",
})  # fmt: skip
_REWRITES = [
    (re.compile("⁄"), "/"),
    (re.compile(r"(?<=\d)\s*(?:[°˚]|[º∘](?!\w))|°"), r"^\\circ "),
    (re.compile(r"√\s*(\d+(?:\.\d+)?|[a-zA-Z])"), r"\\sqrt{\1}"),
    (re.compile(r"√"), r"\\sqrt "),
    (re.compile(r"∛\s*(?:(\d+|[a-zA-Z])|\(([^()]*)\))"), r"\\sqrt[3]{\1\2}"),
    (re.compile(r"(?<=[\d)}\]$a-z])\s*或者?\s*(?=[-\d(\[{\\$a-z])"), " or "),
    (re.compile(r"(?<=[\d)}\]$a-z])\s*(?:和|与|及)\s*(?=[-\d(\[{\\$a-z])"), " and "),
]
# Blocks that NFKC maps to the letters, digits and signs that they are forms of.
_FORMS = re.compile("[\u2000-\u200a\u202f\u205f\u00a0\u3000\uff01-\uff5d\uffe0-\uffe6\U0001d400-\U0001d7ff]")
_FRACTION = re.compile("[\u00bc-\u00be\u2150-\u215e]")


def _normal_fraction(match: re.Match) -> str:
    over, under = unicodedata.normalize("NFKC", match[0]).split("⁄")
    return f"\\frac{{{over}}}{{{under}}}"


_STEPS: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (_FRACTION, _normal_fraction),
    (
        re.compile(f"({_UP})⁄({_DOWN})"),
        lambda match: f"\\frac{{{match[1].translate(_SUPERSCRIPTS)}}}{{{match[2].translate(_SUBSCRIPTS)}}}",
    ),
    (re.compile(_UP), lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}"),
    (re.compile(_DOWN), lambda match: f"_{{{match[0].translate(_SUBSCRIPTS)}}}"),
    (_FORMS, lambda match: unicodedata.normalize("NFKC", match[0])),
    (re.compile(r"(?![0-9])\d"), lambda match: str(unicodedata.digit(match[0]))),
    (_ALONE, lambda match: f"\\{_GREEK[match[0]]} " if match[0] in _GREEK else match[0]),
    *_REWRITES,
]


def plain(text: str) -> str:
    """Return a text in one spelling of each character, on one line."""
    if text.isascii():
        return text.replace("\n", " ").replace("\t", " ")
    text = unicodedata.normalize("NFC", text).translate(_SIGNS)
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text)
    return text

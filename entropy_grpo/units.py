"""What stands behind a number: units, percent, money, degrees. Text in, a factor and dimensions out; no sympy.

A unit is a factor times a product of dimensions, so that `100 cm` is `1 m` and `5 kg` is not `5 m`. A word that is not
in the table is a dimension of its own: `5 apples` is not `5 oranges`. Percent and degrees are numbers without a
dimension, 1/100 and pi/180; the latter is said by a name because it is no fraction.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

DEGREE = "degree"
_LENGTH = {
    "m": 1, "meter": 1, "metre": 1, "cm": Fraction(1, 100), "centimeter": Fraction(1, 100),
    "centimetre": Fraction(1, 100), "mm": Fraction(1, 1000), "millimeter": Fraction(1, 1000), "km": 1000,
    "kilometer": 1000, "kilometre": 1000, "nm": Fraction(1, 10**9), "inch": Fraction(254, 10000),
    "inche": Fraction(254, 10000), "in": Fraction(254, 10000), "ft": Fraction(3048, 10000),
    "foot": Fraction(3048, 10000), "feet": Fraction(3048, 10000), "yard": Fraction(9144, 10000),
    "yd": Fraction(9144, 10000), "mile": Fraction(1609344, 1000), "mi": Fraction(1609344, 1000),
}  # fmt: skip
_TIME = {
    "s": 1, "sec": 1, "second": 1, "ms": Fraction(1, 1000), "min": 60, "minute": 60, "h": 3600, "hr": 3600,
    "hour": 3600, "day": 86400, "week": 604800,
}  # fmt: skip
_MASS = {"kg": 1000, "kilogram": 1000, "g": 1, "gram": 1, "mg": Fraction(1, 1000), "ton": 10**6, "tonne": 10**6}
_MONEY = {"\\$": 100, "dollar": 100, "usd": 100, "cent": 1}
_VOLUME = {"l": 1000, "liter": 1000, "litre": 1000, "ml": 1, "milliliter": 1, "millilitre": 1}
TABLE: dict[str, tuple[Fraction, tuple[tuple[str, int], ...]]] = {
    name: (Fraction(factor), ((dimension, 1),) if dimension else ())
    for dimension, names in {
        "length": _LENGTH,
        "time": _TIME,
        "mass": _MASS,
        "money": _MONEY,
        # Two names of each of what is not converted.
        "pound": {"lb": 1, "pound": 1},
        "kelvin": {"K": 1, "kelvin": 1},
        "celsius": {"celsius": 1},
        "fahrenheit": {"fahrenheit": 1},
        "joule": {"J": 1, "joule": 1, "kJ": 1000},
        "newton": {"N": 1, "newton": 1},
        "watt": {"W": 1, "watt": 1, "kW": 1000},
        "hertz": {"Hz": 1, "hertz": 1},
        "volt": {"V": 1, "volt": 1},
        "euro": {"€": 1, "euro": 1},
        "£": {"£": 1},
        "rupee": {"rs": 1, "rupee": 1},
        "": {"\\%": Fraction(1, 100), "percent": Fraction(1, 100), "unit": 1, "rad": 1, "radian": 1},
    }.items()
    for name, factor in names.items()
}
TABLE |= {name: (Fraction(factor, 10**6), (("length", 3),)) for name, (factor, _) in {
    n: (f, 0) for n, f in _VOLUME.items()}.items()}  # fmt: skip
TABLE |= {"mph": (Fraction(1609344, 3600000), (("length", 1), ("time", -1)))}
TABLE |= {name: (Fraction(1), ((DEGREE, 0),)) for name in (DEGREE, "deg", "^\\circ")}
# Numbers that are written as words behind others; they belong to the value.
MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Bare words that say something about a number, not what it counts.
NOT_UNITS = frozenset(
    "and or not no but nor to than is are be at most least if when where for with either plus minus over mod "
    "maybe possibly wrong about".split()
)
_PIECE = re.compile(r"(\\%|\\\$|\^\\circ|[€£]|[A-Za-z][A-Za-z']*)(?:\^\{?(-?[0-9])\}?)?|([/*])|\s+|(.)")
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}


@dataclass(frozen=True)
class Unit:
    """`factor` times the product of dimensions; `degrees` says that pi/180 is a factor, too."""

    factor: Fraction
    dimensions: tuple[tuple[str, int], ...]
    degrees: bool = False


def _entry(word: str) -> tuple[Fraction, tuple[tuple[str, int], ...]]:
    """A word's factor and dimensions: by its own case, in small letters, in the singular, else of its own kind."""
    small = word.lower()
    for name in (word, small, small.removesuffix("es"), small.removesuffix("s")):
        if name in TABLE and (len(name) > 1 or name == word):
            return TABLE[name]
    return Fraction(1), ((small.removesuffix("s"), 1),)


def unit(text: str) -> Unit | None:
    """The unit that a text such as `cm^2`, `km/h`, `square feet`, `dollars per hour` or `\\%` means; None if none."""
    factor, found, sign, power, degrees = Fraction(1), {}, 1, 1, False
    for word, exponent, operator, other in _PIECE.findall(text.replace("\\cdot", "*")):
        small = word.lower()
        if other or small in NOT_UNITS:
            return None
        if operator == "/" or small == "per":
            sign = -1
        elif small in _POWERS:
            power = _POWERS[small]
        elif word:
            own, dimensions = _entry(word)
            exponent = sign * power * int(exponent or 1)
            factor *= own**exponent
            for dimension, times in dimensions:
                degrees |= dimension == DEGREE
                found[dimension] = found.get(dimension, 0) + times * exponent
            power = 1
    temperature = {"celsius", "fahrenheit"} & set(found)
    kept = tuple(sorted((name, times) for name, times in found.items() if times))
    return Unit(factor, kept, degrees and not temperature)

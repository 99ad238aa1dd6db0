"""Units behind a number: measures, percent, money, degrees. Text in, a factor and dimensions out; no sympy.

A unit is a factor times a product of dimensions, so that `100 cm` is `1 m` and `5 kg` is not `5 m`. A word that is not
in the table is a dimension of its own: `5 apples` is not `5 oranges`. Percent and angles have a factor and no
dimension.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

DEGREE, RADIAN = "degree", "radian"
# Dimension -> (names, factor) of its units; a name in several letters stands in small letters and in the singular.
_KINDS: dict[str, list[tuple[str, Fraction | int]]] = {
    "length": [
        ("m meter metre", 1),
        ("cm centimeter centimetre", Fraction(1, 100)),
        ("mm millimeter millimetre", Fraction(1, 1000)),
        ("nm nanometer", Fraction(1, 10**9)),
        ("km kilometer kilometre", 1000),
        ("in inch inche", Fraction(254, 10000)),
        ("ft foot feet", Fraction(3048, 10000)),
        ("yd yard", Fraction(9144, 10000)),
        ("mi mile", Fraction(1609344, 1000)),
    ],
    "time": [
        ("ms millisecond", Fraction(1, 1000)),
        ("s sec second", 1),
        ("min minute", 60),
        ("h hr hour", 3600),
        ("day", 86400),
        ("week", 604800),
    ],
    "mass": [("mg milligram", Fraction(1, 1000)), ("g gram", 1), ("kg kilogram", 1000), ("tonne", 10**6)],
    "money": [("\\$ dollar usd", 100), ("cent", 1)],
    "volume": [("ml milliliter millilitre", Fraction(1, 1000)), ("l liter litre", 1)],
    "weight": [("lb pound", 1)],
    "euro": [("€ euro", 1)],
    "rupee": [("Rs rs rupee", 1)],
    "kelvin": [("K kelvin", 1)],
    "joule": [("J joule", 1), ("kJ kilojoule", 1000)],
    "newton": [("N newton", 1)],
    "watt": [("W watt", 1), ("kW kilowatt", 1000)],
    "hertz": [("Hz hertz", 1)],
    "volt": [("V volt", 1)],
    "": [("\\% percent", Fraction(1, 100)), ("unit", 1)],
}
_SPEEDS = {"mph": Fraction(1609344, 3600000), "kmh": Fraction(1000, 3600), "kph": Fraction(1000, 3600)}
_ANGLES = {"^\\circ": DEGREE, "deg": DEGREE, "degree": DEGREE, "rad": RADIAN, "radian": RADIAN}
_TABLE: dict[str, tuple[Fraction, dict[str, int]]] = {
    name: (Fraction(factor), {dimension: 1} if dimension else {})
    for dimension, units in _KINDS.items()
    for names, factor in units
    for name in names.split()
} | {name: (factor, {"length": 1, "time": -1}) for name, factor in _SPEEDS.items()}
# Number words behind a number; they belong to the value.
MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Words that qualify a number and are no unit.
NOT_UNITS = frozenset(
    "and or not no but nor to than is are be at most least if when where for with either plus minus over mod maybe "
    "possibly wrong about factorial squared cubed choose power root base more less fewer greater smaller".split()
)
_PIECE = re.compile(r"(\\%|\\\$|\^\\circ|[€£]|[A-Za-z][A-Za-z']*)(?:\^\{?(-?[0-9])\}?)?|([/*])|\s+|(.)")
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}


@dataclass(frozen=True)
class Unit:
    """`factor` times the product of dimensions with their powers; `angle` is `DEGREE`, `RADIAN` or ""."""

    factor: Fraction
    dimensions: tuple[tuple[str, int], ...]
    angle: str = ""

    @property
    def says_nothing(self) -> bool:
        """True if the unit is the factor 1 without a dimension, as in `10 square units`."""
        return not self.dimensions and self.factor == 1 and not self.angle


def _entry(word: str) -> tuple[Fraction, dict[str, int]]:
    """A word's factor and dimensions: looked up as it is, in small letters, in the singular; else of its own kind."""
    small = word.lower()
    for name in (word, small, small.removesuffix("s"), small.removesuffix("es")):
        if name in _TABLE and (len(name) > 1 or name == word):
            return _TABLE[name]
    return Fraction(1), {small.removesuffix("s"): 1}


def unit(text: str) -> Unit | None:
    """The unit of a text such as `cm^2`, `km/h`, `square feet`, `dollars per hour` or `\\%`; None if it is no unit."""
    factor, angle, sign, power = Fraction(1), "", 1, 1
    powers: dict[str, int] = {}
    for word, exponent, operator, other in _PIECE.findall(text.replace("\\cdot", "*")):
        small = word.lower()
        if other or small in NOT_UNITS:
            return None
        if operator == "/" or small == "per":
            sign = -1
        elif small in _POWERS:
            power = _POWERS[small]
        elif small.removesuffix("s") in _ANGLES:
            angle = _ANGLES[small.removesuffix("s")]
        elif word:
            own, dimensions = _entry(word)
            times = sign * power * int(exponent or 1)
            factor, power = factor * own**times, 1
            for dimension, each in dimensions.items():
                powers[dimension] = powers.get(dimension, 0) + times * each
    return Unit(factor, tuple(sorted((name, times) for name, times in powers.items() if times)), angle)

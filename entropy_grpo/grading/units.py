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
        ("m meter metre 米", 1),
        ("cm centimeter centimetre 厘米", Fraction(1, 100)),
        ("mm millimeter millimetre 毫米", Fraction(1, 1000)),
        ("dm decimeter decimetre 分米", Fraction(1, 10)),
        ("nm nanometer", Fraction(1, 10**9)),
        ("km kilometer kilometre 千米 公里", 1000),
        ("in inch inche", Fraction(254, 10000)),
        ("ft foot feet", Fraction(3048, 10000)),
        ("yd yard", Fraction(9144, 10000)),
        ("mi mile", Fraction(1609344, 1000)),
    ],
    "time": [
        ("ms millisecond", Fraction(1, 1000)),
        ("s sec second 秒", 1),
        ("min minute 分钟", 60),
        ("h hr hour 小时", 3600),
        ("day 天 日", 86400),
        ("week", 604800),
    ],
    "mass": [
        ("mg milligram 毫克", Fraction(1, 1000)),
        ("g gram 克", 1),
        ("kg kilogram 千克 公斤", 1000),
        ("tonne 吨", 10**6),
    ],
    "money": [("\\$ dollar usd", 100), ("cent", 1)],
    "volume": [("ml milliliter millilitre 毫升", Fraction(1, 1000)), ("l L liter litre 升", 1)],
    "weight": [("lb pound", 1)],
    "euro": [("€ euro", 1)],
    "sterling": [("£", 1)],
    "yuan": [("¥ yuan rmb cny 元", 1)],
    "yen": [("yen jpy 円", 1)],
    "rupee": [("Rs rs ₹ rupee", 1)],
    "won": [("₩ won", 1)],
    "ruble": [("₽ ruble rouble", 1)],
    "kelvin": [("K kelvin", 1)],
    "joule": [("J joule", 1), ("kJ kilojoule", 1000)],
    "newton": [("N newton", 1)],
    "watt": [("W watt", 1), ("kW kilowatt", 1000)],
    "hertz": [("Hz hertz", 1)],
    "volt": [("V volt", 1)],
    "ohm": [("ohm", 1), ("kohm kiloohm", 1000), ("megaohm", 10**6)],
    "": [
        ("\\% percent", Fraction(1, 100)),
        ("permille", Fraction(1, 1000)),
        ("basispoint bp bps", Fraction(1, 10**4)),
        ("ppm", Fraction(1, 10**6)),
        ("unit", 1),
    ],
}
_SPEEDS = {"mph": Fraction(1609344, 3600000), "kmh": Fraction(1000, 3600), "kph": Fraction(1000, 3600)}
_ANGLES = {"^\\circ": DEGREE, "deg": DEGREE, "degree": DEGREE, "度": DEGREE, "rad": RADIAN, "radian": RADIAN}
_TABLE: dict[str, tuple[Fraction, dict[str, int]]] = {
    name: (Fraction(factor), {dimension: 1} if dimension else {})
    for dimension, units in _KINDS.items()
    for names, factor in units
    for name in names.split()
} | {name: (factor, {"length": 1, "time": -1}) for name, factor in _SPEEDS.items()}
# Number words behind a number, in the singular; they belong to the value.
MULTIPLES: dict[str, int | Fraction] = {
    "dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "quadrillion": 10**15, "lakh": 10**5, "crore": 10**7, "万": 10**4, "亿": 10**8, "third": Fraction(1, 3),
    "fourth": Fraction(1, 4), "fifth": Fraction(1, 5), "sixth": Fraction(1, 6), "seventh": Fraction(1, 7),
    "eighth": Fraction(1, 8), "ninth": Fraction(1, 9), "tenth": Fraction(1, 10), "hundredth": Fraction(1, 100),
    "thousandth": Fraction(1, 1000), "millionth": Fraction(1, 10**6),
}  # fmt: skip
# Words that qualify a number and are no unit.
NOT_UNITS = frozenset(
    "and or not no but nor to than is are be at most least if when where for with either plus minus over mod maybe "
    "possibly wrong about factorial squared cubed choose power root base more less fewer greater smaller below zero "
    "under negative double doubled triple tripled twice half halves halved times ago before after inverse reciprocal "
    "opposite modulo recurring repeating repeated imaginary false incorrect infinity pi undefined except "
    "without".split()
)
# Chinese words behind a number of things; other words of other alphabets may as well say `less than`.
_COUNTERS = frozenset(
    "个 只 人 名 条 本 张 次 种 辆 棵 块 件 页 位 岁 枚 支 台 套 组 颗 盒 箱 袋 瓶 杯 头 匹 架 艘 座 间 家".split()
)
# Units whose powers are named behind them, as in `cm squared` and `meters per second squared`.
_SQUARED = "|".join(
    ["unit", *(name for kind in ("length", "time") for names, _ in _KINDS[kind] for name in names.split())]
)
# Several words for one unit.
_PHRASES = [
    (re.compile(r"(?i)per\s*cent(?:age)?(?:\s+points?)?|percentages?|\bpct\b\.?"), "percent"),
    (re.compile(r"(?i)per\s*mil(?:le?)?(?![a-z])"), "permille"),
    (re.compile(r"(?i)parts per million"), "ppm"),
    (re.compile(r"(?i)basis points?"), "basispoint"),
    (re.compile(rf"\b({_SQUARED})s?\s+squared\b"), r"square \1"),
    (re.compile(rf"\b({_SQUARED})s?\s+cubed\b"), r"cubic \1"),
    (re.compile(r"\\cdot"), "*"),
    (re.compile("平方"), "square "),
    (re.compile("立方"), "cubic "),
    (re.compile("每"), " per "),
]
_PIECE = re.compile(r"(\\%|\\\$|\^\\circ|[€£¥₹₩₽]|[^\W\d_](?:[^\W\d_]|')*)(\.)?(?:\^\{?(-?[0-9])\}?)?|([/*])|\s+|(.)")
# Units of which small letters are others: a megametre, a megagram, a newton metre.
_PREFIXED = re.compile(r"M[mgsl]|Nm")
# Symbols, not words, whose first letter may be a prefix: `meV` is not `MeV`, but `Men` is `men`.
_MILLI_OR_MEGA = re.compile(r"[mM](?=[a-z]?[A-Z])[a-zA-Z]{1,3}")
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
# Words that a stop may shorten. Behind others it may end a sentence, as in `5 apples. Wait`.
_SHORTENED = frozenset("in ft yd mi hr min sec lb sq cu".split())


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

    @property
    def may_be_left_out(self) -> bool:
        """True if a number without the unit means the same: not for basis points, which are 1/10000 of a number."""
        return bool(self.dimensions or self.angle) or self.factor == Fraction(1, 100)


def _entry(word: str) -> tuple[Fraction, dict[str, int]]:
    """Look up factor and dimensions of a word, also in small letters and in the singular. Other words are a kind."""
    small = word.lower()
    names = [word] if _PREFIXED.fullmatch(word) else [word, small, small.removesuffix("s"), small.removesuffix("es")]
    for name in names:
        if name in _TABLE and (len(name) > 1 or name == word):
            return _TABLE[name]
    return Fraction(1), {(word[0] + small[1:] if _MILLI_OR_MEGA.fullmatch(word) else small).removesuffix("s"): 1}


def unit(text: str) -> Unit | None:
    """Return the unit of a text such as `cm^2`, `km/h`, `square feet`, `dollars per hour` or `\\%`, or None."""
    factor, angle, sign, power = Fraction(1), "", 1, 1
    powers: dict[str, int] = {}
    for phrase, name in _PHRASES:
        text = phrase.sub(name, text)
    for word, stop, exponent, operator, other in _PIECE.findall(text):
        small = word.lower()
        if other or small in NOT_UNITS or (stop and small.removesuffix("s") not in _SHORTENED):
            return None
        if operator == "/" or small == "per":
            sign = -1
        elif small in _POWERS:
            power = _POWERS[small]
        elif small.removesuffix("s") in _ANGLES:
            angle = _ANGLES[small.removesuffix("s")]
        elif word:
            foreign = not word.isascii() and word not in _COUNTERS
            variable = word.isascii() and len(word) == 1 and word.islower()  # also i and e
            if word not in _TABLE and (foreign or variable):
                return None
            own, dimensions = _entry(word)
            times = sign * power * int(exponent or 1)
            factor, power = factor * own**times, 1
            for dimension, each in dimensions.items():
                powers[dimension] = powers.get(dimension, 0) + times * each
    return Unit(factor, tuple(sorted((name, times) for name, times in powers.items() if times)), angle)

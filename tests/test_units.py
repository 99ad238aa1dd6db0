"""Units and number words, against sympy's units and against numbers that are written out."""

from fractions import Fraction

import pytest
from sympy.physics import units as si

from entropy_grpo.grading import compare
from entropy_grpo.grading.units import MULTIPLES, Unit, unit

# Texts of one dimension each. Percent, which sympy does not convert, is a number.
MEASURES = [
    {"m": si.m, "cm": si.cm, "mm": si.mm, "dm": si.dm, "nm": si.nm, "km": si.km},
    {"meter": si.m, "inches": si.inch, "feet": si.foot, "yards": si.yard, "miles": si.mile},
    {"米": si.m, "厘米": si.cm, "毫米": si.mm, "分米": si.dm, "公里": si.km},
    {"s": si.s, "ms": si.millisecond, "min": si.minute, "hr": si.hour, "days": si.day, "weeks": 7 * si.day},
    {"g": si.gram, "mg": si.milligram, "kg": si.kg, "tonnes": si.metric_ton},
    {"克": si.gram, "毫克": si.milligram, "公斤": si.kg, "吨": si.metric_ton},
    {"m/s": si.m / si.s, "km/h": si.km / si.hour, "kmh": si.km / si.hour, "kph": si.km / si.hour},
    {"meters per second": si.m / si.s, "mph": si.mile / si.hour, "feet s^{-1}": si.foot / si.s},
    {"m^2": si.m**2, "cm^2": si.cm**2, "square feet": si.foot**2, "sq yd": si.yard**2, "平方厘米": si.cm**2},
    {"m^{3}": si.m**3, "cubic inches": si.inch**3, "cu cm": si.cm**3, "立方分米": si.dm**3},
    {"litres": si.liter, "ml": si.milliliter, "L": si.liter, "mL": si.milliliter},
    {"sq. ft.": si.foot**2, "inches squared": si.inch**2, "cm squared": si.cm**2},
    {"meters per second squared": si.m / si.s**2, "cm/s squared": si.cm / si.s**2},
    {"J": si.joule, "kJ": 1000 * si.joule},
    {"W": si.watt, "kW": 1000 * si.watt},
    {"ohm": si.ohm, "kohm": 1000 * si.ohm, "megaohm": 10**6 * si.ohm},
    {"units": 1, r"\%": si.percent, "percent": si.percent, "permille": si.permille},
    {"units": 1, "basis points": si.percent / 100, "parts per million": si.percent / 10_000},
]


def factor_of(quantity):
    """The number before the base units."""
    based = si.convert_to(quantity, [si.m, si.kg, si.s, si.ampere])
    factor, _ = based.subs({part: part.scale_factor for part in (si.percent, si.permille)}).as_coeff_Mul()
    return Fraction(factor.p, factor.q)


@pytest.mark.parametrize("texts", MEASURES, ids=lambda texts: next(iter(texts)))
def test_units_of_a_dimension_have_the_ratios_of_sympy(texts):
    first, *others = texts
    base = unit(first)
    for text in others:
        found = unit(text)
        assert found.dimensions == base.dimensions, text
        assert found.factor / base.factor == factor_of(texts[text]) / factor_of(texts[first]), text


def test_money():
    assert unit("dollars") == unit(r"\$") == unit("usd") and unit("dollar").factor == 100 * unit("cents").factor
    assert len({unit(text) for text in "dollar € £ yuan yen rupee won ruble".split()}) == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("apples", Unit(Fraction(1), (("apple", 1),))),
        ("apples per day", Unit(Fraction(1, 86_400), (("apple", 1), ("time", -1)))),
        ("m/m", Unit(Fraction(1), ())),
        # A letter is a unit in its own case only, and more letters in any.
        ("M", Unit(Fraction(1), (("m", 1),))),
        ("CM", Unit(Fraction(1, 100), (("length", 1),))),
    ],
)
def test_other_words_are_dimensions(text, expected):
    assert unit(text) == expected


@pytest.mark.parametrize(
    "text", ["squared", "apples squared", "percent squared", "cm^2 squared", "a.m.", "apples. Wait"]
)
def test_powers_and_stops_behind_other_words_are_no_units(text):
    assert unit(text) is None


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("24 square units", r"24 \text{ cm}^2", True),
        ("24 apples", r"24 \text{ cm}^2", False),
        (r"5\%", "5", True),
        ("5 basis points", "5", False),
        ("5 permille", "5", False),
    ],
)
def test_units_that_may_be_left_out(answer, reference, equal):
    assert (compare(answer, reference) == "right") is equal


def test_number_words():
    digits = {"dozen": "12", "hundred": "100", "thousand": "1000", "million": "1000000", "billion": "1000000000"}
    digits |= {"trillion": "1000000000000", "quadrillion": "1000000000000000", "lakh": "100000", "crore": "10000000"}
    digits |= {"万": "10000", "亿": "100000000"}
    digits |= {"hundredth": "0.01", "thousandth": "0.001", "millionth": "0.000001"}
    parts = "third fourth fifth sixth seventh eighth ninth tenth".split()
    written = {word: Fraction(number) for word, number in digits.items()}
    assert MULTIPLES == written | {word: Fraction(1, 3 + place) for place, word in enumerate(parts)}

"""The range of a number that a function accepts, found by trials. Many validators do not say what they accept."""

from collections.abc import Callable, Iterable

MOST = 2**40  # distance from the accepted number beyond which there is taken to be no bound
DIGITS = 6  # of a bound after the decimal point


def accepted(accepts: Callable[[float], bool], near: Iterable[int | float]) -> str | None:
    """Return the range in words, such as `from 1 to 3`; None if no accepted number is found.

    Args:
        accepts: whether a number is accepted. The accepted numbers are taken to be an interval.
        near: numbers near which an accepted one is looked for. If they are integers, the range has only integers.
    """
    steps = [0, *(sign * 2**power for power in range(20) for sign in (1, -1))]
    inside = next((start + step for start in near for step in steps if accepts(start + step)), None)
    if inside is None:
        return None
    (lowest, has_lowest), (highest, has_highest) = _bound(accepts, inside, -1), _bound(accepts, inside, 1)
    if lowest == highest is not None:
        return f"only {lowest}"
    least = None if lowest is None else str(lowest) if has_lowest else f"above {lowest}"
    most = None if highest is None else f"{highest}" if has_highest else f"below {highest}"
    if least and most:
        return f"from {least} to {most}" if has_lowest and has_highest else f"{_at(least)} and {_at(most, 'most')}"
    return _at(least) if least else _at(most, "most") if most else "any number"


def _at(bound: str, side: str = "least") -> str:
    return bound if " " in bound else f"at {side} {bound}"


def _bound(accepts: Callable[[float], bool], inside: int | float, sign: int) -> tuple[int | float | None, bool]:
    """Return the bound above (sign 1) or below (sign -1) an accepted number, and whether it is accepted itself."""
    whole = isinstance(inside, int)
    # Distances from the accepted number.
    good: int | float = 0
    bad: int | float = 1 if whole else 2.0**-10
    while accepts(inside + sign * bad):
        good, bad = bad, 2 * bad
        if bad > MOST:
            return None, False
    while bad - good > (1 if whole else 10.0 ** -(DIGITS + 2)):
        middle = (good + bad) // 2 if whole else (good + bad) / 2
        good, bad = (middle, bad) if accepts(inside + sign * middle) else (good, middle)
    bound = inside + sign * good if whole else round(inside + sign * good, DIGITS) + 0.0  # no minus zero
    return bound, accepts(bound)

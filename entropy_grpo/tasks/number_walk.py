"""The number walk: reach a target by adding moves, thinking aloud, with an answer that can be checked.

A problem reads `go 15 to 8 need -7 with +7 -4 -1`, a response

    take -4 need -3 take -1 need -2 take -1 need -1 take -1 need 0 yes so \\boxed{15-4-1-1-1}

Each `take` is a choice between the moves, a fork; what follows it is arithmetic and copying. At most `MAX_MOVES`
moves may be taken and every intermediate value stays in `VALUES`. A response that has run out of moves says `no` and
boxes the expression all the same, which is then wrong.

Because the whole state space is tiny, whether a single move was *good* (it brings the target nearer, in breadth-first
distance) is known exactly: a direct measure of choosing, beside the accuracy of the answer.

Pure functions of their arguments; no torch.
"""

import random
import re
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

NAME = "number_walk"
MAX_MOVES = 6
VALUES = range(0, 61)
STARTS = range(1, 41)
SHORTEST = range(2, 5)  # the shortest solution takes this many moves

# Probability with which a demonstration takes a good move; otherwise any legal move. Low, so that the cold start knows
# the form of a solution but chooses badly: what is left to learn is the choice.
GOOD_MOVE_SHARE = 0.3

# The distance is given: a subtraction of two arbitrary numbers would be the hardest thing that the model has to learn.
PROMPT = "go {start} to {target} need {need:+d} with {moves}\n"
_PROMPT = re.compile(r"go (\d+) to (\d+) need ([+-]\d+) with ([+-]\d+) ([+-]\d+) ([+-]\d+)\n")
# Python refuses to read integers of thousands of digits.
_TAKE = re.compile(r" ?take ([+-]\d{1,9})")
_EXPRESSION = re.compile(r"(\d{1,9})((?:[+-]\d{1,9})*)")


@dataclass(frozen=True)
class Problem:
    """A start, a target and three moves, one a large plus, one a minus, one small."""

    start: int
    target: int
    moves: tuple[int, int, int]

    @property
    def prompt(self) -> str:
        moves = " ".join(f"{m:+d}" for m in self.moves)
        return PROMPT.format(start=self.start, target=self.target, need=self.target - self.start, moves=moves)

    @classmethod
    def from_prompt(cls, prompt: str) -> "Problem":
        """Read a problem back from its prompt; `ValueError` if the text is not one."""
        match = _PROMPT.fullmatch(prompt)
        if match is None:
            raise ValueError(f"not a number-walk prompt: {prompt!r}")
        start, target, need, *moves = map(int, match.groups())
        if need != target - start:
            raise ValueError(f"not a number-walk prompt, the need is wrong: {prompt!r}")
        return cls(start, target, tuple(moves))


@cache
def distances(target: int, moves: tuple[int, ...]) -> dict[int, int]:
    """Fewest moves from every value in `VALUES` to `target`; values that cannot reach it are absent."""
    found = {target: 0}
    queue = deque([target])
    while queue:
        value = queue.popleft()
        for move in moves:
            before = value - move
            if before in VALUES and before not in found:
                found[before] = found[value] + 1
                queue.append(before)
    return found


def is_good(problem: Problem, value: int, move: int) -> bool:
    """Whether `move`, taken at `value`, brings the target nearer."""
    to_target = distances(problem.target, problem.moves)
    return value in to_target and to_target.get(value + move, len(VALUES)) < to_target[value]


def split_of(problem: Problem) -> str:
    """The split a problem belongs to, from a checksum of it: 80% train, 10% dev, 10% test, disjoint by construction.

    The order of the moves does not count: the same walk with its moves named in another order is in the same split.
    """
    canonical = Problem(problem.start, problem.target, tuple(sorted(problem.moves)))
    return {0: "test", 1: "dev"}.get(zlib.crc32(canonical.prompt.encode()) % 10, "train")


def problems(split: str, seed: int) -> Iterator[Problem]:
    """An endless stream of distinct problems of one split."""
    rng = random.Random(f"{NAME}-{split}-{seed}")
    seen = set()
    while True:
        small = rng.choice((-3, -2, -1, 1, 2, 3))
        moves = [rng.randint(5, 9), -rng.randint(4, 8), small]
        rng.shuffle(moves)
        problem = Problem(rng.choice(STARTS), rng.choice(VALUES), tuple(moves))
        shortest = distances(problem.target, problem.moves).get(problem.start)
        if shortest in SHORTEST and problem not in seen and split_of(problem) == split:
            seen.add(problem)
            yield problem


def demonstration(problem: Problem, rng: random.Random) -> str:
    """A response in the task's form by a walker that chooses well only `GOOD_MOVE_SHARE` of the time."""
    value, taken, steps = problem.start, [], []
    while value != problem.target and len(taken) < MAX_MOVES:
        legal = [m for m in problem.moves if value + m in VALUES]
        good = [m for m in legal if is_good(problem, value, m)]
        move = rng.choice(good) if good and rng.random() < GOOD_MOVE_SHARE else rng.choice(legal)
        value += move
        taken.append(move)
        need = problem.target - value
        steps.append(f"take {move:+d} need {need:+d}" if need else f"take {move:+d} need 0")
    verdict = "yes" if value == problem.target else "no"
    expression = f"{problem.start}" + "".join(f"{m:+d}" for m in taken)
    return " ".join([*steps, verdict, f"so \\boxed{{{expression}}}"])


def uses_what_was_given(problem: Problem, expression: str) -> bool:
    """Whether `expression` is the start followed by at most `MAX_MOVES` of the problem's moves, within `VALUES`.

    The reward needs this beside the value of the expression: `\\boxed{8}` equals the target 8 and solves nothing.
    """
    match = _EXPRESSION.fullmatch(expression)
    if match is None or int(match[1]) != problem.start:
        return False
    moves = [int(m) for m in re.findall(r"[+-]\d+", match[2])]
    value = problem.start
    for move in moves:
        value += move
        if move not in problem.moves or value not in VALUES:
            return False
    return len(moves) <= MAX_MOVES


def count_good_moves(problem: Problem, response: str) -> tuple[int, int]:
    """(good moves, moves) among the `take`s of a response, each judged at the value where the walk really is."""
    value, good, total = problem.start, 0, 0
    for move in map(int, _TAKE.findall(response)):
        good += move in problem.moves and is_good(problem, value, move)
        total += 1
        value += move
    return good, total


def words() -> list[str]:
    """Every token of the task's language, each number one token: a tiny model learns digit tokens much more slowly."""
    highest = max(VALUES)
    signed = [f"{n:+d}" for n in range(-highest, highest + 1) if n != 0]
    plain = [str(n) for n in VALUES]
    text = ["go", " to", " need", " with", "\n", "take", " take", " yes", " no", " so", " \\boxed{", "}"]
    return text + plain + [" " + n for n in plain] + signed + [" " + n for n in signed]

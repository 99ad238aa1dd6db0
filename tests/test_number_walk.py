"""The embedded task against brute force over move sequences, its demonstrations against a walk through them."""

import itertools
import math
import random
import re

import pytest

from entropy_grpo.tasks import number_walk
from entropy_grpo.tasks.cold_start import build_tokenizer
from entropy_grpo.tasks.number_walk import Problem

LOWEST, HIGHEST = 0, 60
EXAMPLE = Problem(15, 8, (7, -4, -1))
SEARCHED = 6  # moves that the brute force tries

# Two where every value reaches the target, and two where parity or a common divisor forbids it for many.
GOALS = [(8, (7, -4, -1)), (0, (5, -11, -3)), (60, (12, -4, 2)), (31, (6, -9, 3))]


def walk(start, moves):
    """Every value on the way."""
    return list(itertools.accumulate(moves, initial=start))


def brute_force(start, target, moves, longest=SEARCHED):
    """Length of the first sequence of moves, shortest sequences first, that ends at the target and never leaves."""
    for length in range(longest + 1):
        for sequence in itertools.product(moves, repeat=length):
            values = walk(start, sequence)
            if values[-1] == target and min(values) >= LOWEST and max(values) <= HIGHEST:
                return length
    return math.inf


def take(split, count, seed=0):
    return list(itertools.islice(number_walk.problems(split, seed), count))


def test_prompt_of_an_example():
    assert EXAMPLE.prompt == "go 15 to 8 need -7 with +7 -4 -1\n"


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_prompt_and_problem_round_trip(split):
    for problem in take(split, 30):
        assert Problem.from_prompt(problem.prompt) == problem


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "go 15 to 8 need -7 with +7 -4 -1",
        "go 15 to 8 need -7 with +7 -4\n",
        "go 15 to 8 need -7 with +7 -4 -1 +2\n",
        "go 15 to 8 need -7 with 7 -4 -1\n",
        "go -15 to 8 need +23 with +7 -4 -1\n",
        "go 15 to 8 need -7 with +7 -4 -1\nneed",
        "go 15 to 8 need -6 with +7 -4 -1\n",
        "please go 15 to 8 need -7 with +7 -4 -1\n",
    ],
)
def test_text_that_is_no_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match="not a number-walk prompt"):
        Problem.from_prompt(prompt)


@pytest.mark.parametrize("target, moves", GOALS)
def test_distances_are_those_of_brute_force(target, moves):
    found = number_walk.distances(target, moves)
    for value in range(LOWEST, HIGHEST + 1):
        shortest, claimed = brute_force(value, target, moves), found.get(value, math.inf)
        assert claimed == shortest if shortest < math.inf else claimed > SEARCHED


@pytest.mark.parametrize("target, moves", GOALS)
def test_distances_solve_bellmans_equation(target, moves):
    # Its solution is unique because a move costs 1, so this also holds what is beyond the brute force.
    found = number_walk.distances(target, moves)
    assert set(found) <= set(range(LOWEST, HIGHEST + 1)) and found[target] == 0
    for value in set(range(LOWEST, HIGHEST + 1)) - {target}:
        assert found.get(value, math.inf) == 1 + min(found.get(value + move, math.inf) for move in moves)


def test_some_values_cannot_reach_an_even_target_by_even_moves():
    assert set(number_walk.distances(60, (12, -4, 2))) == set(range(0, 61, 2))


@pytest.mark.parametrize("target, moves", GOALS)
def test_a_good_move_is_one_after_which_brute_force_needs_fewer(target, moves):
    shortest = {value: brute_force(value, target, moves) for value in range(LOWEST, HIGHEST + 1)}
    judged = set()
    for value in range(LOWEST, HIGHEST + 1):
        if shortest[value] == math.inf and value in number_walk.distances(target, moves):
            continue  # reachable, but by more moves than the brute force tries
        for move in moves:
            nearer = shortest.get(value + move, math.inf) < shortest[value]
            assert number_walk.is_good(Problem(0, target, moves), value, move) == nearer
            judged.add(nearer)
    assert judged == {True, False}


def test_splits_share_no_problem_whatever_the_order_of_the_moves():
    # As many as it takes for about a dozen common ones if the splits were drawn from one pool.
    drawn = {"train": take("train", 2500) + take("train", 2500, seed=1), "dev": take("dev", 400)}
    drawn["test"] = take("test", 400)
    unordered = {split: {(p.start, p.target, frozenset(p.moves)) for p in ps} for split, ps in drawn.items()}
    for one, other in itertools.combinations(unordered.values(), 2):
        assert not one & other


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_naming_the_moves_in_another_order_does_not_change_the_split(split):
    for problem in take(split, 40):
        for moves in itertools.permutations(problem.moves):
            assert number_walk.split_of(Problem(problem.start, problem.target, moves)) == split


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_problems_are_distinct_and_take_two_to_four_moves(split):
    drawn = take(split, 60)
    assert len(set(drawn)) == len(drawn)
    needed = [brute_force(p.start, p.target, p.moves, longest=4) for p in drawn]
    assert set(needed) == {2, 3, 4}


def test_problems_repeat_for_the_same_seed_only():
    assert take("train", 20, seed=3) == take("train", 20, seed=3)
    assert take("train", 20, seed=3) != take("train", 20, seed=4)


def demonstrations(count):
    rng = random.Random(7)
    return [(p, number_walk.demonstration(p, rng)) for p in take("train", count, seed=2)]


def test_demonstrations_say_what_a_walk_through_them_finds():
    verdicts = set()
    for problem, text in demonstrations(300):
        words = text.split(" ")
        value, taken = problem.start, []
        while words[0] == "take":
            _, move, _, need = words[:4]
            assert words[2] == "need" and value != problem.target
            assert int(move) in problem.moves and move[0] in "+-"
            taken.append(move)
            value += int(move)
            assert LOWEST <= value <= HIGHEST
            assert int(need) == problem.target - value and (need[0] in "+-" or need == "0")
            words = words[4:]
        assert len(taken) <= 6
        assert words[0] == ("yes" if value == problem.target else "no")
        assert value == problem.target or len(taken) == 6
        assert words[1:] == ["so", f"\\boxed{{{problem.start}{''.join(taken)}}}"]
        verdicts.add(words[0])
    assert verdicts == {"yes", "no"}


def test_demonstrations_box_an_expression_of_what_was_given():
    for problem, text in demonstrations(100):
        expression = re.fullmatch(r".* so \\boxed\{(.*)\}", text)[1]
        assert number_walk.uses_what_was_given(problem, expression)
        assert (sum(map(int, re.findall(r"[+-]?\d+", expression))) == problem.target) == (" yes " in text)


@pytest.mark.parametrize(
    "expression, right",
    [
        ("15-4-1-1-1", True),
        ("15-1-4-1-1", True),
        ("15+7-4-4-4-1-1", True),
        ("15-4-4-4-1-1-1", True),  # six moves, and 0 is a value
        ("15+7", True),  # not at the target, which is not this function's to judge
        ("15", True),
        ("8", False),
        ("8+7-4-1-1-1", False),
        ("14-4-1-1", False),
        ("7+1", False),
        ("15-7", False),
        ("15+4-4-4-1-1-1", False),
        ("15-4-1-1-1-1-1-1", False),
        ("15-1-1-1-1-1-1-1", False),  # right sum, seven moves
        ("15-4-4-4-4", False),
        ("15-4-4-4-4+7", False),  # outside on the way only
        ("15+7+7+7+7+7+7+7", False),
        ("15 -4-1-1-1", False),
        ("15-4-1-1-1 ", False),
        (" 15-4-1-1-1", False),
        ("15-4-1-1-1\n", False),
        ("15-4-1-1-1=8", False),
        ("8=15-4-1-1-1", False),
        ("15-(4)-1-1-1", False),
        ("15-4*1-1-1-1", False),
        ("15-4.0-1-1-1", False),
        ("15--4", False),
        ("15-", False),
        ("+15-4-1-1-1", False),
        ("-15+7", False),
        ("", False),
        (" ", False),
        ("need -7 take -4", False),
    ],
)
def test_an_expression_has_to_use_what_was_given(expression, right):
    assert number_walk.uses_what_was_given(EXAMPLE, expression) == right


def test_the_highest_value_is_still_inside():
    problem = Problem(39, 60, (7, -4, -1))
    assert number_walk.uses_what_was_given(problem, "39+7+7+7")
    assert not number_walk.uses_what_was_given(problem, "39+7+7+7+7-4-4")
    assert not number_walk.uses_what_was_given(Problem(40, 8, (7, -4, 1)), "40+7+7+7-4+7")


@pytest.mark.parametrize(
    "response, expected",
    [
        # The target 8 is 4 moves from 15, 3 from 11 and 14, 5 from 22, 4 from 18, 3 from 17.
        ("need -7 take -4 need -3 take -1 need -2 take -1 need -1 take -1 need 0 yes so \\boxed{15-4-1-1-1}", (4, 4)),
        ("need -7 take +7 need -14 take -4 need -10 take -1", (2, 3)),
        # What the text says is needed is wrong; the walk is at 15 all the same, then at 14 and 21 (6 from the target).
        ("need +7 take -1 need +7 take +7", (1, 2)),
        # -7 leads to the target but is no move of this problem; from the target no move leads nearer.
        ("need -7 take -7 need 0 take -1", (0, 2)),
        # At 11, 7 and 3 it is 3, 4 and 3 moves from the target; -1 is outside, so neither move across is good.
        ("take -4 take -4 take -4 take -4 take +7", (2, 5)),
        ("take 7 takes +7 take+7 take", (0, 0)),
        ("so \\boxed{8}", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_good_moves_of_hand_worked_responses(response, expected):
    assert number_walk.count_good_moves(EXAMPLE, response) == expected


def test_good_moves_of_demonstrations_are_those_of_brute_force():
    counted = 0
    for problem, text in demonstrations(40):
        moves = [int(m) for m in re.findall(r"take ([+-]\d+)", text)]
        needed = [brute_force(value, problem.target, problem.moves, longest=5) for value in walk(problem.start, moves)]
        if math.inf in needed:
            continue  # the walker strayed further than the search goes
        good = sum(after < before for before, after in itertools.pairwise(needed))
        assert number_walk.count_good_moves(problem, text) == (good, len(moves))
        counted += 1
    assert counted > 10


def test_every_text_of_the_task_survives_the_tokenizer():
    tokenizer = build_tokenizer()
    texts = [p.prompt + text for p, text in demonstrations(400)]
    texts += [text for _, text in demonstrations(50)] + [p.prompt for s in ("dev", "test") for p in take(s, 50)]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id in tokenizer("need 61")["input_ids"]

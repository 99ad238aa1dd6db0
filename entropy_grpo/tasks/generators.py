"""Ways in which answers to each of reasoning-gym's generators are checked, and the generators that are refused.

Many of the package's own scorers evaluate an answer as Python, or score an answer that is wrong 1.0. An answer is
therefore checked here (`checks`). The package's scorer serves only generators whose problems have several right
answers, and only if it withstands the wrong and hostile answers of tests/test_gym.py.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from . import checks
from .checks import Check

PACKAGE, LICENCE = "reasoning-gym", "Apache-2.0"
SCORER = "scorer"  # the package's own

CHECKS: dict[str, tuple[str, ...]] = {
    "text": tuple(
        "ab acre arc_1d arc_agi base_conversion bf binary_matrix bitwise_arithmetic caesar_cipher "
        "calendar_arithmetic circuit_logic color_cube_rotation course_schedule emoji_mystery family_relationships "
        "figlet_font futoshiki game_of_life_halting letter_jumble mahjong_puzzle manipulate_matrix "
        "mini_sudoku modulo_grid needle_haystack path_star prime_factorization rearc rotate_matrix "
        "sentence_reordering spell_backward spiral_matrix string_insertion string_manipulation string_splitting "
        "string_synthesis sudoku syllogism tsumego word_sequence_reversal word_sorting "
        "zebra_puzzles".split()
    ),
    "numbers": tuple(
        "aiw basic_arithmetic binary_alternation chain_sum count_bits count_primes decimal_arithmetic "
        "decimal_chain_sum dice gcd gsm_symbolic largest_island lcm leg_counting letter_counting maze "
        "number_filtering number_format number_sequence number_sorting products "
        "rectangle_count rotten_oranges self_reference simple_equations simple_geometry".split()
    ),
    "numbers_in_any_order": ("polynomial_equations",),
    "rounded_numbers": ("advanced_geometry",),
    "same_json": ("game_of_life",),
    "listed": ("n_queens",),
    "expression": ("countdown", "puzzle24"),
    SCORER: tuple("cryptarithm group_anagrams jugs palindrome_generation shortest_path".split()),
}
BY_GENERATOR = {generator: check for check, generators in CHECKS.items() for generator in generators}
OWN: dict[str, Check] = {
    "text": checks.text,
    "numbers": checks.numbers,
    "numbers_in_any_order": checks.numbers_in_any_order,
    "rounded_numbers": checks.rounded_numbers,
    "same_json": checks.same_json,
    "listed": checks.listed,
    "expression": checks.expression,
}

_EXECUTES = "its scorer evaluates the answer as code, and the answer may have many forms"
_NO_REFERENCE = "its problems have no reference answer that its scorer could be tested with"
_BY_PROCESS = "equal seeds give other problems in another process"
REFUSED = {
    "boxnet": _NO_REFERENCE,
    "codeio": "it runs programs from a data file to make its problems",
    "coin_flip": "its references are rounded, and its scorer takes 0 for every small probability",
    "complex_arithmetic": "its scorer takes NaN for right",
    "composite": "it has no problems of its own: join generators with +",
    "fraction_simplification": "its scorer reads the first fraction of a text and ignores all else",
    "graph_color": _NO_REFERENCE,
    "intermediate_integration": _EXECUTES,
    "isomorphic_strings": _BY_PROCESS,
    "kakurasu": "its puzzles may have several solutions, and its scorer ignores all but the digits of a text",
    "knight_swap": _BY_PROCESS,
    "knights_knaves": "its scorer ignores text around the claims, so that their negation is right",
    "list_functions": _BY_PROCESS,
    "palindrome_partitioning": "its scorer ignores repeated partitions",
    "polynomial_multiplication": _EXECUTES,
    "pool_matrix": "it draws from NumPy's global generator, on which a training may depend",
    "power_function": "its references have more digits than the question asks for",
    "propositional_logic": _NO_REFERENCE,
    "quantum_lock": "its scorer reads every letter A, B and C of a text as a button",
    "ransom_note": _BY_PROCESS,
    "rubiks_cube": _NO_REFERENCE,
    "rush_hour": _NO_REFERENCE,
    "simple_integration": _EXECUTES,
    "sokoban": "its scorer reads every letter of a text as a move",
    "survo": "its puzzles may have several solutions, of which its scorer knows one",
    "time_intervals": "its references leave out the time of day where the date has a weekday in brackets",
    "tower_of_hanoi": "its scorer ignores text around the moves",
    "word_ladder": _BY_PROCESS,
}


def _siblings(question: str, metadata: Mapping[str, Any]) -> list[Any]:
    """Return a person and her numbers of siblings in any order, or the words of a question of another kind."""
    words = question.split()
    return [words[0], *sorted(re.findall(r"\d+ \w+", question))] if metadata["task_type"] == "siblings" else words


def _dates(question: str, metadata: Mapping[str, Any]) -> list[Any]:
    """Return the dates of a question about the calendar.

    Metadata lack the weekday that is counted, and have a year where the question has none.
    """
    if metadata["task"] == "weekday_of_date_from_first_date":
        return [metadata["task"], metadata["first_day"], metadata["target_date"][len("2000-") :]]
    keys = ("task", "year", "month", "ordinal", "weekday", "start_date", "offset_days", "target_date", "end_date")
    counted = sorted(re.findall("[A-Z][a-z]+day", question)) if metadata["task"] == "count_days" else []
    return [metadata[key] for key in keys if key in metadata] + counted


def _of_x(text: str, metadata: Mapping[str, Any]) -> str:
    """Return an equation with the unknown x."""
    return text.replace(metadata["variable"], "x")


# What determines a problem that a generator words in several ways, from the question and the metadata.
FACTS: dict[str, Callable[[str, Mapping[str, Any]], list[Any]]] = {
    "advanced_geometry": lambda _, metadata: [metadata[key] for key in ("task_type", "A", "B", "C")],
    "aiw": _siblings,
    "basic_arithmetic": lambda _, metadata: ["".join(metadata["expression"].split())],
    "bf": lambda _, metadata: [metadata["bf_program"]],
    "calendar_arithmetic": _dates,
    "color_cube_rotation": lambda _, metadata: [
        metadata[key] for key in ("initial_state", "rotations", "target_side")
    ],
    "countdown": lambda _, metadata: [sorted(metadata["numbers"]), metadata["target"]],
    "family_relationships": lambda question, metadata: [
        *(question.rpartition("\n\n")[0], metadata["person1"], metadata["person2"])
    ],
    "figlet_font": lambda question, _: [question.partition("\n\n")[2]],
    "polynomial_equations": lambda _, metadata: [_of_x(metadata["polynomial_expr"], metadata)],
    "puzzle24": lambda _, metadata: [sorted(metadata["numbers"])],
    "simple_equations": lambda _, metadata: [_of_x(metadata["equation"], metadata)],
    "simple_geometry": lambda _, metadata: [metadata["known_angles"]],
    "tsumego": lambda _, metadata: [metadata["board"]],
}


# Puzzles of ARC that share a pair of grids, up to turns and colours, with another puzzle.
TWINS = {"070dd51e": "40853293", "44f52bb0": "27a28665", "c9e6f938": "8be77c9e", "caa06a1f": "50a16a69"}


def _puzzle(_: str, metadata: Mapping[str, Any]) -> list[Any]:
    """Return the name of a puzzle of ARC, which the generators turn, mirror, recolour or fill anew."""
    return [TWINS.get(metadata["task_id"], metadata["task_id"])]


def _quantities(_: str, metadata: Mapping[str, Any]) -> list[Any]:
    """Return the names of a template's variables, which tell the template, and the values that are numbers."""
    return [
        f"{name}={value}" if isinstance(value, (int, float)) else name
        for name, value in sorted(metadata["variables"].items())
    ]


# What problems have in common that differ only in names, colours, turns or grids. All of them are in one split.
FAMILIES: dict[str, Callable[[str, Mapping[str, Any]], list[Any]]] = {
    "aiw": lambda question, metadata: [metadata["task_type"], *sorted(re.findall(r"\d+ \w+", question))],
    "arc_agi": _puzzle,
    "gsm_symbolic": _quantities,
    "rearc": _puzzle,
}


def content(generator: str, entry: Mapping[str, Any]) -> str:
    """Return the text that identifies a problem in every wording.

    Args:
        entry: the package's problem, with `question`, `answer` and `metadata`.
    """
    facts = FACTS[generator](entry["question"], entry["metadata"]) if generator in FACTS else entry["question"].split()
    return _joined(generator, facts)


def family(generator: str, entry: Mapping[str, Any]) -> str | None:
    """Return the text that a problem shares with its variants, which decides its split; None for its content."""
    if generator not in FAMILIES:
        return None
    return _joined(generator, FAMILIES[generator](entry["question"], entry["metadata"]))


def _joined(generator: str, facts: list[Any]) -> str:
    return " ".join([generator, *map(str, facts)])


def item_of(generator: str, entry: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Dictionary that the check of a problem's answers reads, in JSON's types.

    Args:
        entry: the package's problem, with `answer` and `metadata`.
        options: options of the generator that are set, for the package's scorer.
    """
    item, metadata = {"generator": generator, "answer": entry["answer"]}, entry["metadata"]
    check = BY_GENERATOR[generator]
    if check == "expression":
        item |= {"numbers": metadata["numbers"], "target": metadata.get("target", 24)}
    elif check == "listed":
        item |= {"valid_answers": metadata["valid_answers"]}
    elif check == SCORER:
        item |= {"options": dict(options), "metadata": metadata}
    return item

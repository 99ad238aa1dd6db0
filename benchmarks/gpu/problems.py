"""Word problems of two or three sentences, told step by step, for a small pretrained chat model.

    Tom has 8 apples. Ben gives him 4. He sees 3. He loses 5. How many apples does Tom have?

    Tom starts with 8 apples.
    Ben gives him 4, so we add: 8 + 4 = 12.
    He sees 3, so nothing changes: 12.
    He loses 5, so we subtract: 12 - 5 = 7.
    Answer: 7

A sentence adds, subtracts or changes nothing, so that a solution has to decide before it calculates. The sentences and
the decisions are those of `entropy_grpo.tasks.word_stories`. Two examples precede every problem, in the same chat. No
two problems have the same numbers and sentences, so that the parts of a split share no content.
"""

import random
from typing import Any

from entropy_grpo.tasks.word_stories import (
    ADD,
    KINDS,
    NOTHING,
    PRONOUNS,
    SENTENCES,
    SUBTRACT,
    THINGS,
    Problem,
    Sentence,
)

LENGTHS = (2, 3)
STARTS = range(5, 30)
NUMBERS = range(2, 10)
DECIDED = {
    ADD: "so we add: {} + {} = {}",
    SUBTRACT: "so we subtract: {} - {} = {}",
    NOTHING: "so nothing changes: {2}",
}
EXAMPLES = (
    Problem(
        "tom",
        "apples",
        8,
        (
            Sentence("{other} gives {him} {n}", 4, other="ben"),
            Sentence("{he} sees {n}", 3),
            Sentence("{he} loses {n}", 5),
        ),
    ),
    Problem(
        "mia",
        "coins",
        20,
        (
            Sentence("{he} sells {n}", 6),
            Sentence("{he} finds {n}", 2),
            Sentence("{other} loses {n}", 7, other="lea"),
            Sentence("{he} buys {n}", 3),
        ),
    ),
)


def _told(sentence: Sentence, person: str) -> str:
    """A sentence as English has it, without its full stop."""
    text = sentence.text(person)
    for name in PRONOUNS:
        text = text.replace(name, name.capitalize())
    return text[0].upper() + text[1:]


def question(problem: Problem) -> str:
    """Return a problem in the user's words."""
    name, things = problem.person.capitalize(), problem.things
    story = ". ".join(_told(sentence, problem.person) for sentence in problem.sentences)
    return f"{name} has {problem.start} {things}. {story}. How many {things} does {name} have?"


def solution(problem: Problem) -> str:
    """Return the decisions, the calculation and the answer, in the form of the examples."""
    lines = [f"{problem.person.capitalize()} starts with {problem.start} {problem.things}."]
    for sentence, before, after in zip(problem.sentences, problem.counts, problem.counts[1:], strict=False):
        decision = DECIDED[sentence.kind].format(before, sentence.number, after)
        lines.append(f"{_told(sentence, problem.person)}, {decision}.")
    return "\n".join([*lines, f"Answer: {problem.counts[-1]}"])


def _draw(rng: random.Random) -> Problem:
    """A random problem. No name and no thing occurs twice."""
    person, *others = rng.sample(list(PRONOUNS), 1 + max(LENGTHS))
    things, *items = rng.sample(THINGS, 1 + max(LENGTHS))
    sentences = []
    for other, item in zip(others[: rng.choice(LENGTHS)], items, strict=False):
        form = rng.choice(SENTENCES[rng.choice(KINDS)])
        named = (other if "{other}" in form else "", item if "{items}" in form else "")
        sentences.append(Sentence(form, rng.choice(NUMBERS), *named))
    return Problem(person, things, rng.choice(STARTS), tuple(sentences))


def _content(problem: Problem) -> tuple[int, tuple[tuple[str, int], ...]]:
    """Start, sentences and numbers of a problem, without names and things."""
    return problem.start, tuple((sentence.form, sentence.number) for sentence in problem.sentences)


def problems(count: int, seed: int) -> list[dict[str, Any]]:
    """Return problems with a chat as `prompt` and the last count as `solution`. No count is negative."""
    chat = []
    for example in EXAMPLES:
        chat.append({"role": "user", "content": question(example)})
        chat.append({"role": "assistant", "content": solution(example)})
    rng = random.Random(f"word-problems-{seed}")
    seen = {_content(example) for example in EXAMPLES}
    rows = []
    while len(rows) < count:
        problem = _draw(rng)
        if min(problem.counts) >= 0 and _content(problem) not in seen:
            seen.add(_content(problem))
            prompt = [*chat, {"role": "user", "content": question(problem)}]
            rows.append({"prompt": prompt, "solution": str(problem.counts[-1])})
    return rows

"""Word stories: decide what each sentence does to a count, thinking aloud, and box the last count.

A problem reads `tom has 8 coins . ben gives him 4 . he sees 3 . how many coins has tom ?`, a response

    start with 8 . then ben gives him 4 so add 4 to 8 and get 12 . next he sees 3 hence take 3 from 12 which is 9 .
    wait stay at 12 . so the answer is \\boxed{12}

(in one line). A sentence adds, subtracts or changes nothing. The word that decides which is a fork, and so are the
connectives and `wait`, which withdraws a decision and is followed by another. What is quoted, calculated and
punctuated follows from them. Whether a decision is right is known exactly: a direct measure of choosing, beside the
accuracy of the answer.

Pure functions of their arguments; no torch.
"""

import itertools
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

NAME = "word_stories"
LENGTHS = (2, 3)  # sentences of a story
STARTS = range(2, 10)
NUMBERS = range(2, 6)
VALUES = range(0, 13)
PRONOUNS = dict.fromkeys(("tom", "ben", "sam", "max"), ("he", "him"))
PRONOUNS |= dict.fromkeys(("ann", "mia", "eve", "lea"), ("she", "her"))
THINGS = ("apples", "books", "coins", "pens", "cards", "eggs", "shells", "stamps")

ADD, SUBTRACT, NOTHING = KINDS = ("add", "subtract", "nothing")
# Sentences by what they do to the count. `{he}` and `{him}` are the person who counts, `{other}` is somebody else, and
# `{items}` are things that are not counted.
SENTENCES = {
    ADD: ("{he} finds {n}", "{he} buys {n}", "{he} wins {n}", "{other} gives {him} {n}"),
    SUBTRACT: ("{he} loses {n}", "{he} sells {n}", "{he} drops {n}", "{he} gives {other} {n}"),
    NOTHING: ("{he} sees {n}", "{he} paints {n}", "{other} finds {n}", "{other} loses {n}", "{he} buys {n} {items}"),
}
MISREAD = ("{other} finds {n}", "{other} loses {n}", "{he} buys {n} {items}")
KIND_OF = {form: kind for kind, forms in SENTENCES.items() for form in forms}

# Probability with which a demonstration decides rightly; otherwise it decides at random. Low, so that the cold start
# knows the form of a solution but has to learn to decide. About the `MISREAD` sentences demonstrations decide at
# random, so that the cold start's most probable decision may be wrong there.
RIGHT_SHARE = 0.5
# Probabilities with which a demonstration withdraws a wrong and a right decision.
WAIT_AFTER_WRONG, WAIT_AFTER_RIGHT = 0.3, 0.03

OPENINGS = ("start with", "begin with")
CONNECTIVES = ("then", "next", "now", "after that")
REASONS = ("so", "hence", "thus")
OPERATIONS = {
    ADD: ("add {n} to {value}", "join {n} to {value}"),
    SUBTRACT: ("take {n} from {value}", "subtract {n} from {value}"),
    NOTHING: ("stay at {value}", "remain at {value}"),
}
RESULTS = ("and get", "that makes", "which is")
ENDINGS = ("so the answer is", "in the end there are", "therefore we get")
WAIT = "wait"

_DECIDES = {form.split()[0]: kind for kind, forms in OPERATIONS.items() for form in forms}
_DECISION = re.compile(rf"\b({'|'.join([WAIT, *_DECIDES])})\b")
# Python refuses to read integers of thousands of digits.
_NUMBER = re.compile(r"[0-9]{1,9}")
_PROMPT = re.compile(r"([a-z]+) has ([0-9]{1,9}) ([a-z]+) \. (.+) \. how many ([a-z]+) has ([a-z]+) \?\n")


def change(kind: str, number: int) -> int:
    """The number that a decision adds to the count."""
    return {ADD: number, SUBTRACT: -number, NOTHING: 0}[kind]


@dataclass(frozen=True)
class Sentence:
    """A sentence of a story: its form, its number, and the names that the form asks for."""

    form: str
    number: int
    other: str = ""
    items: str = ""

    @property
    def kind(self) -> str:
        """The right decision about the sentence."""
        return KIND_OF[self.form]

    def text(self, person: str) -> str:
        """The sentence in a story of `person`."""
        he, him = PRONOUNS[person]
        return self.form.format(he=he, him=him, n=self.number, other=self.other, items=self.items)

    @classmethod
    def from_text(cls, text: str, person: str) -> "Sentence":
        """Read a sentence back from a story of `person`; `ValueError` if it is none."""
        he, him = PRONOUNS[person]
        names = {he: "{he}", him: "{him}"} | dict.fromkeys(PRONOUNS, "{other}") | dict.fromkeys(THINGS, "{items}")
        words = text.split(" ")
        form = " ".join("{n}" if _NUMBER.fullmatch(word) else names.get(word, word) for word in words)
        if form not in KIND_OF or person in words:
            raise ValueError(f"not in a prompt of a word story: {text!r}")
        found = dict(zip(form.split(" "), words, strict=True))
        return cls(form, int(found["{n}"]), found.get("{other}", ""), found.get("{items}", ""))


@dataclass(frozen=True)
class Problem:
    """A person, the things that the person counts, how many they are at first, and what happens."""

    person: str
    things: str
    start: int
    sentences: tuple[Sentence, ...]

    @property
    def prompt(self) -> str:
        story = " . ".join(sentence.text(self.person) for sentence in self.sentences)
        opening = f"{self.person} has {self.start} {self.things}"
        return f"{opening} . {story} . how many {self.things} has {self.person} ?\n"

    @property
    def counts(self) -> list[int]:
        """The count at first and after each sentence."""
        changes = [change(sentence.kind, sentence.number) for sentence in self.sentences]
        return list(itertools.accumulate(changes, initial=self.start))

    @classmethod
    def from_prompt(cls, prompt: str) -> "Problem":
        """Read a problem back from its prompt; `ValueError` if the text is not one."""
        match = _PROMPT.fullmatch(prompt)
        if match is None or match[1] not in PRONOUNS or (match[3], match[1]) != match.group(5, 6):
            raise ValueError(f"not a prompt of a word story: {prompt!r}")
        person, start, things, story = match.group(1, 2, 3, 4)
        sentences = tuple(Sentence.from_text(text, person) for text in story.split(" . "))
        if things in {sentence.items for sentence in sentences}:
            raise ValueError(f"not a prompt of a word story, its items are the things counted: {prompt!r}")
        return cls(person, things, int(start), sentences)


def split_of(problem: Problem) -> str:
    """The split a problem belongs to, from a checksum of it: 80% train, 10% dev, 10% test, disjoint by construction.

    Names do not count: the same story of somebody else, or about other things, is in the same split.
    """
    events = [sentence.form.replace("{n}", str(sentence.number)) for sentence in problem.sentences]
    return {0: "test", 1: "dev"}.get(zlib.crc32(" . ".join([str(problem.start), *events]).encode()) % 10, "train")


def draw(rng: random.Random) -> Problem:
    """A random problem, which may leave `VALUES` or change nothing."""
    person, *others = rng.sample(list(PRONOUNS), 1 + max(LENGTHS))
    things, *items = rng.sample(THINGS, 1 + max(LENGTHS))
    sentences = []
    for other, item in itertools.islice(zip(others, items, strict=True), rng.choice(LENGTHS)):
        form = rng.choice(SENTENCES[rng.choice(KINDS)])
        named = (other if "{other}" in form else "", item if "{items}" in form else "")
        sentences.append(Sentence(form, rng.choice(NUMBERS), *named))
    return Problem(person, things, rng.choice(STARTS), tuple(sentences))


def problems(split: str, seed: int) -> Iterator[Problem]:
    """An endless stream of distinct problems of one split, whose counts stay in `VALUES` and change."""
    rng = random.Random(f"{NAME}-{split}-{seed}")
    seen = set()
    while True:
        problem = draw(rng)
        counts = set(problem.counts)
        if len(counts) > 1 and counts <= set(VALUES) and problem not in seen and split_of(problem) == split:
            seen.add(problem)
            yield problem


def decide(sentence: Sentence, count: int, rng: random.Random) -> str:
    """A decision of a demonstration; no decision leaves `VALUES`."""
    legal = [kind for kind in KINDS if count + change(kind, sentence.number) in VALUES]
    knows = sentence.kind in legal and sentence.form not in MISREAD and rng.random() < RIGHT_SHARE
    return sentence.kind if knows else rng.choice(legal)


def spoken(kind: str, number: int, count: int, rng: random.Random) -> str:
    """A decision and its result in words."""
    operation = rng.choice(OPERATIONS[kind]).format(n=number, value=count)
    return operation if kind == NOTHING else f"{operation} {rng.choice(RESULTS)} {count + change(kind, number)}"


def demonstration(problem: Problem, rng: random.Random) -> str:
    """A response in the task's form by a reader who decides well only `RIGHT_SHARE` of the time."""
    count = problem.start
    parts = [f"{rng.choice(OPENINGS)} {count} ."]
    for sentence in problem.sentences:
        kind = decide(sentence, count, rng)
        parts += [rng.choice(CONNECTIVES), sentence.text(problem.person), rng.choice(REASONS)]
        parts += [spoken(kind, sentence.number, count, rng), "."]
        if rng.random() < (WAIT_AFTER_RIGHT if kind == sentence.kind else WAIT_AFTER_WRONG):
            kind = decide(sentence, count, rng)
            parts += [WAIT, spoken(kind, sentence.number, count, rng), "."]
        count += change(kind, sentence.number)
    return " ".join([*parts, rng.choice(ENDINGS), f"\\boxed{{{count}}}"])


def count_right_decisions(problem: Problem, response: str) -> tuple[int, int]:
    """(right decisions, decisions) of a response, whose k-th decision is about the k-th sentence.

    `wait` withdraws the last decision. A sentence without a decision, and a decision without a sentence, is wrong.
    """
    decided: list[str] = []
    for word in _DECISION.findall(response):
        if word != WAIT:
            decided.append(_DECIDES[word])
        elif decided:
            decided.pop()
    kinds = [sentence.kind for sentence in problem.sentences]
    return sum(a == b for a, b in zip(decided, kinds, strict=False)), max(len(decided), len(kinds))


def words() -> list[str]:
    """Every token of the task's language, each word and each number one token."""
    forms = [*KIND_OF, *OPENINGS, *CONNECTIVES, *REASONS, *itertools.chain(*OPERATIONS.values()), *RESULTS, *ENDINGS]
    spoken = {word for form in forms for word in form.split() if word.isalpha()}
    spoken |= {WAIT, "has", "how", "many", *itertools.chain(*PRONOUNS.values()), *PRONOUNS, *THINGS}
    first = {form.split()[0] for form in OPENINGS} | set(PRONOUNS)
    inside = {" " + word for word in spoken | {str(value) for value in VALUES}}
    return [*sorted(first), *sorted(inside), *map(str, VALUES), " .", " ?", " \\boxed{", "}", "\n"]

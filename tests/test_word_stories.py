"""The word stories against a reader of English that counts coins in a purse, and their cold start."""

import itertools
import random
import re
from collections import Counter

import pytest

from entropy_grpo.tasks import registry, stories, taught, word_stories
from entropy_grpo.tasks.word_stories import Problem, Sentence

TASK = registry.load("embedded:word_stories")
EXAMPLE = "tom has 8 coins . ben gives him 4 . he sees 3 . how many coins has tom ?\n"
GAINS, LOSSES = {"finds", "buys", "wins"}, {"loses", "sells", "drops"}
MEN, WOMEN = {"tom", "ben", "sam", "max"}, {"ann", "mia", "eve", "lea"}


def take(split, count, seed=0):
    return list(itertools.islice(word_stories.problems(split, seed), count))


def read(prompt):
    """Every person's purse after each sentence, by the verbs: the counts of the person that the question names."""
    person, things = re.fullmatch(r".* how many (\w+) has (\w+) \?\n", prompt).group(2, 1)
    assert prompt.startswith(f"{person} has ") and f" {things} . " in prompt
    pronouns = {"he", "him"} if person in MEN else {"she", "her"}
    purses, counts = Counter({person: int(prompt.split()[2])}), []
    for sentence in prompt.split(" . ")[1:-1]:
        words = [person if word in pronouns else word for word in sentence.split(" ")]
        assert not {"he", "him", "she", "her"} & set(words) and {words[0]} <= MEN | WOMEN
        if words[1] == "gives":
            giver, _, taker, number = words
            purses[giver] -= int(number)
            purses[taker] += int(number)
        elif len(words) == 3:  # things of another kind are named after the number
            purses[words[0]] += int(words[2]) * ((words[1] in GAINS) - (words[1] in LOSSES))
        counts.append(purses[person])
    return counts


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_the_answer_is_what_a_reader_counts(split):
    for problem in take(split, 300):
        counts = read(problem.prompt)
        assert problem.counts == [problem.start, *counts]
        assert min(counts) >= 0 and max(counts) <= 12 and len({problem.start, *counts}) > 1
    for problem in itertools.islice(TASK.problems(split, 0), 20):
        assert problem.solution == str(read(problem.prompt)[-1])


def test_every_form_of_sentence_occurs_and_kinds_are_about_equally_frequent():
    sentences = [sentence for problem in take("train", 1500) for sentence in problem.sentences]
    assert {sentence.form for sentence in sentences} == set(word_stories.KIND_OF)
    shares = Counter(sentence.kind for sentence in sentences)
    assert all(0.25 < count / len(sentences) < 0.42 for count in shares.values()), shares


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_prompt_and_problem_round_trip(split):
    for problem in take(split, 100):
        assert Problem.from_prompt(problem.prompt) == problem


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        EXAMPLE[:-1],
        EXAMPLE + "start",
        EXAMPLE.replace("tom ?", "ben ?"),
        EXAMPLE.replace("many coins", "many pens"),
        EXAMPLE.replace("tom", "tim"),
        EXAMPLE.replace("8", "eight"),
        EXAMPLE.replace("he sees", "she sees"),
        EXAMPLE.replace("sees 3", "sees"),
        EXAMPLE.replace("gives him", "gives he"),
        EXAMPLE.replace(" . ben gives him 4 . he sees 3", ""),
        EXAMPLE.replace("8", "8" * 5000),
        EXAMPLE.replace("4", "4" * 5000),
        EXAMPLE.replace("sees 3", "buys 3 coins"),
        EXAMPLE.replace("he sees", "tom finds"),
    ],
)
def test_text_that_is_no_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match=r"not (a|in a) prompt of a word story"):
        Problem.from_prompt(prompt)


def test_splits_share_no_story_and_names_do_not_decide_the_split():
    def story(problem):
        return problem.start, tuple((s.form, s.number) for s in problem.sentences)

    drawn = {"train": {*map(story, take("train", 3000))}, "dev": {*map(story, take("dev", 500))}}
    drawn["test"] = {*map(story, take("test", 500, seed=3))}
    assert not any(one & other for one, other in itertools.combinations(drawn.values(), 2))
    problem = Problem.from_prompt(EXAMPLE)
    other = Problem.from_prompt(EXAMPLE.replace("tom", "eve").replace("him", "her").replace(" he ", " she "))
    assert other != problem and word_stories.split_of(other) == word_stories.split_of(problem)


def test_problems_repeat_for_the_same_seed_only_and_are_distinct():
    drawn = take("train", 200, seed=3)
    assert drawn == take("train", 200, seed=3) != take("train", 200, seed=4) and len(set(drawn)) == 200


def demonstrations(count):
    rng = random.Random(7)
    return [(problem, word_stories.demonstration(problem, rng)) for problem in take("train", count, seed=2)]


STEP = re.compile(
    r"(?:then|next|now|after that) (?P<quote>[a-z0-9 ]+) (?:so|hence|thus) (?P<first>[a-z0-9 ]+) \."
    r"(?: wait (?P<second>[a-z0-9 ]+) \.)? "
)


def carried_out(operation, number, count):
    """(the count after an operation in words, what kind it is), its own arithmetic checked."""
    if operation in (f"stay at {count}", f"remain at {count}"):
        return count, 0
    verb, n, word, before, *_, after = operation.split(" ")
    sign = {"add": 1, "join": 1, "take": -1, "subtract": -1}[verb]
    assert (int(n), int(before), word) == (number, count, "to" if sign > 0 else "from")
    assert re.search(r" (and get|that makes|which is) \d+$", operation)
    assert int(after) == count + sign * number and 0 <= int(after) <= 12
    return int(after), sign


def test_demonstrations_say_what_they_calculate_and_count_right_decisions():
    decided = {True: [], False: []}  # whether a decision is right, by whether demonstrations may know it
    waits = 0
    for problem, text in demonstrations(600):
        count, good = problem.start, 0
        opening, _, rest = text.partition(" . ")
        assert opening in (f"start with {count}", f"begin with {count}")
        counts = [problem.start, *read(problem.prompt)]
        for sentence, before, after in zip(problem.prompt.split(" . ")[1:-1], counts, counts[1:], strict=False):
            step = STEP.match(rest)
            assert step["quote"] == sentence
            number, truth = int(re.search(r"\d+", sentence)[0]), (after > before) - (after < before)
            found = [carried_out(o, number, count) for o in (step["first"], step["second"]) if o is not None]
            count, kind = found[-1]
            decided[truth != 0 or " sees " in sentence or " paints " in sentence].append(kind == truth)
            good, waits, rest = good + (kind == truth), waits + len(found) - 1, rest[step.end() :]
        assert re.fullmatch(rf"(so the answer is|in the end there are|therefore we get) \\boxed\{{{count}\}}", rest)
        assert stories.choices({"prompt": problem.prompt, "completion": text}) == (good, len(problem.sentences))
        assert TASK.answer(problem.prompt, text) == str(count)
    # Half and a third of the rest at once; 0.3 of the wrong and 0.03 of the right ones are decided again. Misread
    # sentences: a third at once. A decision that would leave the range of counts is never made.
    known, unknown = decided[True], decided[False]
    assert sum(known) / len(known) == pytest.approx(2 / 3 + 1 / 3 * 0.3 * 2 / 3 - 2 / 3 * 0.03 / 3, abs=0.05)
    assert sum(unknown) / len(unknown) == pytest.approx(1 / 3 + 2 / 3 * 0.3 / 3 - 1 / 3 * 0.03 * 2 / 3, abs=0.08)
    assert 0.1 < waits / (len(known) + len(unknown)) < 0.2


@pytest.mark.parametrize(
    "response, expected",
    [
        ("start with 8 . then ben gives him 4 so add 4 to 8 and get 12 . next he sees 3 so stay at 12 .", (2, 2)),
        ("then join 4 to 8 . now remain at 12", (2, 2)),
        ("then add 4 to 8 . now take 3 from 12", (1, 2)),
        ("then add 4 to 8 . wait stay at 8 . now stay at 8", (1, 2)),
        ("then stay at 8 . wait subtract 4 from 8 . wait add 4 to 8 . now stay at 12", (2, 2)),
        ("wait add 4 to 8 . now stay at 12 wait", (1, 2)),
        ("add 4 to 8", (1, 2)),  # the second sentence is not decided
        ("add 4 to 8 . stay at 12 . stay at 12", (2, 3)),  # there is no third sentence
        ("stay . add", (0, 2)),
        ("so the answer is \\boxed{12}", (0, 2)),
        ("additional mistakes", (0, 2)),
        ("", (0, 2)),
    ],
)
def test_decisions_of_hand_worked_responses(response, expected):
    assert stories.choices({"prompt": EXAMPLE, "completion": response}) == expected


@pytest.mark.parametrize(
    "response, right",
    [
        ("so the answer is \\boxed{12}", True),
        ("\\boxed{3} wait \\boxed{12}", True),
        ("so the answer is \\boxed{11}", False),
        ("\\boxed{12} wait \\boxed{11}", False),
        ("\\boxed{012}", False),
        ("\\boxed{12.0}", False),
        ("\\boxed{8+4}", False),
        ("\\boxed{12", False),
        ("the answer is 12", False),
        ("", False),
    ],
)
def test_an_answer_is_right_digit_by_digit(response, right):
    assert TASK.scores_right(stories.Problem(EXAMPLE, "12"), TASK.answer(EXAMPLE, response)) == right


def test_every_text_of_the_task_survives_the_tokenizer_within_its_limits():
    tokenizer = taught.build_tokenizer(stories.COLD_START)
    rows = stories.demonstrations(1500, 0)
    prompts = [row["prompt"] for row in rows] + [p.prompt for split in ("dev", "test") for p in take(split, 100)]
    for texts, longest in ((prompts, TASK.longest_prompt), ([r["completion"] for r in rows], TASK.max_tokens - 1)):
        for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
            assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text and len(ids) <= longest
    assert tokenizer.unk_token_id in tokenizer("start with 13")["input_ids"]


def test_demonstrations_are_of_training_problems_and_follow_the_seed():
    rows = stories.demonstrations(40, 5)
    assert rows == stories.demonstrations(40, 5) != stories.demonstrations(40, 6)
    assert {word_stories.split_of(Problem.from_prompt(row["prompt"])) for row in rows} == {"train"}
    assert isinstance(Problem.from_prompt(rows[0]["prompt"]).sentences[0], Sentence)

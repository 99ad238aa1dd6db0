"""Tasks of reasoning-gym's generators, which need no Hub: `reasoning_gym:NAME[:OPTION=VALUE...][+NAME...]`.

The options are the fields of the generator's own configuration, except seed and size, and a weight among several
generators: `reasoning_gym:countdown:max_numbers=4:weight=2+chain_sum`. Lists are JSON.

A problem is right or wrong by `generators.CHECKS`. Its solution is JSON with all that the check reads, so that a check
needs neither the generator nor its options.
"""

import dataclasses
import difflib
import json
import random
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from threading import current_thread, main_thread
from typing import Any, NamedTuple, get_type_hints

import pydantic

from ..grading import boxed
from ..registry import installed, nearest
from . import checks, ranges
from .generators import BY_GENERATOR, LICENCE, OWN, PACKAGE, REFUSED, SCORER, content, family, item_of
from .stream import Candidate, Stream, digest
from .task import Problem, Task

PROVIDER = "reasoning_gym"
EXTRA = 'pip install "entropy-grpo[tasks]"'
REWARD, PARTIAL_REWARD = "gym_accuracy", "gym_score"
CHUNK = 500  # problems of one of the package's data sets, whose item i of seed s is item 0 of seed s + i
LONGEST_SECONDS = 30  # of processor time for one problem: with some options a generator never ends
MOST_FAILURES = 50  # consecutive candidates that a generator may fail to make
OF_THE_PACKAGE = ("seed", "size")
_SAFE = re.compile(r"[\w.=+-]{1,80}")
_OUTSIDE = r"(?![^\[\]{}]*[\]}])"  # not within the brackets of a JSON value


class Generator(NamedTuple):
    """A generator with the options that are set, and its weight among several."""

    name: str
    options: dict[str, Any]
    weight: float


def full_name(name: str, options: Mapping[str, Any]) -> str:
    """Return the name of a task with the options of its generators, from a recipe's two settings.

    Args:
        name: `reasoning_gym:NAME` or `reasoning_gym:NAME+NAME...`, perhaps with options already.
        options: of the only generator, or for each of several generators by its name.
    """
    if not options:
        return name
    generators = re.split(r"\+" + _OUTSIDE, name.partition(":")[2])
    names = [generator.partition(":")[0] for generator in generators]
    if len(names) == 1:
        options = {names[0]: options}
    others = [key for key in options if key not in names or not isinstance(options[key], Mapping)]
    if others:
        raise ValueError(
            f"dataset_options has {others[0]}: {options[others[0]]!r}, but dataset_name names several generators: "
            f"give the options of each under its name, such as {names[0]}: {{weight: 2}}."
        )
    joined = [
        ":".join([text, *(f"{key}={json.dumps(value)}" for key, value in sorted(options.get(own, {}).items()))])
        for own, text in zip(names, generators, strict=True)
    ]
    return f"{PROVIDER}:{'+'.join(joined)}"


def _configs() -> dict[str, type]:
    """Return the configuration classes of all generators by name."""
    from reasoning_gym.factory import DATASETS

    return {name: config for name, (_, config) in DATASETS.items()}


def _parse(name: str, setting: str) -> list[Generator]:
    """Return the generators in the name of a task, with checked options."""
    configs = _configs()
    generators: list[Generator] = []
    for part in re.split(r"\+" + _OUTSIDE, name.partition(":")[2]):
        generator, *words = re.split(":" + _OUTSIDE, part)
        subject = f"{setting} is {name!r}"
        if generator not in configs:
            close = difflib.get_close_matches(generator, configs, n=3, cutoff=0.5) or sorted(BY_GENERATOR)
            raise ValueError(f"{subject}: {PACKAGE} has no generator {generator!r}: choose {' or '.join(close)}.")
        if generator not in BY_GENERATOR:
            reason = REFUSED.get(generator, "no check of its answers is known")
            raise ValueError(f"{subject}: {generator} is refused, because {reason}.")
        options = dict(_option(subject, word) for word in words)
        weight = options.pop("weight", 1)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise ValueError(f"{subject}: weight of {generator} is {weight!r}: it must be a number above 0.")
        if generator in (known.name for known in generators):
            raise ValueError(f"{subject}: {generator} is named twice: name it once.")
        generators.append(Generator(generator, _checked(subject, generator, options, configs[generator]), weight))
    return generators


def _option(subject: str, word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"{subject}: {word!r} is no option: write OPTION=VALUE.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def defaults(config: type) -> dict[str, Any]:
    """Return the options of a generator with their defaults."""
    made = config()
    return {
        field.name: getattr(made, field.name)
        for field in dataclasses.fields(config)
        if field.name not in OF_THE_PACKAGE
    }


def _checked(subject: str, generator: str, options: dict[str, Any], config: type) -> dict[str, Any]:
    """Return options in the types of the generator's configuration, which must accept them."""
    known, hints = defaults(config), get_type_hints(config)
    shown = ", ".join(f"{key} ({json.dumps(value, default=str)})" for key, value in known.items())
    for key, value in options.items():
        if key not in known:
            raise ValueError(
                f"{subject}: {generator} has no option {key!r}.{nearest(key, known)} Its options and their defaults: "
                f"{shown}."
            )
        try:
            options[key] = pydantic.TypeAdapter(hints[key]).validate_json(json.dumps(value), strict=True)
        except pydantic.ValidationError as error:
            may_be = _may_be(config, {}, key, known[key])
            raise ValueError(
                f"{subject}: option {key} of {generator} is {value!r}: {error.errors()[0]['msg']}; "
                f"{f'{may_be}, and ' if may_be else ''}its default is {json.dumps(known[key], default=str)}."
            ) from error
    reason = _refusal(config, options)
    if reason is not None:
        given = ", ".join(f"{key} {value!r}" for key, value in options.items())
        # If two options are refused each by itself, no value of one of them is accepted beside the other.
        tried: list[tuple[dict[str, Any], str]] = [(options, key) for key in options]
        tried += [({}, key) for key, value in options.items() if _refusal(config, {key: value}) is not None]
        may_be = next(filter(None, (_may_be(config, others, key, known[key]) for others, key in tried)), None)
        raise ValueError(
            f"{subject}: {generator} refuses {given or 'its defaults'}: {'; '.join(filter(None, (reason, may_be)))}. "
            f"Its options and their defaults: {shown}."
        )
    return options


def _refusal(config: type, options: Mapping[str, Any]) -> str | None:
    """Return why a generator's configuration refuses options, perhaps an empty text; None if it accepts them."""
    try:
        made = config(**options)
        if hasattr(made, "validate"):
            made.validate()
    except (AssertionError, ValueError, TypeError, ArithmeticError) as error:
        return str(error)
    return None


def _may_be(config: type, options: Mapping[str, Any], key: str, default: Any) -> str | None:
    """Return the range of a numeric option beside other options, as a clause; None if there is none."""
    near = [value for value in (default, options.get(key)) if type(value) in (int, float)]
    found = ranges.accepted(lambda value: _refusal(config, {**options, key: value}) is None, near)
    return found and f"{key} may be {found} while the other options stay as they are"


class _Late(BaseException):
    """Error within a generator that takes too long, which it does not catch as an `Exception`."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """End the block with `_Late` after so many seconds of processor time. Only a main thread can be interrupted."""
    if current_thread() is not main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise _Late

    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before or signal.SIG_DFL)


class Candidates:
    """Problems of several generators by number, before they are divided into splits."""

    def __init__(self, generators: list[Generator], seed: int):
        self.generators, self.weights = generators, [generator.weight for generator in generators]
        self.seed, self.failures = seed, 0
        self._chunks: dict[str, tuple[int, Any]] = {}  # the last chunk of each generator

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the package's data sets, which some generators cannot copy to another process."""
        return self.__dict__ | {"_chunks": {}}

    def _entry(self, name: str, options: dict[str, Any], number: int) -> Mapping[str, Any]:
        """Return the package's problem with a number."""
        import reasoning_gym

        chunk, place = divmod(number, CHUNK)
        if self._chunks.get(name, (None,))[0] != chunk:
            made = reasoning_gym.create_dataset(name, seed=self.seed + CHUNK * chunk, size=CHUNK, **options)
            self._chunks[name] = chunk, made
        return self._chunks[name][1][place]

    def __call__(self, number: int) -> Candidate | None:
        """Return the candidate with a number, or None if the generator fails, or its own reference is not right."""
        # The generator makes the problem from the seed `self.seed + number`, which must not choose it, too.
        draw = random.Random(f"generator {self.seed + number}")
        (which,) = draw.choices(range(len(self.generators)), self.weights)
        name, options, _ = self.generators[which]
        try:
            with _limited(LONGEST_SECONDS):
                entry = self._entry(name, options, number)
        except _Late:
            raise ValueError(
                f"dataset_options is {options or 'unset'}, but with it {PACKAGE}'s {name} needs more than "
                f"{LONGEST_SECONDS} seconds for a problem: choose other options."
            ) from None
        except (ValueError, IndexError) as error:
            entry, reason = None, str(error)
        problem = _problem(name, options, entry) if entry else None
        if problem is None:
            self.failures += 1
            if self.failures > MOST_FAILURES:
                reason = "its own references are not right" if entry else reason
                raise ValueError(
                    f"{PACKAGE}'s {name} makes no problems with the options {options or 'by default'} "
                    f"({reason}): choose other options."
                )
            return None
        self.failures = 0
        return Candidate(problem, content(name, entry), family(name, entry))


def _problem(name: str, options: dict[str, Any], entry: Mapping[str, Any]) -> Problem | None:
    """Return the problem of an entry, or None if its own reference is not right."""
    reference = entry["answer"]
    if not isinstance(reference, str) or not reference.strip():
        return None
    problem = Problem(entry["question"].strip(), json.dumps(item_of(name, entry, options), ensure_ascii=False))
    return problem if score(problem, reference) == 1.0 else None


@lru_cache(8)
def _scorer(name: str, options: str) -> Any:
    """Return the package's data set of a generator, whose scorer grades."""
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=0, size=1, **json.loads(options))


def score(problem: Problem, answer: str) -> float:
    """Return the score of an answer from 0.0 to 1.0, as it is or without its LaTeX. Only 1.0 is right."""
    if len(answer) > checks.LONGEST:
        return 0.0
    item = json.loads(problem.solution)
    return max(_score(form, item) for form in {answer, checks.plain(answer)})


def _score(answer: str, item: Mapping[str, Any]) -> float:
    name = item["generator"]
    if BY_GENERATOR[name] != SCORER:
        return OWN[BY_GENERATOR[name]](answer, item)
    try:
        return float(_scorer(name, json.dumps(item["options"])).score_answer(answer, item))
    except Exception:  # of a scorer that reads a model's text and is not ours
        return 0.0


def answer(prompt: str, response: str) -> str | None:
    """Return the content of the last box of a response."""
    return boxed(response)


def _short_name(name: str) -> str:
    """Return the name without its provider, shortened with a digest if a file could not have this name."""
    short = name.partition(":")[2].replace(":", "-").replace('"', "")
    return short if _SAFE.fullmatch(short) else f"{short.partition('-')[0][:40]}-{digest(short) % 2**32:08x}"


# What rewards read, which is the same for all generators and options.
ANY = Task(
    name=PROVIDER,
    problems=lambda split, seed: iter(()),
    reward=REWARD,
    partial_reward=PARTIAL_REWARD,
    answer=answer,
    longest_prompt=None,
    template="boxed",
    score=score,
)


@lru_cache(32)
def load(name: str, setting: str) -> Task:
    """Return the task with a name.

    Raises:
        ValueError: the package is not installed, or the name or an option is wrong.
    """
    if not installed(PROVIDER):
        raise ValueError(f"{setting} is {name!r}, but its package is not installed: {EXTRA}.")
    from importlib.metadata import version

    generators, configs = _parse(name, setting), _configs()

    def stream(split: str, seed: int, keeps: Callable[[Problem], bool] | None = None) -> Stream:
        return Stream(Candidates(generators, digest(f"{split} {seed}") % 2**31), split, keeps)

    def problems(split: str, seed: int) -> Iterator[Problem]:
        return iter(stream(split, seed))

    options = {
        generator.name: defaults(configs[generator.name]) | generator.options | {"weight": generator.weight}
        for generator in generators
    }
    origin = {"package": PACKAGE, "version": version(PACKAGE), "licence": LICENCE}
    origin["options"] = json.loads(json.dumps(options, default=str))
    return dataclasses.replace(ANY, name=_short_name(name), problems=problems, stream=stream, origin=origin)

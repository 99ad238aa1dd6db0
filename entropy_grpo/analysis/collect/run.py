"""`entropy-grpo analyze collect`: collect responses, then run a forward pass of every checkpoint over their tokens."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from ...models import load
from ...monitoring.pieces import piece
from ...runs import files, parquet
from ...runs.weights import has_tokenizer
from . import inputs
from .options import ASKING, Options
from .store import TOKENS, Collection

# Tokens of a part. A killed run loses at most one part of a checkpoint's pass, and a view holds one part in memory.
PART_TOKENS = 65536
GENERATED = "responses"


def named(given: Sequence[str]) -> dict[str, str]:
    """Return the checkpoints by name: the text before `=`, or the end of the path or id.

    Raises:
        ValueError: two checkpoints have the same name, or a name is empty.
    """
    checkpoints: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            path = text
            name = Path(text).name.rpartition(":")[2] if not Path(text).is_dir() else Path(text).resolve().name
        name = name.replace("/", "-")
        if name in checkpoints or not name.strip("."):
            raise ValueError(
                f"against names {text!r}, whose name is empty or taken: give another name, as in NAME={path}."
            )
        checkpoints[name] = path
    return checkpoints


def generate(model: str, benchmarks: Sequence[str], folder: Path, **sampling: Any) -> list[Path]:
    """Answer benchmarks as `entropy-grpo eval` does, without repeating finished responses, and return the files."""
    from ...evaluation import questions, run

    names = [questions.load(name)[0] for name in benchmarks]
    closed = [benchmark.name for benchmark in names if not benchmark.is_open]
    if closed:
        raise ValueError(f"benchmarks names {closed[0]}, whose questions must not be stored in files: choose another.")
    run.run(run.Options(model=model, benchmarks=benchmarks, output=folder, **sampling))
    return [folder / f"{benchmark.name}.parquet" for benchmark in names]


def responses_of(options: Options, model: str) -> list[Path]:
    """Return the files of the responses: the given file, or files that the model's answers are written to."""
    if options.responses is not None:
        return [options.responses]
    names = ("samples", "temperature", "max_tokens", "seed", "dtype", "backend", "tensor_parallel", *ASKING)
    sampling = {name: getattr(options, name) for name in names}
    return generate(model, options.benchmarks, options.output / GENERATED, top_p=1.0, **sampling)


def claim(collection: Collection, options: Options, paths: dict[str, str]) -> None:
    """Store the settings that decide the figures.

    Further checkpoints may be added. The first one stays first.

    Raises:
        ValueError: the folder holds tokens with other settings.
    """
    source = str(options.responses) if options.responses else list(options.benchmarks)
    before = files.read_json(collection.settings) if collection.responses.exists() else {}
    generation = {"samples": options.samples, "max_tokens": options.max_tokens, "seed": options.seed}
    generation |= {name: getattr(options, name) or None for name in ("answered_by", *ASKING)}
    wanted: dict[str, Any] = {
        "responses": source,
        "temperature": options.temperature,
        "dtype": options.dtype,
        **(generation if options.benchmarks else {"sha256": digest(options.responses)}),
    }
    if given := {name: digest(Path(name)) for name in options.benchmarks if Path(name).is_file()}:
        wanted["sha256"] = given
    checkpoints = {name: {"path": path, "weights": load.fingerprint(path)} for name, path in paths.items()}
    known = before.get("checkpoints", {})
    for name in wanted if before else ():
        if before.get(name) != wanted[name]:
            raise ValueError(
                f"output: {collection.path} holds tokens with {name} {before.get(name)!r}, but {wanted[name]!r} is "
                f"requested: name another output folder, or delete {collection.path}."
            )
    for name in known.keys() & checkpoints.keys():
        if known[name] != checkpoints[name]:
            raise ValueError(
                f"output: {collection.path} holds a checkpoint {name!r} with other weights, {known[name]['path']}: "
                f"give another name, as in NAME={paths[name]}."
            )
    if known and next(iter(known)) != next(iter(checkpoints)):
        raise ValueError(
            f"output: {collection.path} holds responses tokenized for {next(iter(known))!r}: name it as the model, "
            "and all others with --against."
        )
    files.write_json(collection.settings, wanted | {"checkpoints": known | checkpoints})


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def token_table(rows: Sequence[files.Row], scores: Any, texts: dict[int, str], checkpoint: str) -> pa.Table:
    """Return the rows of `TOKENS` for some responses. `scores` are those of `scoring.score`."""
    lengths = [len(row["completion_ids"]) for row in rows]
    tokens = [token for row in rows for token in row["completion_ids"]]
    repeated = [(row["id"], row["correct"]) for row, n in zip(rows, lengths, strict=True) for _ in range(n)]
    columns = [
        pa.array([id for id, _ in repeated], pa.int32()),
        pa.array([place for n in lengths for place in range(n)], pa.int32()),
        pa.array(tokens, pa.int32()),
        pa.array([texts[token] for token in tokens], pa.string()).dictionary_encode(),
        *(pa.array([x for one in array for x in one.tolist()], pa.float32()) for array in scores),
        pa.array([correct for _, correct in repeated], pa.bool_()),
        pa.array([checkpoint] * len(tokens), pa.string()).dictionary_encode(),
    ]
    return pa.Table.from_arrays(columns, schema=TOKENS)


def score_checkpoint(collection: Collection, name: str, path: str, options: Options) -> None:
    """Score and write the missing parts of one checkpoint."""
    missing = [i for i in range(collection.num_parts) if not collection.part(name, i).exists()]
    if not missing:
        return
    from .scoring import add_head, score

    model, tokenizer = load.load_model(path, None, options.dtype)
    rows_of_vocabulary = model.get_output_embeddings().weight.shape[0]
    positions = load.positions_of(model.config)
    add_head(model, options.temperature)
    texts: dict[int, str] = {}
    for number in tqdm(missing, desc=name, unit="part"):
        with parquet.opened(collection.responses) as file:
            rows = file.read_row_group(number).to_pylist()
        prompts, completions = ([row[column] for row in rows] for column in ("prompt_ids", "completion_ids"))
        for row, prompt, completion in zip(rows, prompts, completions, strict=True):
            if max([*prompt, *completion]) >= rows_of_vocabulary:
                raise ValueError(
                    f"model {path} has {rows_of_vocabulary} token ids, but response {row['id']} has a higher id: name "
                    "the model that wrote the responses."
                )
            if positions is not None and len(prompt) + len(completion) > positions:
                raise ValueError(
                    f"model {path} has {positions} positions, but prompt and response {row['id']} have "
                    f"{len(prompt) + len(completion)} tokens: leave it out."
                )
        scores = score(model, prompts, completions, options.batch_tokens)
        for token in {token for completion in completions for token in completion} - texts.keys():
            texts[token] = piece(tokenizer, token)
        parquet.write(collection.part(name, number), token_table(rows, scores, texts, name))


def same_vocabulary(paths: dict[str, str]) -> Any:
    """Return the tokenizer of the first checkpoint.

    Raises:
        ValueError: the tokenizer of a checkpoint has another vocabulary than the first.
    """
    first, *others = paths.items()
    tokenizer = load.load_tokenizer(first[1], setting=first[0])
    for name, path in others:
        if Path(path).is_dir() and not has_tokenizer(path):
            continue
        if load.load_tokenizer(path, setting=name).get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"against names {name}, which has another vocabulary than {first[0]}: leave it out.")
    return tokenizer


def run(options: Options) -> Collection:
    """Collect missing responses and scores.

    Raises:
        ValueError: an option is invalid. The message is one sentence.
    """
    collection = Collection(options.output)
    if options.responses is not None and not options.responses.is_file():
        raise ValueError(f"responses is {str(options.responses)!r}: there is no such file.")
    from ...evaluation import questions

    given = named([options.model, *options.against])
    questions.check_names(options.benchmarks)
    paths = {name: load.resolve(path) for name, path in given.items()}
    answering = options.answered_by or next(iter(given))
    if answering not in given:
        raise ValueError(f"answered_by is {answering!r}, which is none of the checkpoints: {', '.join(given)}.")
    tokenizer = same_vocabulary(paths)
    claim(collection, options, paths)
    if not collection.responses.exists():
        placed = (one for file in responses_of(options, given[answering]) for one in inputs.read(file))
        inputs.write(collection, inputs.tokenized(placed, tokenizer), PART_TOKENS)
    for name, path in paths.items():
        score_checkpoint(collection, name, path, options)
    return collection

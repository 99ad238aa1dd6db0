"""Files as users bring them: each is read in the same way by training, evaluation and analysis, or refused alike."""

import datetime
import json
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoConfig

from entropy_grpo.analysis.collect import inputs
from entropy_grpo.config import recipe
from entropy_grpo.config.run import RunConfig
from entropy_grpo.config.sft import SFTRunConfig
from entropy_grpo.data.problems import evaluation_questions
from entropy_grpo.data.rows import iterate
from entropy_grpo.evaluation import questions
from entropy_grpo.evaluation.backends.base import check_length
from entropy_grpo.evaluation.options import names_in
from entropy_grpo.models.load import check_ends, load_model, load_tokenizer, positions_of, raise_positions
from entropy_grpo.rewards.registry import imported
from entropy_grpo.runs import files
from entropy_grpo.runs.folder import RunFolder
from entropy_grpo.runs.trained import steps_of
from entropy_grpo.training.sft import load_rows
from entropy_grpo.training.start import Start

from .conftest import REPOSITORY
from .loading import load

INPUTS = REPOSITORY / "tests" / "inputs"
SUMS = [(f"What is {i} + {i + 1}?", str(2 * i + 1)) for i in range(12)]


def train(path, **settings):
    problems = load(RunConfig(dataset_name=str(path), **settings))
    return sorted((row["prompt"], row["solution"]) for row in problems.train)


def evaluate(path):
    return sorted((question.text, question.reference) for question in questions.load(str(path))[1])


def imitate(path):
    config = SFTRunConfig(dataset_name=str(path), response_column="prompt")
    return sorted((row["prompt"], row["solution"]) for row in load_rows(config))


def analyse(path):
    return list(inputs.read(path))


READERS = (train, evaluate, imitate, analyse, lambda path: evaluation_questions(str(path)))


def refusal(read, path):
    """The one sentence with which a reader refuses a file."""
    with pytest.raises(ValueError) as refused:
        read(path)
    said = str(refused.value)
    assert "\n" not in said and str(path) in said and said.endswith("."), said
    return said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty", "the file has no rows"),
        ("trailing", "line 13 is not JSON"),
        ("utf16", "its content is UTF-16 text: save it as UTF-8"),
        ("surrogate", "line 1 has half of a surrogate pair, \\ud83d"),
        ("latin1", "line 1 is not UTF-8 (byte 0xf9): save the file as UTF-8"),
    ],
)
@pytest.mark.parametrize("read", READERS)
def test_a_broken_file_is_refused_in_one_sentence_by_every_reader(read, name, said):
    assert said in refusal(read, INPUTS / f"{name}.jsonl")


@pytest.mark.parametrize("read", [train, evaluate, imitate])
def test_numbers_among_texts_are_references(read):
    assert read(INPUTS / "mixed.jsonl") == sorted(SUMS)
    assert read(INPUTS / "mixed_late.jsonl") == sorted([*SUMS[:-1], (SUMS[-1][0], "\\frac{1}{2}")])


@pytest.mark.parametrize("name", ["brack[1]", "image_none", "completions", "prompts"])
@pytest.mark.parametrize("read", [train, evaluate, imitate])
def test_columns_that_nobody_reads_and_names_like_patterns_do_no_harm(read, name):
    assert read(INPUTS / f"{name}.jsonl") == sorted(SUMS)


@pytest.mark.parametrize("own", [False, True])
def test_no_column_that_trl_takes_for_itself_reaches_training(own):
    rewards = ["accuracy", "mine:reward"] if own else ["accuracy"]
    for name in ("image_none", "completions", "prompts"):
        train = load(RunConfig(dataset_name=str(INPUTS / f"{name}.jsonl"), rewards=rewards)).train
        assert train.column_names == ["prompt", "solution"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ROWS = [{"prompt": question, "solution": answer} for question, answer in SUMS]


def test_other_columns_reach_a_reward_of_the_users_own_alone(tmp_path):
    path = tmp_path / "dates.parquet"
    pandas.DataFrame([row | {"day": datetime.date(2024, 1, 1)} for row in ROWS]).to_parquet(path)
    config = {"dataset_name": str(path), "num_test_problems": 2}
    assert load(RunConfig(**config)).train.column_names == ["prompt", "solution"]
    own = load(RunConfig(**config, rewards=["mine:reward"]))
    assert own.train["day"][0] == datetime.date(2024, 1, 1)


def test_a_column_of_the_users_own_has_one_type(tmp_path):
    path = write(tmp_path / "x.jsonl", [row | {"level": i if i else "low"} for i, row in enumerate(ROWS)])
    assert train(path) == sorted(SUMS)
    said = refusal(lambda p: train(p, rewards=["mine:reward"]), path)
    assert "column level" in said and "str in line 1" in said and "int in line 2" in said


# Legal names of files, some of which mean something to a shell, to YAML, to a URL or to a pattern.
NAMES = [
    "brack[1].jsonl", "star*.jsonl", "what?.jsonl", "{a,b}.jsonl", "a b.jsonl", "100%.jsonl", "größe.jsonl",
    "题.jsonl", "-v.jsonl", "--x=1.jsonl", "a,b.jsonl", "a:b.jsonl", "hf:x.jsonl", "a#b #c.jsonl", "'q'.jsonl",
    "a\nb.jsonl",
    "**.jsonl", "x.JSONL", ".jsonl", "a.b.c.jsonl", "~.jsonl", "$HOME.jsonl", "a\\b.jsonl", "a@b.jsonl", "x..jsonl",
    " a.jsonl", "a\rb.jsonl", "&a b.jsonl", "!!str x.jsonl", "\ufeffx.jsonl", "\udcff.jsonl", 'a"""b.jsonl',
    "a\x85b.jsonl",
    "train-00000-of-00001.jsonl", "null.jsonl", "007.jsonl", "a:: b.jsonl", "zip::x.jsonl", "[!a].jsonl",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_legal_name_is_a_file(tmp_path, monkeypatch, name):
    for neighbour in ("brack1.jsonl", "starry.jsonl", "whatx.jsonl", "a.jsonl", "b.jsonl", "x.jsonl"):
        write(tmp_path / neighbour, [{"prompt": "Of another file?", "solution": "1"}])
    write(tmp_path / name, ROWS)
    monkeypatch.chdir(tmp_path)
    for read in (train, evaluate, imitate):
        assert read(name) == read(tmp_path / name) == sorted(SUMS)
    assert names_in([name]) == [name]
    given = recipe.overrides([f"--dataset_name={name}", f"--decontaminate_against={name}"])
    given = recipe.checked(given, [RunConfig])
    files.write_text(tmp_path / "r.yaml", recipe.dump(given))
    for settings in (given, recipe.load(tmp_path / "r.yaml")):
        (config,) = recipe.build(settings, [RunConfig])
        assert (config.dataset_name, config.decontaminate_against) == (name, [name])


def test_links_are_followed_and_folders_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.jsonl", ROWS)
    (tmp_path / "link.json").symlink_to("x.jsonl")
    (tmp_path / "dead.jsonl").symlink_to("nowhere")
    for name in ("folder.jsonl", "owner/name"):
        os.makedirs(name)
    assert train("link.json") == sorted(SUMS)
    for read in READERS[:3]:
        assert "there is no such file" in refusal(read, "dead.jsonl")
        assert "there is no such file" in refusal(read, "y.csv")
        assert "that is a folder" in refusal(read, "folder.jsonl")
        assert "that is a folder" in refusal(read, "owner/name")


@pytest.mark.parametrize("name", ["x.gz", "x.tsv", "./x", "x.jsonl.gz", "X.TXT"])
def test_a_file_of_another_format_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert "no such file" in refusal(train, name)
    write(tmp_path / name, ROWS)
    assert "must end in .jsonl or .json or .parquet or .csv" in refusal(train, name)


def test_csv_is_text_in_every_column(tmp_path):
    path = tmp_path / "x.CSV"
    path.write_bytes(b'\xef\xbb\xbfprompt,solution\r\n"What, ""now""?\nTwo lines",007\r\n\r\nAnother?,1.50\r\n')
    assert train(path) == evaluate(path) == [("Another?", "1.50"), ('What, "now"?\nTwo lines', "007")]


TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)
SPELLINGS = {
    "bom": b"\xef\xbb\xbf" + TEXT.encode(),
    "crlf": TEXT.replace("\n", "\r\n").encode(),
    "no last newline": TEXT.rstrip().encode(),
    "blank lines": TEXT.replace("\n", "\n\n  \n").encode(),
    "array": json.dumps(ROWS).encode(),
    "indented array": b"\n " + json.dumps(ROWS, indent=2).encode(),
    "escapes": json.dumps(ROWS, ensure_ascii=True).encode(),
}


@pytest.mark.parametrize("content", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_one_content_is_read_in_all_its_spellings(tmp_path, content, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    assert train(path) == evaluate(path) == sorted(SUMS)


GOOD = '{"prompt": "1?", "solution": "1"}\n'
FAULTS = [
    (
        GOOD + '{"prompt": "2?", "prompt": "3?", "solution": "2"}\n',
        "line 2 cannot be read (the name 'prompt' is given",
    ),
    (GOOD + '{"prompt": "2?", "solution": ' + "1" * 5000 + "}\n", "line 2 cannot be read (Exceeds the limit"),
    (GOOD + "[" * 100_000 + "\n", "line 2"),
    (GOOD + '{"a":' * 100_000 + "\n", "line 2 is nested too deeply"),
    (GOOD + "7\n", "line 2 is 7, where an object with columns belongs"),
    (GOOD + "null\n", "line 2 is None, where an object"),
    ("[" + GOOD + ", 7]", "row 1 is 7, where an object"),
    ("[" + GOOD, "line 1 is not JSON"),
    ("[]", "the file has no rows"),
    ("\n\n", "the file has no rows"),
    ("{\n" + '"prompt": "1?",\n"solution": "1"}', "line 1 is not JSON"),
    (GOOD + GOOD.rstrip() + GOOD, "line 2 is not JSON (Extra data"),
    (GOOD + "\0" * 40, "line 2 has null bytes"),
    (GOOD + "prompt: 1?\n", "line 2 is not JSON"),
    ("<html>\n", "line 1 is not JSON"),
    (GOOD + "{'prompt': '2?'}\n", "line 2 is not JSON"),
]


@pytest.mark.parametrize(("text", "said"), FAULTS)
@pytest.mark.parametrize("read", READERS)
def test_a_fault_is_named_with_its_line(tmp_path, read, text, said):
    path = tmp_path / "x.jsonl"
    path.write_text(text, encoding="utf-8")
    assert said in refusal(read, path)


# A value that is no prompt or no reference, and what is said of it.
VALUES = [
    ("solution", ["1"], "solution is ['1'] where text or a number was expected"),
    ("solution", {"a": 1}, "where text or a number was expected"),
    ("solution", True, "solution is True where text or a number"),
    ("solution", float("inf"), "solution is inf where text or a number"),
    ("prompt", None, "prompt is None where text"),
    ("prompt", 7, "prompt is 7 where text"),
    ("prompt", "", "empty"),
    ("prompt", " \n", "empty"),
    ("prompt", [], "prompt is [] where text"),
]


@pytest.mark.parametrize(("column", "value", "said"), VALUES)
@pytest.mark.parametrize("read", [train, evaluate, imitate])
def test_a_value_of_another_kind_is_named_with_its_line(tmp_path, read, column, value, said):
    path = write(tmp_path / "x.jsonl", [*ROWS[:3], ROWS[3] | {column: value}])
    message = refusal(read, path)
    assert "line 4 of" in message and said in message


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (3.0, "3"), (0.5, "0.5"), (10**30, str(10**30)), (-7, "-7"), (2.0**60, str(2.0**60))]
)
def test_numbers_are_written_alike_for_all(tmp_path, value, text):
    path = write(tmp_path / "x.jsonl", [*ROWS[:2], {"prompt": "Last?", "solution": value}])
    assert train(path) == evaluate(path) == imitate(path) == sorted([*SUMS[:2], ("Last?", text)])


@pytest.mark.parametrize("value", ["", " ", None, float("nan")])
def test_a_row_without_a_reference_is_left_out_of_training_and_refused_as_a_question(tmp_path, value):
    path = write(tmp_path / "x.jsonl", [*ROWS[:2], {"prompt": "Last?", "solution": value}])
    assert train(path) == sorted(SUMS[:2])
    assert "line 3 of" in refusal(evaluate, path)


def test_images_are_refused_and_not_forgotten(tmp_path):
    path = write(tmp_path / "x.jsonl", [ROWS[0] | {"image": None}, ROWS[1] | {"image": {"path": "x.png"}}])
    assert "line 2 of" in refusal(train, path) and "image holds an image" in refusal(train, path)


def test_texts_and_messages_do_not_mix(tmp_path):
    message = [{"role": "user", "content": "3?"}]
    path = write(tmp_path / "x.jsonl", [*ROWS[:2], {"prompt": message, "solution": "1"}])
    said = refusal(train, path)
    assert "str in line 1" in said and "list in line 3" in said


@pytest.mark.parametrize("part", [7, {"content": "x"}, {"role": "user"}, {"role": "user", "content": ["x"]}])
def test_messages_are_checked(tmp_path, part):
    path = write(tmp_path / "x.jsonl", [{"prompt": [part], "solution": "1"}])
    assert "line 1 of" in refusal(train, path)


def test_columns_with_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays(
        [pa.array(["1?"]), pa.array(["1"]), pa.array(["2"])], ["prompt", "solution", "solution"]
    )
    pq.write_table(table, tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("prompt,solution,solution\n1?,1,2\n")
    for read in READERS:
        for name in ("x.parquet", "x.csv"):
            assert "two columns are named 'solution'" in refusal(read, tmp_path / name)


def test_a_problem_is_not_its_own_reference():
    with pytest.raises(ValueError, match="prompt_column and solution_column are both 'prompt'"):
        RunConfig(dataset_name="x.jsonl", solution_column="prompt")


def damaged(content, rng):
    """A file's content with something done to it."""
    kind = rng.randrange(6)
    i, j = sorted(rng.randrange(len(content)) for _ in range(2))
    if kind == 0:
        return content[:i]
    if kind == 1:
        return content[:i] + bytes([rng.randrange(256)]) + content[i + 1 :]
    if kind == 2:
        return content[:i] + content[j:]
    if kind == 3:
        return content[:j] + content[i:]
    if kind == 4:
        return (
            content[:i] + rng.choice([b"\0", b"\xff", b"\n", b'"', b"{", b"[", b"\\ud83d", b"NaN", b","]) + content[i:]
        )
    return content.decode("latin-1").encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-7", "cp037"]))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_damage_gives_rows_or_one_sentence(tmp_path, suffix):
    path, rng = tmp_path / f"x{suffix}", random.Random(0)
    frame = pandas.DataFrame([row | {"level": i, "share": i / 7} for i, row in enumerate(ROWS)])
    whole = {
        ".jsonl": lambda: write(path, ROWS),
        ".json": lambda: frame.to_json(path, orient="records"),
        ".csv": lambda: frame.to_csv(path, index=False),
        ".parquet": lambda: frame.to_parquet(path),
    }
    whole[suffix]()
    content = path.read_bytes()
    refused = 0
    for _ in range(400):
        path.write_bytes(damaged(content, rng))
        for read in (lambda p: list(iterate(f"x is {str(p)!r}", str(p))), evaluate):
            try:
                read(path)
            except ValueError as error:
                refused += 1
                said = str(error)
                assert "\n" not in said and str(path) in said and said.endswith("."), said
    assert refused > 100


def test_a_pipe_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "that is no file" in refusal(train, tmp_path / "pipe.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = write(tmp_path / "x.jsonl", ROWS)
    path.chmod(0)
    assert "cannot be read (Permission denied)" in refusal(train, path)


def test_an_answer_may_hold_a_date(tmp_path):
    rows = [{"day": datetime.date(2024, 1, 1), "raw": b"x", "n": 1}]
    files.replace_jsonl(tmp_path / "a.jsonl", rows)
    files.append_jsonl(tmp_path / "a.jsonl", rows)
    assert list(files.read_jsonl(tmp_path / "a.jsonl")) == [{"day": "2024-01-01", "raw": "b'x'", "n": 1}] * 2


@pytest.mark.parametrize("name", ["dataset_config", "dataset_revision", "dataset_train_split"])
def test_settings_of_the_hub_are_refused_for_a_file(name):
    for config in (RunConfig, SFTRunConfig):
        with pytest.raises(ValueError, match=f"{name} is 'x', but dataset_name 'a.jsonl' is a file"):
            config(dataset_name="a.jsonl", **{name: "x"})


@pytest.mark.parametrize(
    "text",
    ["raise RuntimeError('no\\nway')", "x =", "import nowhere", "def other(): pass", "1/0", "import sys; sys.exit(3)"],
)
def test_a_reward_that_does_not_import_is_one_sentence(tmp_path, monkeypatch, text):
    module = f"mine{abs(hash(text))}"
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=rf"rewards names '{module}:reward'.* cannot be imported: .*\.$") as refused:
        imported(f"{module}:reward")
    assert "\n" not in str(refused.value)


def test_a_file_in_the_place_of_a_module_is_told_how_to_be_named():
    with pytest.raises(ValueError, match=r"^rewards names 'a/b.py:f', a file: name its module, b:f, and run from its"):
        imported("a/b.py:f")


MODEL_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"]


@pytest.mark.parametrize("name", MODEL_FILES)
@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"[1]", lambda b: b"\xff" * 9]
)
def test_a_damaged_file_of_a_model_is_one_sentence(tiny_model, tmp_path, name, damage):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    if not (model / name).exists():
        (model / name).write_text("{}")
    (model / name).write_bytes(damage((model / name).read_bytes()))
    try:
        load_model(str(model), None, "float32")
    except ValueError as refused:
        said = str(refused)
        assert "\n" not in said and str(model) in said and "does not load" in said
    else:
        assert name in ("tokenizer_config.json", "generation_config.json")  # of which transformers takes what it can


@pytest.mark.parametrize("pushes", [True, False])
def test_a_run_whose_checkpoints_replace_its_model_forgets_that_ones_step(tmp_path, monkeypatch, pushes):
    """transformers copies the weights of every checkpoint that it pushes into the run folder."""
    monkeypatch.setattr("entropy_grpo.training.start.restore_name", lambda *names: None)
    args = SimpleNamespace(resume_from_checkpoint=None, push_to_hub=pushes)
    start = SimpleNamespace(kept={}, changed={}, settings={}, named="m", args=args)
    start.model = SimpleNamespace(model_revision=None)
    (tmp_path / "trainer_state.json").write_text('{"global_step": 1}')
    Start.record(start, SimpleNamespace(model=None, is_world_process_zero=lambda: True), RunFolder(tmp_path), {})
    assert steps_of(tmp_path) == (None if pushes else 1)


def test_files_of_a_model_that_a_trainer_misses_are_one_sentence(tiny_model, tmp_path):
    """Weights, which TRL reads after all checks, and a tokenizer, of which transformers makes an empty one."""
    with pytest.raises(ValueError, match=r"^model_name_or_path is 'm', which does not load: no file$"):
        with Start.loading(SimpleNamespace(named="m")):
            raise OSError("no file\nmore")
    pushes = SimpleNamespace(named="m", args=SimpleNamespace(push_to_hub=True))
    with pytest.raises(
        ValueError, match=r"^push_to_hub is true, but the Hub makes no repository for the run: offline$"
    ):
        with Start.loading(pushes):
            raise ConnectionError("offline")
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    check_ends(load_tokenizer(str(model)), str(model))
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"^model(_name_or_path)? is .* whose tokenizer "):
        check_ends(load_tokenizer(str(model)), str(model))


@pytest.mark.parametrize(
    ("kind", "positions"), [("bloom", None), ("mamba", None), ("gpt2", 1024), ("gemma3", 131072), ("qwen3", 32768)]
)
def test_positions_are_those_of_the_text_model_if_anything_limits_them(kind, positions):
    found = positions_of(AutoConfig.for_model(kind))
    assert found == positions
    check_length(5, 6, found)
    if positions is not None:
        with pytest.raises(ValueError, match=f"the model has {positions} positions"):
            check_length(positions, 1, found)


def test_positions_are_raised_where_the_text_model_has_them(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTROPY_GRPO_CACHE", str(tmp_path / "cache"))
    text = {"max_position_embeddings": 8}
    for name, config in (("text", text), ("both", {"text_config": text})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        raised = files.read_json(Path(raise_positions(str(tmp_path / name), 32)) / "config.json")
        assert raised.get("text_config", raised) == {"max_position_embeddings": 32}
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"max_position_embeddings is 32, but .*none names no number of positions"):
        raise_positions(str(tmp_path / "none"), 32)

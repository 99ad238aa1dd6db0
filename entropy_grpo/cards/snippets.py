"""Code on a model card for readers: sampling as in training, and launching the training again.

Values from files are written as Python literals on one line or omitted, so that they are never executed.
"""

import re
from typing import Any

from ..data.prompts import TEMPLATES
from ..runs.trained import Trained
from ..runs.weights import ADAPTER, ADAPTER_CONFIG, MODEL_CONFIG

LONGEST_PROMPT = 600
# Values that vLLM accepts as the largest rank of an adapter.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
VERSION = re.compile(r"[\w.]+(?=\+|$)")
REVISION = re.compile(r"[0-9a-f]{7,40}")


def _number(value: Any, default: float) -> str:
    """Return a number as code, or the default if the file's value is not a number."""
    return repr(value if isinstance(value, (int, float)) and not isinstance(value, bool) else default)


def _prompt(trained: Trained) -> list[str]:
    """Return lines that set `prompt`, in the format of the training, and its tokens `inputs`."""
    template = trained.arguments.get("prompt_template") or trained.data.get("prompt_template")
    tokens = 'inputs = tokenizer(prompt, return_tensors="pt")'
    if template in TEMPLATES:
        lines = ['question = "What is the sum of the first ten primes?"']
        return [*lines, f'prompt = {TEMPLATES[template]!r}.replace("{{question}}", question)', tokens]
    if trained.prompt is not None and len(trained.prompt) <= LONGEST_PROMPT:
        # The prompt was logged with its special tokens in the text.
        return [
            f"prompt = {trained.prompt!r}  # a problem of the training set",
            tokens.replace("prompt,", "prompt, add_special_tokens=False,"),
        ]
    return ['prompt = "..."  # in the format of the training data', tokens]


def _sampling(trained: Trained) -> str:
    """Return the sampling settings of the training as arguments, equal for transformers and vLLM."""
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    return ", ".join(f"{name}={_number(trained.arguments.get(name), value)}" for name, value in defaults.items())


def _length(trained: Trained) -> str:
    return _number(trained.arguments.get("max_completion_length"), 512)


def transformers_snippet(trained: Trained, model: str) -> str:
    """Return code that samples one response as in training. `model` is a Hub id or a folder."""
    package, loader = ("transformers", "AutoModelForCausalLM")
    imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if trained.weights == ADAPTER:
        package, loader = ("peft", "AutoPeftModelForCausalLM")
        imports = [f"from {package} import {loader}", "from transformers import AutoTokenizer"]
    return "\n".join(
        [
            *imports,
            "",
            f"name = {model!r}",
            f'model = {loader}.from_pretrained(name, dtype="auto", device_map="auto")',
            "tokenizer = AutoTokenizer.from_pretrained(name)",
            *_prompt(trained),
            f"sampling = dict(do_sample=True, {_sampling(trained)}, max_new_tokens={_length(trained)})",
            "output = model.generate(**inputs.to(model.device), eos_token_id=tokenizer.eos_token_id, **sampling)",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    )


def vllm_snippet(trained: Trained, model: str) -> str:
    """Return the same code for vLLM, with a main guard because vLLM's processes import the file again."""
    imports, base, load, request = [], [], "model=name", ""
    if trained.weights == ADAPTER:
        imports = ["from peft import PeftConfig", "from vllm.lora.request import LoRARequest"]
        base = ["base = PeftConfig.from_pretrained(name).base_model_name_or_path"]
        rank = trained.adapter.get("r")
        rank = next((r for r in VLLM_RANKS if isinstance(rank, int) and r >= rank), VLLM_RANKS[-1])
        load = f"model=base, enable_lora=True, max_lora_rank={rank}"
        request = ', lora_request=LoRARequest("adapter", 1, name)'
    imports += ["from transformers import AutoTokenizer", "from vllm import LLM, SamplingParams"]
    return "\n".join(
        [
            *sorted(imports),
            "",
            f"name = {model!r}",
            *base,
            "tokenizer = AutoTokenizer.from_pretrained(name)",
            *(line.replace(', return_tensors="pt"', "") for line in _prompt(trained)),
            "",
            'if __name__ == "__main__":  # vLLM starts processes that read this file again',
            f"    llm = LLM({load})",
            f"    sampling = SamplingParams({_sampling(trained)}, max_tokens={_length(trained)}, "
            "stop_token_ids=[tokenizer.eos_token_id])",
            '    tokens = {"prompt_token_ids": inputs["input_ids"]}',
            f"    print(llm.generate([tokens], sampling{request})[0].outputs[0].text)",
        ]
    )


def reproduce_snippet(trained: Trained) -> str:
    """Return shell commands that launch the training again with the versions that the run's files record."""
    environment, versions, lines = trained.environment, trained.versions, []
    revision = REVISION.match(str(environment.get("git_revision", "")))
    if revision:
        lines.append(f"git checkout {revision[0]}  # in a clone of entropy-grpo")
    own, wanted = VERSION.match(str(versions.get("entropy-grpo", ""))), []
    for name in ("trl", "transformers", "torch", "accelerate", "peft", "vllm"):
        match = VERSION.match(str(versions.get(name, "")))
        wanted += [f"{name}=={match[0]}"] if match else []
    if wanted:
        package = "-e ." if revision else f"entropy-grpo=={own[0]}" if own else "entropy-grpo"
        lines.append(f"pip install {package} {' '.join(wanted)}")
    processes = environment.get("num_processes")
    launcher = f"accelerate launch --num_processes {processes}" if isinstance(processes, int) and processes > 1 else ""
    return "\n".join([*lines, f"{launcher or 'accelerate launch'} recipe.yaml"])


def whole_model_snippet(trained: Trained) -> str:
    """Return shell commands that merge a sharded checkpoint into one model, or one adapter, for its folder.

    The other files of the model are those of the run. Until the run has ended, they are made of its base. Adapters
    need the configuration that the run writes at its end. Without it, the text is empty.
    """
    run = trained.run.path
    template = " ../*.jinja" if any(run.glob("*.jinja")) else ""  # a pattern without a file is an error
    if trained.shards_adapters:
        if not (run / ADAPTER_CONFIG).exists():
            return ""
        lines = ["accelerate merge-weights pytorch_model_fsdp_0 adapter"]
        lines.append("mv adapter/model.safetensors adapter/adapter_model.safetensors")
        return "\n".join([*lines, f"cp ../{ADAPTER_CONFIG} ../tokenizer*{template} adapter"])
    merge = "accelerate merge-weights pytorch_model_fsdp_0 whole"
    if (run / MODEL_CONFIG).exists() and run != trained.model:
        return f"{merge}\ncp ../*config.json ../tokenizer*{template} whole"
    revision, positions = (trained.arguments.get(name) for name in ("model_revision", "max_position_embeddings"))
    base = repr(trained.base_id or "BASE_MODEL") + (f", revision={revision!r}" if isinstance(revision, str) else "")
    raised = f", max_position_embeddings={positions}" if isinstance(positions, int) else ""
    return "\n".join(
        [
            merge,
            "python - <<'END'",
            "from transformers import AutoConfig, AutoTokenizer, GenerationConfig",
            f"AutoConfig.from_pretrained({base}{raised}).save_pretrained('whole')",
            f"AutoTokenizer.from_pretrained({base}).save_pretrained('whole')",
            f"GenerationConfig.from_pretrained({base}).save_pretrained('whole')  # if the base model has one",
            "END",
        ]
    )

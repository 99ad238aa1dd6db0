# %% [markdown]
# # From a rollout to kept tokens
#
# This page follows one training step of the demo by hand: responses are drawn, graded, and given advantages, and
# the loss is taken over the fifth of the tokens with the highest entropy. At the end the trainer does the same. The
# page runs on a CPU in a minute; the first run also trains the demo's cold start, which takes a few minutes.

# %%
import json
import os
from itertools import islice

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_grpo import EntropyForkGRPOConfig, EntropyForkGRPOTrainer
from entropy_grpo.objective.selection import select
from entropy_grpo.tasks import registry

task = registry.load("embedded:number_walk")
path = os.environ.get("TUTORIAL_MODEL") or task.model(0)
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)

# %% [markdown]
# ## A group of responses
#
# A problem names a start, a target and the moves that are allowed. The policy answers it eight times, at
# temperature 1.

# %%
torch.manual_seed(0)
problem = next(task.problems("train", seed=0))
prompt = tokenizer([problem.prompt] * 8, return_tensors="pt")
sequences = model.generate(**prompt, do_sample=True, max_new_tokens=48, pad_token_id=tokenizer.pad_token_id)
start = prompt["input_ids"].shape[1]
completions = sequences[:, start:]
print(problem.prompt, *tokenizer.batch_decode(completions, skip_special_tokens=True), sep="\n")

# %% [markdown]
# A response counts up to its first end token. `mask` is true for the tokens that count.

# %%
ended = (completions == tokenizer.eos_token_id).cumsum(1)
mask = (ended - (completions == tokenizer.eos_token_id).long()) == 0

# %% [markdown]
# ## Rewards and advantages
#
# The reward of a response is 1 if its boxed expression reaches the target by allowed moves, never below 0, and 0
# otherwise. The advantage of a response is its reward, standardised within the group: a group whose responses are
# all right or all wrong teaches nothing.

# %%
texts = tokenizer.batch_decode(completions, skip_special_tokens=True)


def is_right(text):
    expression = task.answer(problem.prompt, text)  # only digits, signs and brackets of the problem's own numbers
    if expression is None:
        return False
    terms = expression.replace("-", "+-").split("+")
    return sum(int(term) for term in terms if term) == int(problem.solution)


rewards = torch.tensor([float(is_right(text)) for text in texts])
advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
print(rewards.tolist(), [round(value, 2) for value in advantages.tolist()])

# %% [markdown]
# ## Entropies and forks
#
# The entropy of a token is that of the distribution it was drawn from, in nats. `select` keeps exactly the fifth
# with the highest entropy, over all responses of the rollout at once. Kept tokens are in brackets here.

# %%
with torch.no_grad():
    logits = model(sequences, attention_mask=(sequences != tokenizer.pad_token_id).long()).logits.float()
log_p = logits[:, start - 1 : -1].log_softmax(-1)
entropies = -(log_p.exp() * log_p).sum(-1)
order = torch.arange(completions.numel()).view_as(completions)  # decides between equal entropies
kept, threshold = select(entropies, mask, 0.2, order)
assert kept.sum() == -(-mask.sum() * 2 // 10)  # ceil(0.2 n)
for ids, row, count in zip(completions[:3], kept[:3], mask[:3], strict=True):
    words = [tokenizer.decode(i) for i in ids[count]]
    print("".join(f"[{word}]" if fork else word for word, fork in zip(words, row[count], strict=True)))
print(f"{int(kept.sum())} of {int(mask.sum())} tokens are kept; the lowest of them has {threshold:.3f} nats")

# %% [markdown]
# With the trained cold start the brackets stand around the moves: they are the decisions of a walk, and everything
# else is arithmetic that follows from them.
#
# ## The loss
#
# Before the first step the policy is the one that wrote the responses, so that every ratio is 1. The loss of Eq. 6
# is the mean over the kept tokens, with the ratio clipped to 0.8 and 1.28.

# %%
token_log_p = log_p.gather(-1, completions[..., None]).squeeze(-1)
ratio = torch.exp(token_log_p - token_log_p.detach())
clipped = ratio.clamp(1 - 0.2, 1 + 0.28)
surrogate = torch.min(ratio * advantages[:, None], clipped * advantages[:, None])
loss = -(surrogate * kept).sum() / kept.sum()
print(f"loss {loss:.4f}")

# %% [markdown]
# ## The trainer
#
# `EntropyForkGRPOTrainer` is a `GRPOTrainer`. It does all of this for rollouts of many problems, on several GPUs,
# and writes the tokens of some responses to `samples.jsonl`.

# %%
rows = [{"prompt": p.prompt, "solution": p.solution} for p in islice(task.problems("train", seed=1), 16)]


def walk(prompts, completions, solution, **columns):
    """A reward function of TRL: a number for each response."""
    found = [task.answer(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
    totals = [None if text is None else sum(int(t) for t in text.replace("-", "+-").split("+") if t) for text in found]
    return [float(total == int(target)) for total, target in zip(totals, solution, strict=True)]


arguments = EntropyForkGRPOConfig(
    "runs/tutorial",
    max_steps=2,
    per_device_train_batch_size=16,
    num_generations=8,
    max_completion_length=48,
    learning_rate=1e-4,
    logging_steps=1,
    use_cpu=True,
    bf16=False,
    report_to="none",
    save_strategy="no",
    disable_tqdm=True,
)
trainer = EntropyForkGRPOTrainer(
    model=str(path),
    reward_funcs=walk,
    args=arguments,
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
)
trainer.train()
with open("runs/tutorial/samples.jsonl") as file:
    sample = json.loads(file.readline())
print("".join(f"[{t}]" if k else t for t, k in zip(sample["tokens"], sample["kept"], strict=True)))

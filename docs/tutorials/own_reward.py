# %% [markdown]
# # Your own reward and data
#
# A recipe takes any file with a problem and a reference per row, and any function that gives each response a
# number. This page writes both and trains on them for two steps. The model is the demo's; put any model's name in
# its place.

# %%
import json
import os
from itertools import islice
from pathlib import Path

from entropy_grpo import launch
from entropy_grpo.tasks import registry

task = registry.load("embedded:number_walk")
model = os.environ.get("TUTORIAL_MODEL") or str(task.model(0))

# %% [markdown]
# ## The data
#
# A file of JSON lines, Parquet or CSV. `prompt_column` and `solution_column` name its columns. Columns with other
# names reach your reward function, here `budget`.

# %%
with open("walks.jsonl", "w") as file:
    for problem in islice(task.problems("train", seed=0), 64):
        row = {"question": problem.prompt, "answer": problem.solution, "budget": 24}
        file.write(json.dumps(row) + "\n")

# %% [markdown]
# ## The reward
#
# A function of a module in the working directory, or of one that is installed. It gets lists by keyword:
# `prompts` (in their template), `completions`, `completion_ids`, `solution` (the column that `solution_column`
# names), and every other column under its own name. It returns a number per response, or `None` where it has no
# opinion.
#
# A reward that a policy can earn without solving the problem will be earned that way. This one pays for short
# responses alone, and is therefore the second reward, with a small weight: the first reward decides what is right.

# %%
Path("my_rewards.py").write_text('''
def within_budget(completion_ids, budget, **columns):
    """1 for a response that is not longer than its budget, and less for each token beyond it."""
    return [min(1.0, limit / max(len(ids), 1)) for ids, limit in zip(completion_ids, budget)]
''')

# %% [markdown]
# ## The recipe
#
# A recipe is YAML. A misspelt key, a value of the wrong type, a reward that does not exist, or a setting that
# nothing reads is refused in one sentence, before the model loads.

# %%
Path("mine.yaml").write_text(f"""
model_name_or_path: {model}
dataset_name: walks.jsonl
prompt_column: question
solution_column: answer
rewards: [walk_accuracy, "my_rewards:within_budget"]
reward_weights: [1.0, 0.1]
num_dev_problems: 4
num_test_problems: 4
num_generations: 8
num_generations_eval: 2
per_device_train_batch_size: 16
per_device_eval_batch_size: 8
steps_per_generation: 2
max_completion_length: 48
max_steps: 2
learning_rate: 1.0e-4
logging_steps: 1
save_steps: 2
use_cpu: true
bf16: false
report_to: none
disable_tqdm: true
output_dir: runs/mine
""")
launch.run("mine.yaml", [])

# %% [markdown]
# On the command line this is `entropy-grpo launch mine.yaml`. The run folder has a metric
# for each reward:

# %%
with open("runs/mine/metrics.jsonl") as file:
    logs = list(map(json.loads, file))
for name in ("rewards/walk_accuracy/mean", "rewards/within_budget/mean", "reward"):
    print(name, [round(row[name], 3) for row in logs if name in row])

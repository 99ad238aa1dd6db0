# %% [markdown]
# # Reading a run
#
# A run folder holds everything that happened. This page trains two short runs, one on a fifth of the tokens and one
# on all, and reads them: the metrics, the forks, the comparison, and the model card.

# %%
import json
import os
from pathlib import Path

from entropy_grpo import cli, launch
from entropy_grpo.tasks import registry

model = os.environ.get("TUTORIAL_MODEL") or str(registry.load("embedded:number_walk").model(0))
settings = f"""
model_name_or_path: {model}
dataset_name: embedded:number_walk
rewards: [walk_accuracy]
num_train_problems: 64
num_dev_problems: 8
num_test_problems: 16
num_generations: 8
num_generations_eval: 4
per_device_train_batch_size: 16
per_device_eval_batch_size: 32
steps_per_generation: 2
max_completion_length: 48
max_steps: 4
eval_strategy: steps
eval_steps: 2
learning_rate: 1.0e-4
logging_steps: 1
save_steps: 4
use_cpu: true
bf16: false
report_to: none
disable_tqdm: true
"""
Path("walk.yaml").write_text(settings)
for name, rho in (("fifth", 0.2), ("all", 1.0)):
    launch.run("walk.yaml", ["--output_dir", f"runs/{name}", "--top_entropy_quantile", str(rho)])

# %% [markdown]
# ## Metrics
#
# `metrics.jsonl` has one row per log. `entropy/*` are of the whole rollout under the policy that wrote it, so that
# runs with different rho can be compared. `selection/kept_fraction` is the share of tokens that the loss has.


# %%
def logged(run, metric):
    with open(f"runs/{run}/metrics.jsonl") as file:
        return [round(row[metric], 3) for row in map(json.loads, file) if metric in row]


print("kept", logged("fifth", "selection/kept_fraction"))
print("entropy", logged("fifth", "entropy/mean"), logged("all", "entropy/mean"))
evaluation = json.loads(Path("runs/fifth/evaluation.json").read_text())
print("held-out accuracy", {when: evaluation[when]["accuracy"] for when in ("before", "after")})

# %% [markdown]
# Sixteen problems and four steps prove nothing: the intervals say so. [Experiments](../experiments.md) has runs
# that do.
#
# ## Forks
#
# `analyze text` colours the responses by entropy and marks the tokens that were trained on.

# %%
cli.main(["analyze", "text", "runs/fifth"])

# %% [markdown]
# ## The run on one page
#
# `analyze report` writes `analysis/report.html`, one file that any browser opens: the result, the curves, the
# warnings, the last responses with their colours, the figures of both papers, and the settings. The page of a run that
# still trains shows what is there so far.

# %%
cli.main(["analyze", "report", "runs/fifth"])

# %% [markdown]
# ## Comparison
#
# `compare` groups runs whose recipes differ only in the seed. Differences come with intervals and corrected
# p-values.

# %%
cli.main(["compare", "runs/fifth", "runs/all", "--baseline", "runs/all", "--output", "comparison"])

# %% [markdown]
# ## The card
#
# The card is written from the files of the run. It says what was trained, on what, with which result, and how to
# repeat it. What no file holds is left out and named.

# %%
cli.main(["card", "runs/fifth"])
print(Path("runs/fifth/README.md").read_text()[:1200])

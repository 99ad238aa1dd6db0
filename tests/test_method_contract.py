"""Every registered method on every division of the same tokens: over processes, micro-batches, widths of padding.

The tokens of one process in one piece are compared, to the last bit, with those of processes whose steps are cut and
padded in other ways. Some responses are empty, and some groups are all right or all wrong. As a script, the module
computes the results in the processes of a launcher: test_method_contract.py OUTPUT.
"""

import functools
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.objective.methods.entries import Entry, parse
from entropy_grpo.objective.methods.masks import MASKS
from entropy_grpo.objective.methods.registry import REGISTERED
from entropy_grpo.objective.methods.run import SHAPED, WEIGHT, Methods
from entropy_grpo.objective.objective import Objective
from entropy_grpo.objective.ranks import ALONE
from entropy_grpo.objective.window import Pass, plan_window, select_tokens
from entropy_grpo.training.ranks import ranks_of

from .conftest import REPOSITORY
from .test_window import on_ranks

SIZE, GROUPS, WIDTH = 4, 5, 9  # two processes share the third group
N = SIZE * GROUPS
RNG = torch.Generator().manual_seed(11)
LENGTHS = torch.randint(1, WIDTH + 1, (N,), generator=RNG).index_fill(0, torch.tensor([2, 9]), 0)
MASK = torch.arange(WIDTH) < LENGTHS.unsqueeze(1)
RIGHT = torch.cat([torch.ones(SIZE), torch.zeros(SIZE), torch.rand(N - 2 * SIZE, generator=RNG).round()]).bool()
GROUPED = RIGHT.float().view(GROUPS, SIZE)
TOKENS = {
    "completion_ids": torch.randint(3, 14, (N, WIDTH), generator=RNG),
    "completion_mask": MASK.long(),
    "old_per_token_logps": -8 * torch.rand(N, WIDTH, generator=RNG) ** 2,
    "old_entropies": 2 * torch.rand(N, WIDTH, generator=RNG),
    "logps": -8 * torch.rand(N, WIDTH, generator=RNG) ** 2,
    "entropies": 2 * torch.rand(N, WIDTH, generator=RNG),
    "residual_norms": torch.rand(N, WIDTH, generator=RNG),
}
ROWS = {
    "right": RIGHT,
    "wrong": ~RIGHT,
    "rewards": RIGHT.float(),
    "advantages": ((GROUPED - GROUPED.mean(1, True)) / (GROUPED.std(1, keepdim=True) + 1e-4)).flatten(),
    "sequence_index": torch.arange(N),
}
PASSED = ("logps", "entropies", "residual_norms")
# Parameters without a default, and values that concern some of so few tokens.
PARAMS = {"hicra": lambda folder: {"ngrams": str(phrases(folder))}, "stapo": lambda folder: {"tau_p": 0.5, "q": 0.5}}
PARAMS |= {"clip_cov": lambda folder: {"share": 0.1, "low": 0.1}, "kl_cov": lambda folder: {"share": 0.1}}


class Numbers:
    """A tokenizer whose texts are the ids of tokens."""

    unk_token_id = 0

    def encode(self, text, add_special_tokens):
        return [int(text)]


def phrases(folder):
    """A file with the text of a token that the responses have."""
    path = folder / "phrases.txt"
    path.write_text(f"{TOKENS['completion_ids'][4, 0]}\n")
    return path


def batch_of(rows, width, dtype):
    """The micro-batch of some responses, and the current policy's pass over it; padding has values of its own."""

    def cut(name):
        values = torch.nn.functional.pad(TOKENS[name], (0, max(width - WIDTH, 0)))[rows, :width]
        mask = torch.nn.functional.pad(MASK, (0, max(width - WIDTH, 0)))[rows, :width]
        values = values.to(dtype) if values.is_floating_point() else values
        return values if name == "completion_mask" else values.where(mask, values.new_tensor(5))

    tokens = {name: cut(name) for name in TOKENS}
    inputs = {name: value for name, value in tokens.items() if name not in PASSED}
    inputs |= {name: value[rows] for name, value in ROWS.items()} | {"sequence_count": torch.tensor(N)}
    return inputs, Pass(**{name: tokens[name] for name in PASSED})


def table(results):
    """(N, WIDTH) results of micro-batches by response and position, NaN for other tokens."""
    found = torch.full((N, WIDTH), torch.nan)
    for inputs, values in results:
        values = values if values.dim() > 1 else values.unsqueeze(1).expand(-1, WIDTH)
        values = torch.nn.functional.pad(values, (0, max(WIDTH - values.size(1), 0)))[:, :WIDTH]
        found[inputs["sequence_index"]] = values
    return torch.where(MASK, found, torch.nan)


def results_of(entry, moment, ranks, parts, dtype):
    """The table of an entry's results at a moment, from the micro-batches (rows, width) of this process."""
    batches = [batch_of(torch.tensor(rows), width, dtype) for rows, width in parts]
    if entry.name in MASKS:
        return selected_of(decide(entry.name), moment, ranks, batches)
    fields = {"advantages": (), "token_weights": ()}
    methods = Methods(replace(decide(None), **fields | {entry.setting: (entry,)}), ranks, 3, 7, None, Numbers())
    is_advantage = entry.method.kind == "advantage"
    column = "advantages" if is_advantage else WEIGHT + entry.name
    if moment == "rollout":
        (inputs, scored), *_ = batches
        old = Pass(inputs["old_per_token_logps"], inputs["old_entropies"], scored.residual_norms)
        output = methods.in_rollout(inputs, old, has_steps=True)
        return table([(inputs, output[SHAPED + entry.name if is_advantage else column])])
    if moment == "loss":
        return table([(inputs, methods.in_loss(inputs, scored)[column]) for inputs, scored in batches])
    planned = methods.plan([methods.shape(inputs) for inputs, _ in batches], [scored for _, scored in batches])
    return table([(inputs, inputs[column]) for inputs in planned])


def selected_of(objective, moment, ranks, batches):
    """The table of the tokens that are kept, 1 or 0, of a rollout or of a step that makes a pass to rank them."""
    inputs, passes = zip(*batches, strict=True)
    if moment == "rollout":
        kept, _ = select_tokens(passes, inputs, objective, ranks, seed=7)
    else:
        scored = iter(passes)
        window = plan_window(list(inputs), objective, ranks, lambda _: next(scored), SIZE, seed=7)
        inputs, kept = window.everything, [b["kept_mask"] for b in window.everything]
    return table([(b, mask.float()) for b, mask in zip(inputs, kept, strict=True)])


STEP = torch.randperm(N, generator=torch.Generator().manual_seed(2))[:14].tolist()


def divisions(moment, count):
    """The responses of a rollout, or of a step, on so many processes: (rows, width) of the micro-batches of each."""
    half = N // 2
    if moment == "rollout":
        return [[(list(range(N)), 13)]] if count == 1 else [[(list(range(half)), WIDTH)], [(list(range(half, N)), 13)]]
    both = [[(STEP[:3], 11), (STEP[3:5], 11), (STEP[5:6], 11)], [(STEP[6:7], WIDTH), (STEP[7:13], 9), (STEP[13:], 9)]]
    return both if count == 2 else [[(rows, 13) for parts in both for rows, _ in parts]]


def whole(moment):
    """All responses in one micro-batch of one process."""
    return [(list(range(N)) if moment == "rollout" else STEP, WIDTH)]


@functools.cache
def decide(mask):
    """The decisions of a run without methods, or with one mask whose tokens are ranked in a pass before the step."""
    settings = {"num_generations": SIZE, "gradient_accumulation_steps": 2, "batch_by_length": False}
    settings |= {"token_weights": [{"name": mask, "scope": "global"}]} if mask else {"top_entropy_quantile": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        return Objective.from_args(EntropyForkGRPOConfig(folder, use_cpu=True, bf16=False, **settings))


# No registered function reads gradient norms, which a user's may.
BY_NORM = "tests.own_methods:by_norm"


def make_entry(name, folder):
    if name == BY_NORM:
        return parse("token_weights", [name])[0]
    return Entry(REGISTERED[name], PARAMS.get(name, lambda folder: {})(folder))


def cases(folder):
    """Every method and each moment at which its result is computed: a mask's by its scope, in a rollout or a step."""
    for name in [*sorted(REGISTERED), BY_NORM]:
        entry = make_entry(name, folder)
        for moment in ("rollout", "step") if name in MASKS else (entry.moment,):
            yield entry, moment


def joined(tables):
    """One table from those of processes with different responses."""
    found = torch.stack(tables)
    assert (~found.isnan()).sum(0).max() == 1
    return torch.where(found.isnan().all(0), torch.nan, found.nansum(0))


DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*sorted(REGISTERED), BY_NORM])
def test_results_depend_on_neither_processes_nor_batches(tmp_path, name, dtype):
    for entry, moment in [case for case in cases(tmp_path) if case[0].name == name]:
        alone = results_of(entry, moment, ALONE, whole(moment), dtype)
        for count in (1, 2):
            parts = divisions(moment, count)
            tables = on_ranks(count, lambda r, e=entry, m=moment, p=parts: results_of(e, m, r, p[r.index], dtype))
            assert torch.equal(alone.nan_to_num(-9), joined(tables).nan_to_num(-9))
        seen = MASK if moment == "rollout" else MASK[STEP]
        assert (~alone.isnan()).sum() == seen.sum()
        if name not in ("w_reinforce", "nsr", "psr"):  # the example is one on which a method does something
            neutral = ROWS["advantages"].unsqueeze(1) if entry.method.kind == "advantage" else torch.ones(1, 1)
            assert not torch.equal(alone.nan_to_num(), torch.where(MASK & ~alone.isnan(), neutral, 0.0))


@pytest.mark.slow
def test_real_processes_agree(tmp_path, preloaded):
    """All methods in one process and in two processes of gloo."""
    runs = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        command = [preloaded, "-m", *launch, "-m", "tests.test_method_contract", str(folder)]
        runs[folder] = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    for folder, run in runs.items():
        _, errors = run.communicate(timeout=240)
        assert run.returncode == 0, errors
        tables = [torch.load(path, weights_only=True) for path in sorted(folder.iterdir()) if path.suffix == ".pt"]
        assert len(tables) == int(folder.name)
        assert {name for name, *_ in tables[0]} == {*REGISTERED, BY_NORM}
        for entry, moment in cases(tmp_path):
            for dtype in DTYPES:
                alone = results_of(entry, moment, ALONE, whole(moment), dtype)
                both = joined([found[entry.name, moment, str(dtype)] for found in tables])
                assert torch.equal(alone.nan_to_num(-9), both.nan_to_num(-9)), (entry.name, moment, dtype, folder.name)


def main():
    folder = Path(sys.argv[1])
    for mask in (None, *MASKS):  # the settings make accelerate's state anew
        decide(mask)
    accelerator = Accelerator(cpu=True)
    assert torch.distributed.get_backend() == "gloo"
    ranks = ranks_of(accelerator)
    found = {}
    for entry, moment in cases(folder):
        parts = divisions(moment, ranks.count)[ranks.index]
        for dtype in DTYPES:
            found[entry.name, moment, str(dtype)] = results_of(entry, moment, ranks, parts, dtype)
    torch.save(found, folder / f"{ranks.index}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main()

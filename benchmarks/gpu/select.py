"""Part E: selection over a whole rollout's tokens, and bit-for-bit equality of a run resumed from a checkpoint."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from benchmarks.measure import peak_memory, seconds, spread
from entropy_grpo import EntropyForkGRPOConfig, EntropyForkGRPOTrainer
from entropy_grpo.objective.selection import percentiles, select
from entropy_grpo.objective.share import kept_count
from entropy_grpo.tasks import cold_start

from .report import Report
from .sizes import Sizes

RHO = 0.2


def tokens(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """(scores, mask, places) of a rollout with ties. Half of the entropies are 0, and all are multiples of 1/1024
    nats.
    """
    generator = torch.Generator(sizes.device).manual_seed(0)
    rows, columns = sizes.tokens
    scores = torch.randn(rows, columns, generator=generator, device=sizes.device).clamp(min=0)
    scores = (scores * 1024).round() / 1024
    lengths = torch.randint(1, columns + 1, (rows, 1), generator=generator, device=sizes.device)
    mask = torch.arange(columns, device=sizes.device) < lengths
    return scores, mask, torch.arange(rows * columns, device=sizes.device).view(rows, columns)


def by_sorting(scores: Tensor, mask: Tensor, rho: float) -> Tensor:
    """The same selection by a stable sort. Places must ascend in memory order."""
    counted = mask.flatten().nonzero().squeeze(1)
    order = scores.flatten()[counted].argsort(descending=True, stable=True)
    kept = torch.zeros_like(mask).flatten()
    kept[counted[order[: kept_count(len(counted), rho)]]] = True
    return kept.view_as(mask)


def selection(sizes: Sizes) -> dict[str, Any]:
    """Milliseconds and peak memory of the selection and of a sort, and whether both keep the same tokens."""
    scores, mask, places = tokens(sizes)
    found: dict[str, Any] = {"tokens": mask.numel(), "tokens_that_count": int(mask.sum())}
    kept, threshold = select(scores, mask, RHO, places)
    exact = by_sorting(scores, mask, RHO)
    found["kept"], found["threshold"] = int(kept.sum()), threshold
    found["equal_to_a_sort"] = torch.equal(kept, exact)
    if not found["equal_to_a_sort"]:
        raise RuntimeError(f"{int((kept != exact).sum())} tokens differ from those that a sort keeps")
    calls = {
        "select": lambda: select(scores, mask, RHO, places),
        "sort": lambda: by_sorting(scores, mask, RHO),
        "three percentiles": lambda: percentiles(scores, mask, (5, 50, 95)),
    }
    for name, call in calls.items():
        found[f"{name}, ms"] = spread([1e3 * seconds(call) for _ in range(max(sizes.repeats, 2))])
        found[f"{name}, peak bytes"] = peak_memory(call)
    return found


def train(sizes: Sizes, model: str, folder: Path, resume: Path | None = None) -> dict[str, Tensor]:
    """Weights after four steps with generated responses. With `resume`, the run starts from that checkpoint."""
    args = EntropyForkGRPOConfig(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=8,
        num_generations=4,
        steps_per_generation=2,
        max_completion_length=16,
        learning_rate=1e-3,
        save_steps=2,
        logging_steps=1,
        report_to="none",
        use_cpu=sizes.device == "cpu",
        bf16=True,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=0,
    )
    trainer = EntropyForkGRPOTrainer(
        model=model,
        reward_funcs=_sum_of_ids,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [f"go {5 + i} to {9 + i}\n" for i in range(16)]}),
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def _sum_of_ids(completion_ids: list, **kwargs: Any) -> list[float]:
    """Unequal rewards that depend only on the tokens."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def resume(sizes: Sizes) -> dict[str, Any]:
    """Compare the final weights of a resumed run and of an uninterrupted run.

    A second uninterrupted run shows whether the device is deterministic.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = cold_start.build_tokenizer()
        cold_start.build_model(tokenizer, 0).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        model = str(folder / "model")
        once = train(sizes, model, folder / "once")
        again = train(sizes, model, folder / "again")
        resumed = train(sizes, model, folder / "resumed", folder / "once" / "checkpoint-2")

    def differences(other: dict[str, Tensor]) -> dict[str, Any]:
        largest = max((once[key] - other[key]).abs().max().item() for key in once)
        return {"equal": all(torch.equal(once[key], other[key]) for key in once), "largest_difference": largest}

    found = {"run again": differences(again), "resumed at step 2 of 4": differences(resumed)}
    if found["run again"]["equal"] and not found["resumed at step 2 of 4"]["equal"]:
        raise RuntimeError(f"the resumed run ends elsewhere: {found}")
    return found


def run(report: Report, sizes: Sizes) -> None:
    """Measure selection, then resume."""
    with report.measure("selection") as row:
        row |= selection(sizes)
    with report.measure("checkpoint and resume") as row:
        row |= resume(sizes)

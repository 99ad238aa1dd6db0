"""What only a CUDA device shows. Skipped, and reported as skipped, without one."""

import pytest
import torch

from entropy_grpo.selection import percentiles, select

from . import fixed_rollout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("kind", ["top", "bottom", "random"])
def test_selection_is_the_processors(kind):
    entropies = torch.randint(0, 50, (64, 333), generator=torch.Generator().manual_seed(0)) / 7.0
    mask = torch.arange(333) < torch.arange(5, 69).unsqueeze(1) * 4
    places = torch.arange(64 * 333).view(64, 333)
    on_cpu, threshold = select(entropies, mask, 0.2, places, kind=kind)
    on_gpu, gpu_threshold = select(entropies.cuda(), mask.cuda(), 0.2, places.cuda(), kind=kind)
    assert torch.equal(on_cpu, on_gpu.cpu())
    assert kind == "random" or threshold == gpu_threshold
    assert percentiles(entropies, mask, (5, 50, 99)) == percentiles(entropies.cuda(), mask.cuda(), (5, 50, 99))


def test_two_steps_in_bf16_keep_the_share(tiny_model, tmp_path):
    trainer = fixed_rollout.train(
        tiny_model, tmp_path, use_cpu=False, bf16=True, max_steps=2, top_entropy_quantile=0.2, learning_rate=1e-3
    )
    rows = trainer.state.log_history[:2]
    tokens = rows[0]["completions/mean_length"] * 8
    assert [row["selection/kept_fraction"] for row in rows] == pytest.approx([0.2, 0.2], abs=1 / tokens)

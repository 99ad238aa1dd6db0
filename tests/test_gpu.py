"""What only a CUDA device shows. Skipped, and reported as skipped, without one."""

import pytest
import torch

from benchmarks.fixtures import fixed_rollout
from entropy_grpo.objective.selection import percentiles, select

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


@pytest.mark.parametrize("name", ["auto", "liger"])
@pytest.mark.parametrize("outputs", [("entropy",), ()], ids=["ranking", "training"])
def test_head_is_as_exact_as_that_of_trl_in_bf16(name, outputs):
    """With Liger's Hopper kernel, where there is one: it rounds the weight gradient once per 1024 rows."""
    from trl.kernels import ChunkedLogProbFunction

    from entropy_grpo.models.head import SparseLogProbs
    from entropy_grpo.models.kernels import LIGER, choose
    from entropy_grpo.training.requirements import check_package

    device = torch.device("cuda")
    try:
        check_package("fused_lm_head", name)
    except ValueError as error:
        pytest.skip(str(error))
    kernel = choose(name, device, outputs)
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(3000, 512, generator=rng).to(device, torch.bfloat16)
    weight = (torch.randn(32000, 512, generator=rng) * 0.1).to(device, torch.bfloat16)
    targets = torch.randint(0, 32000, (3000,), generator=rng).to(device)
    gradients = (torch.randn(3000, generator=rng) * (torch.rand(3000, generator=rng) < 0.5)).to(device)
    exact_inputs = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logps = (exact_inputs[0] @ exact_inputs[1].t()).log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    logps.backward(gradients.double())
    exact = (logps.detach(), exact_inputs[0].grad, exact_inputs[1].grad)

    def errors(score):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        log_probs = score(*leaves)
        log_probs.backward(gradients)
        assert (leaves[0].grad[gradients == 0] == 0).all()
        values = (log_probs, leaves[0].grad, leaves[1].grad)
        return [((x.double() - y).norm() / y.norm()).item() for x, y in zip(values, exact, strict=True)]

    stock = errors(lambda h, w: ChunkedLogProbFunction.apply(h, w, None, targets, 1.0, 32768, None, 1.0, ())[0])
    ours = errors(lambda h, w: SparseLogProbs.apply(h, w, targets, 1.0, kernel, outputs)[0])
    slack = 2 if kernel is LIGER else 1.1
    assert all(a <= slack * b + 1e-6 for a, b in zip(ours, stock, strict=True)), (ours, stock)

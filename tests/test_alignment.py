"""Passes without a mask, in float64, against every sequence alone."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from trl import GRPOTrainer

from entropy_grpo.models.head import SparseHeadOutput
from entropy_grpo.training.scoring import Alignment, Scorer

from .small_models import SMALL, small

# Prompts of one token, responses of none, and rows of the full width.
PROMPTS, RESPONSES = [1, 4, 6, 2, 1, 6, 3], [5, 0, 9, 9, 1, 2, 7]
OUTPUTS = ("log_probs", "entropy", "residual_norm")


def ragged(prompts=PROMPTS, responses=RESPONSES):
    """(B, 6 + 9) random ids, also in the padding, and their mask."""
    columns, middle = torch.arange(15), 6
    lengths = torch.tensor([prompts, responses]).unsqueeze(-1)
    mask = (columns >= middle - lengths[0]) & (columns < middle + lengths[1])
    return torch.randint(SMALL["vocab_size"], mask.shape, generator=torch.Generator().manual_seed(0)), mask.long()


def test_rows_start_in_the_first_column_and_go_back():
    ids, mask = ragged()
    alignment = Alignment(mask)
    moved, held = alignment.left(ids, -1), alignment.left(mask, 0)
    assert alignment.longest == moved.size(1) == 15
    for row, (new, of) in enumerate(zip(moved.tolist(), mask.bool(), strict=True)):
        own = ids[row][of].tolist()
        assert new == own + [-1] * (15 - len(own)) and held[row].tolist() == [1] * len(own) + [0] * (15 - len(own))
    back = alignment.back(moved[:, 1:] + 2.0)  # also padding, which is not taken
    both = mask[:, 1:] * mask[:, :-1]  # tokens that follow a token of their sequence
    assert torch.equal(back, (ids[:, 1:] + 2.0) * both)


@pytest.mark.parametrize(("prompts", "responses"), [([1], [0]), ([2, 1], [1, 0]), ([3, 3], [2, 2])])
def test_a_pass_is_as_wide_as_its_longest_sequence(prompts, responses):
    ids, mask = ragged(prompts, responses)
    alignment = Alignment(mask)
    moved = alignment.left(ids, 0)
    assert moved.size(1) == max(map(sum, zip(prompts, responses, strict=True)))
    assert alignment.back(moved[:, 1:].float()).shape == (len(ids), 14)


class Head:
    """A language model with a head in float64, with the call of the sparse head."""

    def __init__(self, model):
        self.model, self.sizes = model, []

    def __call__(self, *, labels, fused_lm_head, **inputs):
        self.sizes.append(tuple(inputs["input_ids"].shape))
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        labels = labels[:, 1:]
        scores = of_hidden(self.model, hidden, labels.clamp(min=0))
        return SparseHeadOutput(*(torch.where(labels != -100, x, 0) for x in scores))


def of_hidden(model, hidden, targets):
    """Log-probability of each target, entropy, and norm of the gradient in the head."""
    logps = model.lm_head(hidden).log_softmax(-1)
    residual = torch.nn.functional.one_hot(targets, logps.size(-1)) - logps.exp()
    entropy = -(logps.exp() * logps).sum(-1)
    return logps.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy, residual.norm(dim=-1) * hidden.norm(dim=-1)


SCORE = partial(
    GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__,
    SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext)),
    compute_entropy=True,
)


def scored(head, ids, mask, batch_size=None, kept=None, **options):
    return Scorer(True, int).run(SCORE, head, OUTPUTS, ids, mask, 9, batch_size, kept, **options)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_scores_and_gradients_are_those_of_every_sequence_alone(family, batch_size):
    model = small(family).double().eval()
    ids, mask = ragged()
    found = scored(Head(model), ids, mask, batch_size)
    weights = torch.randn(3, len(ids), 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs = (found.logps, found.entropies, found.residual_norms)
    sum((w * x).sum() for w, x in zip(weights, outputs, strict=True)).backward()
    gradients = [p.grad.clone() for p in model.parameters()]

    model.zero_grad()
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        alone = ids[row][mask[row].bool()].unsqueeze(0)
        hidden = model.base_model(alone, use_cache=False).last_hidden_state[:, :-1]
        scores = [x[0, prompt - 1 :] for x in of_hidden(model, hidden, alone[:, 1:])]
        for weight, output, score in zip(weights, outputs, scores, strict=True):
            assert not output[row, response:].any()
            torch.testing.assert_close(output[row, :response], score, rtol=0, atol=1e-12)
            (weight[row, :response] * score).sum().backward(retain_graph=True)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        # The models' RMSNorm computes in float32, which bounds the agreement of its gradients.
        assert (gradient - parameter.grad).norm() < 1e-6 * parameter.grad.norm()


def test_only_kept_tokens_are_projected():
    model = small().double().eval()
    ids, mask = ragged()
    kept = torch.rand(len(ids), 9, generator=torch.Generator().manual_seed(2)) < 0.4
    some, everything = (scored(Head(model), ids, mask, kept=k) for k in (kept, None))
    torch.testing.assert_close(some.logps, everything.logps * kept, rtol=0, atol=1e-12)


def test_attention_sees_no_mask_unless_an_output_needs_it():
    """The passes are narrower, too: a long prompt and a long response are of different sequences."""
    seen = []

    def spy(module, query, key, value, attention_mask, **options):
        seen.append(attention_mask)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", sdpa_mask)
    ids, mask = ragged([1, 6], [9, 1])
    head = Head(small(attn_implementation="spy").double().eval())
    scored(head, ids, mask)
    assert seen == [None] * SMALL["num_hidden_layers"] and head.sizes == [(2, 10)]
    seen.clear(), head.sizes.clear()
    scored(head, ids, mask, needs_mask=True)
    assert [m.shape for m in seen] == [(2, 1, 15, 15)] * SMALL["num_hidden_layers"] and head.sizes == [(2, 15)]

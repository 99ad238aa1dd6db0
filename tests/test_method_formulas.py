"""Each method against its formula, written out token by token in float64, or against its gradient by autograd.

That results are the same on every division over processes is tested elsewhere, for all methods together.
"""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from entropy_grpo.objective.methods import covariance, entropy, outcome, planning, quantile_advantage, ratios, spurious
from entropy_grpo.objective.methods.view import StepView
from entropy_grpo.objective.ranks import ALONE

SIZE = 4
# Right responses of each group of 4: none, one, two, three, all.
RIGHT = [[], [2], [0, 3], [0, 1, 3], [0, 1, 2, 3]]
# Responses without a reward in the tests of methods that read the outcome.
UNSCORED = {3, 10, 12}


def make_view(width=9, seed=0, unscored=(), **fields):
    """A rollout of 5 groups, with empty responses, entropies from 1e-9 to 3 nats, and NaN in the padding."""
    draws = torch.Generator().manual_seed(seed)
    rows = SIZE * len(RIGHT)
    lengths = torch.randint(1, width + 1, (rows,), generator=draws)
    lengths[[1, 9]] = 0
    mask = torch.arange(width) < lengths.unsqueeze(1)
    right = torch.tensor([[i in group for i in range(SIZE)] for group in RIGHT]).flatten()
    wrong = ~right
    right[list(unscored)] = wrong[list(unscored)] = False

    def tokens(values):
        return values.float().masked_fill(~mask, math.nan)

    def random(low, high):
        return torch.rand(rows, width, generator=draws) * (high - low) + low

    shares = right.view(-1, SIZE).float().mean(1, keepdim=True)
    advantages = (right.view(-1, SIZE).float() - shares) / (shares * (1 - shares)).sqrt().clamp(min=1e-4)
    old_logps = random(-9.0, -0.01)
    entropies = 10 ** random(-9.0, 0.5)
    return StepView(
        mask=mask,
        order=torch.arange(rows),
        responses=rows,
        group_size=SIZE,
        advantages=advantages.flatten(),
        ranks=ALONE,
        right=right,
        wrong=wrong,
        old_logps=tokens(old_logps),
        logps=tokens(old_logps + random(-0.6, 0.6)),
        old_entropies=tokens(entropies),
        entropies=tokens(entropies * torch.exp(random(-0.1, 0.1))),
        **fields,
    )


def each_token(view):
    return [(i, t) for i, row in enumerate(view.mask.tolist()) for t, inside in enumerate(row) if inside]


def assert_tokens(view, found, expected, rtol=1e-5):
    """Compare (B, T) results with {(i, t): float} in the mask."""
    assert found.dtype == torch.float32 and found.shape == view.mask.shape
    assert expected.keys() == set(each_token(view))
    values = {place: found[place].item() for place in expected}
    assert values == pytest.approx(expected, rel=rtol, abs=1e-7)


def surrogate(view, logps, weights=1.0, advantages=None, low=0.2, high=0.28, delta=None):
    """TRL's clipped surrogate (dapo, before its divisor), the sum over the mask, in float64."""
    advantages = (view.token_advantages if advantages is None else advantages).double()
    ratio = torch.exp(logps - view.old_logps.double())
    clipped = ratio.clamp(1 - low, 1 + high)
    ratio = ratio if delta is None else ratio.clamp(max=delta)
    loss = -torch.min(ratio * advantages, clipped * advantages) * weights
    return loss[view.mask].sum()


def gradient(view, loss):
    logps = view.logps.double().nan_to_num().requires_grad_()
    (found,) = torch.autograd.grad(loss(logps), logps)
    return found[view.mask]


# arXiv 2506.01347


@pytest.mark.parametrize(
    "method, right, wrong", [(outcome.psr, 1, 0), (outcome.nsr, 0, -1), (outcome.w_reinforce, 0.1, -1)]
)
def test_outcomes_have_no_baseline(method, right, wrong):
    view = make_view(unscored=UNSCORED)
    found = method(view, view.advantages)
    pairs = zip(view.right.tolist(), view.wrong.tolist(), strict=True)
    assert found.tolist() == pytest.approx([right if r else wrong if w else 0 for r, w in pairs])
    assert view.advantages[:SIZE].eq(0).all()  # the group has no right response and still trains
    assert found.dtype == torch.float32 and method.method.revives


# arXiv 2509.22611


@pytest.mark.parametrize("k", ["0", "0.07", "0.4", "0.5", "0.6", "1"])
@pytest.mark.parametrize("size", [2, 4, 5, 8, 100])
@pytest.mark.parametrize("kind", ["binary", "real"])
def test_quantile_advantages_are_measured_from_the_smallest_reward_that_k_of_the_group_reach(kind, size, k):
    """Groups with none, all and some right, ties, responses without a reward, and a group with one reward alone."""
    draws = torch.Generator().manual_seed(size)
    rewards = torch.rand(7, size, generator=draws)
    rewards = rewards.round() if kind == "binary" else (20 * rewards - 10).round() / 7
    rewards[0], rewards[1] = rewards.min(), rewards.max()
    rewards[2, : size // 2] = math.nan
    rewards[3, 1:] = math.nan
    rewards[4] = math.nan
    order = torch.randperm(7 * size, generator=draws)
    view = replace(
        make_view(),
        mask=torch.ones(7 * size, 3, dtype=torch.bool),
        order=order,
        responses=7 * size,
        group_size=size,
        rewards=rewards.flatten()[order],
    )
    expected = []
    for group in rewards.double().tolist():
        scored = [reward for reward in group if not math.isnan(reward)]
        reached = [r for r in scored if Fraction(sum(x <= r for x in scored), len(scored)) >= Fraction(k)]
        mean = math.fsum(scored) / max(len(scored), 1)
        std = math.sqrt(math.fsum((x - mean) ** 2 for x in scored) / max(len(scored) - 1, 1))
        expected += [0.0 if math.isnan(r) else (r - min(reached)) / (std + 1e-4) for r in group]
    found = quantile_advantage.qae(view, torch.full((7 * size,), 9.0), k=float(k))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([expected[place] for place in order.tolist()], rel=1e-5, abs=1e-7)
    if kind == "binary":  # the paper's rule: hard groups train right responses, easy groups wrong ones
        for group, own in zip(rewards.tolist(), torch.tensor(expected).view(7, size).tolist(), strict=True):
            accuracy = Fraction(sum(r == 1 for r in group), size)
            if not any(map(math.isnan, group)) and 0 < Fraction(k):
                is_hard = accuracy <= 1 - Fraction(k)
                assert all((a == 0) == ((r == 0) == is_hard) for a, r in zip(own, group, strict=True))


# arXiv 2505.22617


def covariances(view):
    """Of all tokens of the step, in float64 and by loops."""
    tokens = each_token(view)
    advantages = {p: view.advantages[p[0]].item() for p in tokens}
    logps = {p: view.logps[p].item() for p in tokens}
    mean_a = math.fsum(advantages.values()) / len(tokens)
    mean_l = math.fsum(logps.values()) / len(tokens)
    return {p: (advantages[p] - mean_a) * (logps[p] - mean_l) for p in tokens}


def is_clipped(view, place):
    ratio = math.exp(view.logps[place].item() - view.old_logps[place].item())
    advantage = view.advantages[place[0]].item()
    return (advantage > 0 and ratio > 1.28) or (advantage < 0 and ratio < 0.8)


def test_clip_cov_draws_among_tokens_of_high_covariance():
    view = make_view(width=40, seed=5)
    cov = covariances(view)
    assert_tokens(view, covariance.covariances(view), cov)
    band = {p for p in cov if 1 < cov[p] < 5}
    candidates = {p for p in band if not is_clipped(view, p)}
    assert len(candidates) < len(band) and any(value > 5 for value in cov.values())
    for share, number in ((0.05, int(0.05 * len(cov))), (1e-6, 1), (1.0, len(candidates))):
        weights = covariance.clip_cov(view, share=share)
        dropped = {p for p in cov if weights[p] == 0}
        assert dropped <= candidates and len(dropped) == number and weights[view.mask].unique().tolist() == [0, 1]
    drawn = [covariance.clip_cov(replace(view, seed=seed), share=0.02) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_the_number_of_drawn_tokens_is_that_of_the_decimal_share():
    view = make_view(width=40)
    n = int(view.mask.sum())
    share = 0.07 if n >= 100 else 1.0
    assert covariance.share_of_tokens(share, view) == math.floor(Fraction("0.07") * n)
    assert math.floor(0.29 * 100) == 28 and Fraction(repr(0.29)) * 100 == 29


def test_kl_cov_has_the_gradient_of_its_loss():
    view = make_view(width=40, seed=2)
    cov = covariances(view)
    informative = [p for p in cov if view.advantages[p[0]] != 0]
    top = sorted(informative, key=lambda p: -cov[p])[: int(0.05 * len(cov))]

    def paper(logps):
        ratio = torch.exp(logps - view.old_logps.double())
        losses = [-view.advantages[i].double() * ratio[i, t] for i, t in cov]
        added = [0.7 * (logps[i, t] - view.old_logps[i, t].double()).abs() for i, t in top]
        return torch.stack(losses + added).sum()

    shaped = covariance.kl_cov(view, view.advantages, share=0.05, coefficient=0.7)
    found = gradient(view, lambda logps: surrogate(view, logps, 1.0, shaped, low=1.0, high=1e6))
    torch.testing.assert_close(found, gradient(view, paper), rtol=1e-5, atol=1e-6)


def test_kl_cov_adds_nothing_to_the_first_step_of_a_rollout():
    view = make_view()
    view = replace(view, logps=view.old_logps)
    shaped = covariance.kl_cov(view, view.advantages, share=1.0)
    assert torch.equal(shaped[view.mask], view.token_advantages[view.mask])


# arXiv 2602.15620


def test_stapo_silences_improbable_tokens_of_low_entropy():
    view = make_view(width=60, seed=1)
    improbable = {p for p in each_token(view) if math.exp(view.old_logps[p].item()) < 0.002}
    of_right = sorted(view.old_entropies[p].item() for p in improbable if view.right[p[0]])
    place = 0.75 * (len(of_right) - 1)  # between two of them, as torch.quantile
    low, high = of_right[math.floor(place)], of_right[math.ceil(place)]
    threshold = low + (high - low) * (place - math.floor(place))
    expected = {
        p: float(not (p in improbable and view.advantages[p[0]] > 0 and view.old_entropies[p].item() < threshold))
        for p in each_token(view)
    }
    assert 0 < list(expected.values()).count(0) < len(of_right)
    assert_tokens(view, spurious.stapo(view), expected)
    # The quantile is not among all tokens, nor among those of wrong responses.
    others = replace(view, old_entropies=torch.where(view.right.unsqueeze(1), view.old_entropies, 0.0))
    assert torch.equal(spurious.stapo(others)[view.mask], spurious.stapo(view)[view.mask])


def test_stapo_without_improbable_tokens_changes_nothing():
    view = make_view()
    certain = replace(view, old_logps=torch.zeros_like(view.old_logps))
    assert spurious.stapo(certain)[view.mask].eq(1).all()


# arXiv 2508.04349


def z_scores(rewards):
    """By population standard deviation; 0 for rewards that are equal."""
    if not rewards:
        return {}
    mean = math.fsum(rewards.values()) / len(rewards)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards.values()) / len(rewards))
    return {p: (r - mean) / std if std > 1e-6 else 0.0 for p, r in rewards.items()}


def test_gtpo_shapes_tokens_among_the_running_responses():
    view = make_view(width=12, seed=3, unscored=UNSCORED)
    view.mask[SIZE + 2, :3] = True  # the only right response of its group
    view.old_entropies[SIZE + 2, :3] = torch.tensor([1e-17, 3e-16, 0.5])
    expected = {(i, t): 0.0 for i, t in each_token(view) if i in UNSCORED}
    for group in range(len(RIGHT)):
        for is_right in (True, False):
            group_rows = sorted({*range(group * SIZE, (group + 1) * SIZE)} - UNSCORED)
            rows = [i for i in group_rows if view.right[i] == is_right]
            rewards = {}
            for t in range(12):
                running = {i: view.old_entropies[i, t].double().item() for i in rows if view.mask[i, t]}
                pulls = running if is_right else {i: 1 / (h + 1e-8) for i, h in running.items()}
                for i, pull in pulls.items():
                    reward = 1.0 + 0.1 * len(running) * pull / math.fsum(pulls.values())
                    rewards[i, t] = reward if is_right else -reward
            expected |= z_scores(rewards)
    found = entropy.gtpo(view, view.advantages)
    assert_tokens(view, found, expected, rtol=1e-4)
    # The only right response of the second group has no advantage; the group of wrong ones, which had none, has.
    assert found[SIZE + 2][view.mask[SIZE + 2]].eq(0).all() and found[:SIZE][view.mask[:SIZE]].ne(0).any()
    assert (found[view.mask & view.right.unsqueeze(1)] < 0).any()
    # Rewards that are equal but for rounding errors have no z-scores, and a1 cancels.
    assert entropy.gtpo(view, view.advantages, alpha_2=1e-8).eq(0).all()
    torch.testing.assert_close(entropy.gtpo(view, view.advantages, alpha_1=7.0), found, rtol=1e-4, atol=1e-6)


def test_grpo_s_shapes_whole_responses():
    view = make_view(width=12, seed=3, unscored=UNSCORED)
    expected = [0.0] * view.responses
    for group in range(len(RIGHT)):
        for is_right in (True, False):
            means = {}
            for i in sorted({*range(group * SIZE, (group + 1) * SIZE)} - UNSCORED):
                tokens = [view.old_entropies[i, t].double().item() for t in range(12) if view.mask[i, t]]
                if tokens and view.right[i] == is_right:
                    means[i] = math.fsum(tokens) / len(tokens)
            pulls = means if is_right else {i: 1 / (h + 1e-8) for i, h in means.items()}
            rewards = {i: 1.0 + 0.1 * len(pulls) * pull / math.fsum(pulls.values()) for i, pull in pulls.items()}
            scores = z_scores(rewards if is_right else {i: -r for i, r in rewards.items()})
            for i, score in scores.items():
                expected[i] = score
    found = entropy.grpo_s(view, view.advantages)
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6) and found.dtype == torch.float32


def test_grpo_s_with_a_loss_per_response_has_the_gradient_of_the_mean_of_ratios():
    """Where nothing is clipped, which is what its documentation claims."""
    view = make_view(width=12, seed=4)
    advantages = entropy.grpo_s(view, view.advantages).double()
    lengths = view.mask.sum(1)

    def paper(logps):  # -mean of r over the response, times A
        ratio = torch.exp(logps - view.old_logps.double().nan_to_num())
        means = torch.where(view.mask, ratio, 0.0).sum(1) / lengths.clamp(min=1)
        return -(means * advantages).sum()

    def trl(logps):
        rows = advantages.unsqueeze(1).expand_as(view.mask)
        return surrogate(view, logps, 1 / lengths.clamp(min=1).unsqueeze(1), rows, low=1.0, high=1e6)

    torch.testing.assert_close(gradient(view, trl), gradient(view, paper))


# arXiv 2506.14758


def test_the_entropy_shaped_advantage_is_a_weight():
    view = make_view(width=40, seed=6)
    weights = entropy.entropy_shaped(view)
    expected = {}
    for i, t in each_token(view):
        advantage = view.advantages[i].item()
        shaped = advantage + min(0.4 * view.entropies[i, t].double().item(), abs(advantage) / 2)
        expected[i, t] = shaped / advantage if advantage else 1.0
    assert_tokens(view, weights, expected)
    assert {round(v, 6) for v in expected.values()} >= {0.5, 1.0, 1.5}  # the bound is reached on both sides
    values = torch.zeros_like(view.logps)
    for place, factor in expected.items():
        values[place] = factor * view.advantages[place[0]]
    found = gradient(view, lambda logps: surrogate(view, logps, weights.double()))
    shaped = gradient(view, lambda logps: surrogate(view, logps, 1.0, values))
    torch.testing.assert_close(found, shaped, rtol=1e-5, atol=1e-7)


# arXiv 2603.19835


def fipo_weights(view, high_only, half_life=32.0, bound=0.2):
    expected = {}
    for i in range(view.responses):
        length, advantage = int(view.mask[i].sum()), view.advantages[i].item()
        change = [(view.logps[i, t] - view.old_logps[i, t]).item() for t in range(length)]
        extreme = [math.exp(x) > 10 for x in change]
        for t in range(length):
            future = math.fsum(2 ** (-(k - t) / half_life) * change[k] for k in range(t, length) if not extreme[k])
            factor = min(max(math.exp(future), 1.0 if high_only else 1 - bound), 1 + bound)
            if extreme[t] and advantage < 0:
                factor = min(max(factor, 0.8), 1.0)
            expected[i, t] = factor * (advantage >= 0 or sum(extreme) <= 1)
    return expected


@pytest.mark.parametrize("high_only", [True, False])
def test_fipo_weighs_by_the_change_on_later_tokens(high_only):
    view = make_view(width=300, seed=7)
    logps = view.old_logps + (view.logps - view.old_logps) * 0.1
    negative = [i for i in range(view.responses) if view.advantages[i] < 0 and view.mask[i].sum() > 4]
    positive = [i for i in range(view.responses) if view.advantages[i] > 0 and view.mask[i].sum() > 4]
    for i, places in ((negative[0], [1]), (negative[1], [0, 3]), (positive[0], [0, 2])):
        logps[i, places] = view.old_logps[i, places] + 2.4  # r is 11
    view = replace(view, logps=logps)
    expected = fipo_weights(view, high_only)
    found = ratios.fipo(view, high_only=high_only)
    assert_tokens(view, found, expected)
    assert found[negative[1]][view.mask[negative[1]]].eq(0).all() and found[positive[0], 0] > 0
    assert {1.0, 1.2} <= {round(v, 6) for v in expected.values()} and (0.8 in expected.values()) == (not high_only)
    assert any(1 < value < 1.2 for value in expected.values())
    weighted = gradient(view, lambda x: surrogate(view, x, found.double(), delta=10.0))
    times_a = gradient(view, lambda x: surrogate(view, x, 1.0, view.token_advantages * found, delta=10.0))
    torch.testing.assert_close(weighted, times_a, rtol=1e-5, atol=1e-7)


# arXiv 2512.05591


def test_erc_drops_tokens_whose_entropy_has_changed():
    view = make_view(width=40)
    expected = {}
    for p in each_token(view):
        ratio = (view.entropies[p].double().item() + 1e-8) / (view.old_entropies[p].double().item() + 1e-8)
        expected[p] = float(0.95 < ratio < 1.05)
    assert 0.2 < sum(expected.values()) / len(expected) < 0.8
    assert_tokens(view, ratios.erc(view), expected)


# arXiv 2510.06062 and 2507.15778


def aspo_factor(view, place, limit=3.0):
    """The factor of A in the gradient, without the clip of the surrogate."""
    ratio = math.exp(view.logps[place].double().item() - view.old_logps[place].double().item())
    return min(1 / ratio if view.advantages[place[0]] > 0 else ratio, limit)


def test_aspo_gives_positive_tokens_the_inverse_ratio():
    view = make_view(width=40, seed=8)
    view = replace(view, logps=view.old_logps + 3 * (view.logps - view.old_logps))  # r from 0.17 to 6
    found = gradient(view, lambda logps: surrogate(view, logps, ratios.aspo(view).double(), low=0.4, high=0.4))
    expected = []
    for p in each_token(view):
        advantage, ratio = view.advantages[p[0]].item(), math.exp((view.logps[p] - view.old_logps[p]).item())
        clipped = (advantage > 0 and ratio > 1.4) or (advantage < 0 and ratio < 0.6)
        expected.append(0.0 if clipped else -advantage * aspo_factor(view, p))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    sizes = [aspo_factor(view, p) for p in each_token(view)]
    assert max(sizes) == 3 and (found * view.token_advantages[view.mask] <= 0).all()  # never the wrong sign


def test_archer_clips_tokens_of_low_entropy_more_tightly():
    view = make_view(width=40, seed=9)
    view = replace(view, logps=view.old_logps + 1.5 * (view.logps - view.old_logps))

    def paper(logps):
        """Own limits for every token, from the quantile of its response."""
        terms = []
        for i in range(view.responses):
            entropies = view.entropies[i][view.mask[i]].double()
            if len(entropies):
                low = entropies <= entropies.quantile(0.8)
                limit = torch.where(low, 0.2, 0.5)
                ratio = torch.exp(logps[i, : len(low)] - view.old_logps[i, : len(low)].double())
                advantage = view.advantages[i].double()
                terms.append(-torch.min(ratio * advantage, ratio.clamp(1 - limit, 1 + limit) * advantage).sum())
        return torch.stack(terms).sum()

    weights = ratios.archer_clip(view)
    assert 0 < weights[view.mask].mean() < 1
    found = gradient(view, lambda logps: surrogate(view, logps, weights.double(), low=0.5, high=0.5))
    torch.testing.assert_close(found, gradient(view, paper), rtol=1e-6, atol=1e-9)


def test_weights_of_a_first_step_are_one():
    view = make_view(width=40)
    view = replace(view, logps=view.old_logps, entropies=view.old_entropies)
    for method in (ratios.fipo, ratios.erc, ratios.aspo, ratios.archer_clip):
        assert method(view)[view.mask].eq(1).all(), method.__name__


# arXiv 2509.03646

PHRASES = ["let's try another way", "on the other hand", "wait, is this right"]
TEXTS = [
    "Let's try another way. Then on the other hand 7",
    "let's try another ways, let's try another\nlet's try another way",  # only the last is an occurrence
    "Wait, is this right? wait, is this right",
    "on the other on the other hand hand",
]


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level BPE, as Qwen's, with merges learnt from the texts."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(TEXTS * 20, trainers.BpeTrainer(vocab_size=320, initial_alphabet=letters))
    return PreTrainedTokenizerFast(tokenizer_object=model)


def hicra_view(tokenizer):
    encoded = [tokenizer(text, return_offsets_mapping=True) for text in TEXTS]
    width = max(len(e["input_ids"]) for e in encoded) + 3
    ids = torch.full((len(TEXTS), width), encoded[1]["input_ids"][1])
    mask = torch.zeros(len(TEXTS), width, dtype=torch.bool)
    for row, e in enumerate(encoded):
        n = len(e["input_ids"])
        ids[row, :n], mask[row, :n] = torch.tensor(e["input_ids"]), True
    advantages = torch.tensor([1.5, -2.0, 0.0, 0.5])
    view = StepView(mask, torch.arange(4), 4, 2, advantages, ALONE, completion_ids=ids, tokenizer=tokenizer)
    return view, [e["offset_mapping"] for e in encoded]


def test_hicra_favours_the_tokens_of_the_phrases(tokenizer, tmp_path):
    file = tmp_path / "phrases.txt"
    file.write_text("# A comment.\n\n" + "\n".join(PHRASES) + "\n")
    view, offsets = hicra_view(tokenizer)
    expected = {}
    for row, text in enumerate(TEXTS):
        inside = set()  # characters of whole phrases, found in the text and not in its tokens
        for phrase in PHRASES:
            for at in range(len(text)):
                end = at + len(phrase)
                whole = not text[end : end + 1].isalpha() and not text[at - 1 : at].isalpha()
                if text[at:end].lower() == phrase and whole:
                    inside |= set(range(at, end))
        for t, (start, end) in enumerate(offsets[row]):
            planning_token = bool(inside & set(range(start, end)))
            advantage = view.advantages[row].item()
            expected[row, t] = advantage + 0.2 * abs(advantage) * planning_token
    assert_tokens(view, planning.hicra(view, view.advantages, ngrams=str(file)), expected)
    assert {1.5, 1.8, -2.0, -1.6, 0.0, 0.5, 0.6} == {round(v, 6) for v in expected.values()}
    shorter = replace(view, mask=view.mask & (torch.arange(view.mask.size(1)) < 3))
    cut = planning.hicra(shorter, view.advantages, ngrams=str(file))
    assert torch.equal(cut[0, :3], view.token_advantages[0, :3])  # tokens outside of the mask complete no phrase


@pytest.mark.parametrize(
    "content, reason", [(None, "cannot be read"), (b"# none\n", "has no phrase"), (b"\xff\xfe", "is not UTF-8")]
)
def test_a_bad_file_of_phrases_is_refused(tmp_path, content, reason):
    file = tmp_path / "phrases.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        planning.read_phrases(str(file))


def test_the_recipes_phrases_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(planning.read_phrases("recipes/planning_phrases.txt")) > 30


def test_a_phrase_without_tokens_is_refused(tmp_path):
    words = Tokenizer(models.WordLevel({"take": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    file = tmp_path / "phrases.txt"
    file.write_text("take\n")
    assert planning.token_ngrams(str(file), tokenizer) == ((0,),)  # "Take" is no word of this tokenizer
    other = tmp_path / "other.txt"
    other.write_text("take it\n")
    with pytest.raises(ValueError, match="cannot write the phrase 'take it'"):
        planning.token_ngrams(str(other), tokenizer)

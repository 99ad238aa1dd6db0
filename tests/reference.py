"""The method in float64, written out token by token, sharing no code with the package. Tensors are (B, T)."""

import math

import torch


def score(model, prompt_ids, prompt_mask, completion_ids, completion_mask, temperature):
    """Log-probabilities of the completion tokens and entropies at their positions, from the full logits."""
    ids = torch.cat([prompt_ids, completion_ids], dim=1)
    mask = torch.cat([prompt_mask, completion_mask], dim=1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, prompt_ids.size(1) - 1 : -1] / temperature
    p = logits.log_softmax(-1)
    logps = p.gather(-1, completion_ids.unsqueeze(-1)).squeeze(-1)
    return logps, -(p.exp() * p).sum(-1)


def top(entropies, mask, rho, places):
    """The ceil(n * rho) masked tokens of highest entropy as a bool mask, by sorting; ties go to the smaller place."""
    entropies = entropies.detach()
    cells = [(i, t) for i in range(mask.size(0)) for t in range(mask.size(1)) if mask[i, t]]
    cells.sort(key=lambda c: (-float(entropies[c]), int(places[c])))
    kept = torch.zeros_like(mask, dtype=torch.bool)
    for cell in cells[: math.ceil(round(len(cells) * rho, 9))]:
        kept[cell] = True
    return kept


def objective(logps, old_logps, advantages, kept, eps_low, eps_high):
    """-J of arXiv 2506.01939, Eq. 6, over one batch: the mean of the clipped surrogate over the kept tokens.

    Advantages are (B,) or (B, T).
    """
    total, count = 0.0, 0
    for i in range(logps.size(0)):
        for t in range(logps.size(1)):
            if kept[i, t]:
                ratio = torch.exp(logps[i, t] - old_logps[i, t])
                clipped = torch.clamp(ratio, 1 - eps_low, 1 + eps_high)
                advantage = advantages[i] if advantages.dim() == 1 else advantages[i, t]
                total = total - torch.minimum(ratio * advantage, clipped * advantage)
                count += 1
    return total / count

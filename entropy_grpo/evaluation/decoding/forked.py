"""Forked decoding: one temperature at forks, another elsewhere (arXiv 2506.01939, Eq. 5).

A token is drawn at T_high if the entropy H_t of the model's distribution is above the threshold, and at T_low
otherwise. H_t is always the entropy at temperature 1 over all tokens. The paper's threshold of 0.672 nats (the 80th
percentile of Qwen3-8B's tokens) was measured with this entropy, which does not depend on T_high and T_low. The
processors therefore have to see the model's own logits, before temperature, top-k or top-p.

`ForkedTemperature` is for transformers; `decoding.vllm.ForkedTemperature` is for vLLM.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

# Logits per chunk of rows; chunks bound the memory of the float32 copies from which entropies are computed.
ELEMENTS = 2**25


@dataclass(frozen=True)
class Temperatures:
    """Temperatures of forked decoding; a temperature of 0 takes the most probable token.

    Attributes:
        t_high: temperature if the entropy is above the threshold.
        t_low: temperature otherwise.
        threshold: threshold of the entropy, nats.
    """

    t_high: float
    t_low: float
    threshold: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value!r}: it must be a finite number, 0 or more.")


def entropies(logits: Tensor) -> Tensor:
    """Return the entropy in nats of each row of logits at temperature 1: (n, V) -> (n,) float32.

    A logit of -inf is a token that cannot be drawn.
    """
    values = torch.empty(len(logits), device=logits.device)
    rows = max(1, ELEMENTS // logits.size(-1))
    for start in range(0, len(logits), rows):
        log_p = logits[start : start + rows].float().log_softmax(-1)
        values[start : start + rows] = torch.special.entr(log_p.exp()).sum(-1)
    return values


def scale(logits: Tensor, t_high: Tensor, t_low: Tensor, threshold: Tensor) -> Tensor:
    """Return float32 logits divided by the temperature of each row; sampling them at temperature 1 is Eq. 5.

    Args:
        logits: (n, V) logits of the model, at temperature 1.
        t_high, t_low, threshold: (n,) or one number each.
    """
    temperature = torch.where(entropies(logits) > threshold, t_high, t_low).float().unsqueeze(-1)  # (n, 1)
    scaled = logits.float() / temperature.masked_fill(temperature == 0, 1.0)
    # Greedy rows take the first of equal logits, like argmax.
    greedy = torch.full_like(scaled, -torch.inf).scatter_(-1, scaled.argmax(-1, keepdim=True), 0.0)
    return torch.where(temperature == 0, greedy, scaled)


class ForkedTemperature(LogitsProcessor):
    """Forked decoding with `generate`:

        model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0,
                       logits_processor=[ForkedTemperature(Temperatures(t_high=1.2, t_low=1.0, threshold=0.672))])

    `generate` applies the processor before its own temperature, top-k and top-p, which act on the scaled logits.
    """

    def __init__(self, temperatures: Temperatures):
        self.temperatures = {name: torch.tensor(float(value)) for name, value in asdict(temperatures).items()}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scale(scores, **{name: value.to(scores.device) for name, value in self.temperatures.items()})

"""Checks of settings against TRL's losses: a setting that the loss reads in another way, or ignores, is refused."""

from typing import Any

from ..objective.objective import CLIPPING_LOSSES
from ..registry import one_of

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
# Importance sampling level that a loss is made for. With another level TRL only warns, and computes another loss.
LEVELS = {"luspo": "sequence", "vespo": "token"}


def check_loss(args: Any) -> None:
    """Refuse settings that do not fit the loss.

    Args:
        args: a `trl.GRPOConfig`.

    Raises:
        ValueError: a setting does not fit. The message names the setting, its value and a value that fits.
    """
    loss = args.loss_type
    one_of("loss_type", loss, LOSSES)  # TRL notices an unknown loss only at the first optimiser step
    if args.delta is not None and loss not in CLIPPING_LOSSES:
        raise ValueError(
            f"delta is {args.delta} but loss_type is {loss!r}, which does not read it: set delta to null, or choose "
            f"loss_type among {', '.join(CLIPPING_LOSSES)}."
        )
    level = LEVELS.get(loss)
    if level is not None and args.importance_sampling_level != level:
        raise ValueError(
            f"importance_sampling_level is {args.importance_sampling_level!r} but loss_type is {loss!r}: set "
            f"importance_sampling_level to {level!r}."
        )
    mode = args.vllm_importance_sampling_mode
    if loss == "vespo" and args.use_vllm and args.vllm_importance_sampling_correction and "token" not in mode:
        raise ValueError(
            f"vllm_importance_sampling_mode is {mode!r} but loss_type is 'vespo', which corrects each token: set "
            "vllm_importance_sampling_mode to token_truncate or token_mask."
        )

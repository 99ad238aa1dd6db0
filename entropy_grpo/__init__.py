"""RLVR that trains on the tokens that matter. Importing this package loads neither torch nor TRL."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config.grpo import EntropyForkGRPOConfig
    from .training.trainer import EntropyForkGRPOTrainer

__all__ = ["EntropyForkGRPOConfig", "EntropyForkGRPOTrainer"]

_MODULES = {"EntropyForkGRPOConfig": "config.grpo", "EntropyForkGRPOTrainer": "training.trainer"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)

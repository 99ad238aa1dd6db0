"""Settings of a recipe's model and adapters. Settings that TRL would ignore silently are refused."""

from dataclasses import dataclass

from trl import ModelConfig

from ..registry import refuse_unread
from .unread import READ_IF

# Dtypes of weights that are trained, or that are read.
DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclass
class CheckedModelConfig(ModelConfig):
    """`trl.ModelConfig` that refuses settings that TRL would ignore.

    Parameters:
        lora_dropout: must be 0, because rollouts are drawn without dropout and the loss would score them with dropout.
    """

    lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit are both true: set one of them to false.")
        if self.is_quantised and not self.use_peft:
            name = "load_in_4bit" if self.load_in_4bit else "load_in_8bit"
            raise ValueError(f"{name} is true, but quantised weights cannot be trained: set use_peft: true.")
        refuse_unread(self, READ_IF)
        if self.dtype not in (None, "auto", *DTYPES):
            raise ValueError(f"dtype is {self.dtype!r}: choose auto, {', '.join(DTYPES)}.")
        for name in ("lora_r", "lora_alpha"):  # with an alpha of 0 no adapter would change its model
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more.")
        if self.load_in_4bit and self.dtype in (None, "auto"):
            raise ValueError(
                f"dtype is {self.dtype!r}, but load_in_4bit needs a dtype to compute in: set it to bfloat16, float16 "
                "or float32."
            )
        if self.lora_dropout != 0:
            raise ValueError(
                f"lora_dropout is {self.lora_dropout:g}, but rollouts are drawn without dropout, so that every ratio "
                "would be biased: set lora_dropout to 0 for training."
            )
        if self.lora_task_type != "CAUSAL_LM":
            raise ValueError(f"lora_task_type is {self.lora_task_type!r}, but a policy is a CAUSAL_LM: leave it out.")
        super().__post_init__()
        targets = self.lora_target_modules
        if isinstance(targets, str) and targets.isidentifier():
            # TRL turns a list of one name into a pattern, and a layer's name as a pattern matches no layer.
            self.lora_target_modules = [targets]

    @property
    def is_quantised(self) -> bool:
        """True if the base's linear layers have 4 or 8 bits per weight."""
        return self.load_in_4bit or self.load_in_8bit

"""Settings of a recipe's model and adapters, with checks of settings that TRL would ignore silently."""

from dataclasses import dataclass, fields

from trl import ModelConfig

# Prefixes of settings that are read only if another setting is made.
WITH_LORA = ("lora_", "use_rslora", "use_dora")


WITH_4_BIT = ("bnb_4bit_", "use_bnb_nested_quant")


@dataclass
class CheckedModelConfig(ModelConfig):
    """`trl.ModelConfig` that refuses settings that TRL would ignore.

    Parameters:
        lora_dropout: must be 0, because rollouts are drawn without dropout, whereas the loss would score them with it.
    """

    lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit are both true: choose one.")
        if self.is_quantised and not self.use_peft:
            name = "load_in_4bit" if self.load_in_4bit else "load_in_8bit"
            raise ValueError(f"{name} is true, but quantised weights cannot be trained: add use_peft: true.")
        if not self.use_peft:
            self._refuse_unread(WITH_LORA, "use_peft: true")
        if not self.load_in_4bit:
            self._refuse_unread(WITH_4_BIT, "load_in_4bit: true")
        if self.load_in_4bit and self.dtype in (None, "auto"):
            raise ValueError(
                f"dtype is {self.dtype!r}, but load_in_4bit computes in the dtype that it names: write bfloat16, "
                "float16 or float32."
            )
        if self.lora_dropout != 0:
            raise ValueError(
                f"lora_dropout is {self.lora_dropout:g}: rollouts are drawn without dropout, so every ratio would be "
                "off; set lora_dropout to 0 for training."
            )
        if self.lora_task_type != "CAUSAL_LM":
            raise ValueError(f"lora_task_type is {self.lora_task_type!r}: a policy is a CAUSAL_LM; leave it out.")
        super().__post_init__()
        targets = self.lora_target_modules
        if isinstance(targets, str) and targets.isidentifier():
            # TRL turns a list of one name into a pattern, and a bare layer name matches no layer as a pattern.
            self.lora_target_modules = [targets]

    def _refuse_unread(self, prefixes: tuple[str, ...], needed: str) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name.startswith(prefixes) and value != setting.default:
                raise ValueError(f"{setting.name} is {value!r}, which nothing reads without {needed}.")

    @property
    def is_quantised(self) -> bool:
        """True if the base's linear layers have 4 or 8 bits per weight."""
        return self.load_in_4bit or self.load_in_8bit

"""Settings of a model that nothing reads without another setting; without TRL, for readers of recipes."""

from ..registry import ReadIf

READ_IF = (
    ReadIf(("lora_*", "use_rslora", "use_dora"), "use_peft", bool, "without use_peft: true"),
    ReadIf(("bnb_4bit_*", "use_bnb_nested_quant"), "load_in_4bit", bool, "without load_in_4bit: true"),
)

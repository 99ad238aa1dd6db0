"""End of a run, shared by GRPO and SFT: final save and shutdown."""

import gc

from accelerate.utils import is_peft_model
from transformers import Trainer
from trl import GRPOTrainer


def save_whole(trainer: Trainer) -> None:
    """Save the model in the format of transformers and in its compute dtype. The trainer cannot be used afterwards.

    Checkpoints may be sharded and hold float32 weights. Each process casts its shard before the weights are gathered.
    `trainer_state.json` beside the model has its step, which the log exceeds if the run is continued.
    """
    if trainer.args.bf16 and not is_peft_model(trainer.model):
        trainer.model.bfloat16()
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    trainer.save_state()


def finish(trainer: Trainer) -> None:
    """Leave the process group on all ranks together, after every reference to it is dropped.

    If one rank leaves early, gloo aborts or hangs on the other ranks. A DDP model that outlives its group aborts the
    interpreter at exit.
    """
    accelerator = trainer.accelerator
    accelerator.wait_for_everyone()
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    gc.collect()
    if isinstance(trainer, GRPOTrainer) and trainer.use_vllm and trainer.vllm_mode == "colocate":
        # By itself vLLM would leave its parts of the process group when the interpreter ends, after the group.
        trainer.vllm_generation.llm.llm_engine.engine_core.shutdown()
    accelerator.end_training()

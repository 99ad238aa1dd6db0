"""What a recipe with `trainer: sft` may set: TRL's fields plus where a teacher's responses come from."""

import os
from dataclasses import dataclass, field

from trl import SFTConfig

from .adapters import CheckedModelConfig
from .config import check_decontamination, check_grading, check_template


@dataclass
class SFTRunConfig:
    """Which responses a cold start imitates.

    Parameters:
        trainer: `sft`.
        accelerate_config: as in `RunConfig`.
        dataset_name: a `.jsonl` / `.parquet` file or a Hub id with a row per response of the teacher, such as the
            `BENCHMARK.parquet` of `entropy-grpo eval`.
        dataset_config, dataset_revision, dataset_train_split: of the Hub id.
        prompt_column, response_column, solution_column: the columns with the problem, the response and the reference.
        prompt_template: what to put around a problem, one of `prompts.TEMPLATES`; null for nothing. The same as in the
            training that follows.
        num_responses: imitate so many right responses, one per problem; null for all that there are.
        decontaminate_against: as in `RunConfig`.
        grading_seconds, grading_total_seconds: as in `RunConfig`; a response is right if what it boxes is.
    """

    trainer: str = "sft"
    accelerate_config: str = "none"
    dataset_name: str | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None
    dataset_train_split: str = "train"
    prompt_column: str = "prompt"
    response_column: str = "response"
    solution_column: str = "solution"
    prompt_template: str | None = None
    num_responses: int | None = None
    decontaminate_against: list[str] = field(default_factory=list)
    grading_seconds: float = 5.0
    grading_total_seconds: float = 120.0

    def __post_init__(self) -> None:
        if not self.dataset_name:
            raise ValueError("dataset_name is missing: name a file or a Hub id with a teacher's responses.")
        if self.num_responses is not None and self.num_responses < 1:
            raise ValueError(f"num_responses is {self.num_responses}: it must be 1 or more, or null for all.")
        check_template(self.prompt_template)
        check_decontamination(self.decontaminate_against)
        check_grading(self.grading_seconds, self.grading_total_seconds)


@dataclass
class TeacherSFTConfig(SFTConfig):
    """`trl.SFTConfig` whose batch is stated by what it holds.

    Parameters:
        responses_per_step: responses of an optimiser step, on however many processes: `gradient_accumulation_steps`
            follows from it and `per_device_train_batch_size`.
    """

    responses_per_step: int | None = field(
        default=None, metadata={"help": "Responses of an optimiser step, over all processes; accumulation follows."}
    )

    def __post_init__(self) -> None:
        if self.responses_per_step is not None:
            processes = int(os.environ.get("WORLD_SIZE", "1"))
            micro = self.per_device_train_batch_size * processes
            accumulation, rest = divmod(self.responses_per_step, micro)
            if rest or not accumulation:
                raise ValueError(
                    f"responses_per_step is {self.responses_per_step}, but per_device_train_batch_size is "
                    f"{self.per_device_train_batch_size} on {processes} processes: choose a multiple of {micro}."
                )
            if self.gradient_accumulation_steps not in (1, accumulation):
                raise ValueError(
                    f"gradient_accumulation_steps is {self.gradient_accumulation_steps}, but it follows from "
                    f"responses_per_step, which makes it {accumulation}: leave it out."
                )
            self.gradient_accumulation_steps = accumulation
        super().__post_init__()


# All that a recipe may set.
CLASSES = (SFTRunConfig, TeacherSFTConfig, CheckedModelConfig)

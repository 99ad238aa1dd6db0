"""Settings of a recipe with `trainer: sft`: TRL's fields and the source of a teacher's responses."""

from dataclasses import dataclass, field

from trl import SFTConfig

from ..data.config import SourceConfig
from ..grading.config import GradingConfig
from ..models.config import CheckedModelConfig
from ..registry import refuse_unread
from ..runs.processes import process_count
from .bounds import check_bounds
from .unread import RULES


@dataclass
class SFTRunConfig(SourceConfig, GradingConfig):
    """Teacher responses that a cold start imitates.

    Parameters, beside the parameters of `SourceConfig` and `GradingConfig`:
        trainer: `sft`.
        accelerate_config: as in `RunConfig`.
        dataset_name: a file (`.jsonl`, `.json`, `.parquet`, `.csv`) or a Hub id with a row per response of the
            teacher, such as the `BENCHMARK.parquet` of `entropy-grpo eval`.
        response_column: column with the response. A response is right if its boxed answer is right.
        prompt_template: the same template as in the training that follows.
        num_responses: number of right responses to imitate, at most one per problem, drawn at random with the run's
            seed. null imitates all of them.
        allow_changes: as in `EntropyForkGRPOConfig`.
    """

    trainer: str = "sft"
    accelerate_config: str = "none"
    response_column: str = "response"
    num_responses: int | None = None
    allow_changes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.dataset_name:
            raise ValueError("dataset_name is missing: set it to a file or a Hub id with a teacher's responses.")
        if self.num_responses is not None and self.num_responses < 1:
            raise ValueError(
                f"num_responses is {self.num_responses}: it must be 1 or more, or null for all right ones."
            )
        self.check_source()
        self.check_grading()


@dataclass
class TeacherSFTConfig(SFTConfig):
    """`trl.SFTConfig` with a batch size in responses.

    Parameters:
        responses_per_step: responses of an optimiser step, over all processes. With `per_device_train_batch_size` it
            determines `gradient_accumulation_steps`.
    """

    responses_per_step: int | None = field(
        default=None,
        metadata={"help": "Responses of an optimiser step over all processes; determines gradient accumulation."},
    )

    def __post_init__(self) -> None:
        if self.responses_per_step is not None:
            processes = process_count()
            micro = self.per_device_train_batch_size * processes
            accumulation, rest = divmod(self.responses_per_step, micro)
            if rest or not accumulation:
                raise ValueError(
                    f"responses_per_step is {self.responses_per_step}, but per_device_train_batch_size is "
                    f"{self.per_device_train_batch_size} on {processes} processes: choose a multiple of {micro}."
                )
            if self.gradient_accumulation_steps not in (1, accumulation):
                raise ValueError(
                    f"gradient_accumulation_steps is {self.gradient_accumulation_steps}, but responses_per_step "
                    f"determines it ({accumulation}): leave it out."
                )
            self.gradient_accumulation_steps = accumulation
        refuse_unread(self, RULES)
        check_bounds(self)
        super().__post_init__()


# Dataclasses whose fields a recipe may set.
CLASSES = (SFTRunConfig, TeacherSFTConfig, CheckedModelConfig)

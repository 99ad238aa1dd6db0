"""Job to plan: a resolved recipe, its measured model, and the trainer's own `Objective`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import offline, recipe
from ..config.batches import limit_vllm
from ..config.grpo import EntropyForkGRPOConfig
from ..config.offline import Resolved
from ..config.recipe import RecipeError
from ..config.run import RunConfig, check_held_out
from ..config.sft import SFTRunConfig, TeacherSFTConfig
from ..config.sharding import Sharding
from ..models.adapters import check_quantised
from ..models.config import CheckedModelConfig
from ..models.load import read_local_config
from ..models.measure import Model, model_of
from ..objective.batching import padding_is_inert
from ..objective.objective import Objective
from ..runs.folder import RUNS
from .options import PlanOptions

ASSUMED_PROMPT = 2048  # tokens of the longest prompt, if neither the recipe nor a task limits it

PLANNED = ("none", "ddp", "fsdp2", "zero3")  # kinds of sharding


@dataclass(frozen=True)
class Lengths:
    """Tokens of sequences.

    Attributes:
        prompt, completion: longest prompt and longest response.
        mean: mean length of a response, if it is given.
        assumed: whether nothing limits the prompts, so that `ASSUMED_PROMPT` stands for their length.
    """

    prompt: int
    completion: int
    mean: float | None
    assumed: bool

    @property
    def whole(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt + self.completion

    @property
    def expected(self) -> float:
        """Tokens of a response: the mean, or else the maximum."""
        return self.mean or self.completion


@dataclass(frozen=True)
class Job(Resolved):
    """Resolved recipe on its machines, with its measured model.

    In a cold start (`trainer: sft`) the response stands for the whole sequence, and there is no `objective`.

    Attributes:
        options, words: recipe, options of the plan, and overrides.
        policy: the model with its adapters.
        objective: the trainer's decisions.
        lengths: lengths of sequences.
        problems: number of training problems, if it is known.
    """

    options: PlanOptions
    words: tuple[str, ...]
    policy: Model
    objective: Objective | None
    lengths: Lengths
    problems: int | None

    @property
    def grpo(self) -> EntropyForkGRPOConfig:
        """The arguments of a recipe that samples rollouts. A cold start has none."""
        assert isinstance(self.args, EntropyForkGRPOConfig)
        return self.args

    @property
    def shards(self) -> int:
        """Number of GPUs that share one copy of weights, gradients and optimiser states."""
        return self.processes if self.sharding.shards else 1

    @property
    def uses_vllm(self) -> bool:
        """True if vLLM generates the responses."""
        return self.objective is not None and self.grpo.use_vllm

    @property
    def colocates(self) -> bool:
        """True if vLLM runs on the training GPUs."""
        return self.uses_vllm and self.grpo.vllm_mode == "colocate"

    @property
    def serves(self) -> bool:
        """True if vLLM runs on a server of its own."""
        return self.uses_vllm and not self.colocates

    @property
    def per_device(self) -> int:
        """Responses of a micro-batch on one process."""
        return self.args.per_device_train_batch_size // self.processes

    @property
    def tokens(self) -> int:
        """Largest number of tokens of a training micro-batch on one process."""
        budget = None if self.objective is None else self.objective.token_budget
        return max(self.per_device * self.lengths.whole, budget or 0)

    @property
    def scored(self) -> int:
        """Largest number of response tokens of a training micro-batch; within a budget, prompts may be short."""
        has_budget = self.objective is not None and self.objective.token_budget is not None
        return self.tokens if has_budget else self.per_device * self.lengths.completion

    @property
    def responses(self) -> int:
        """Responses of an optimiser step, over all processes."""
        return self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps

    @property
    def compute(self) -> int:
        """Bytes of an activation."""
        return 4 if self.args.mixed_precision == "no" else 2

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """Parameters that have a gradient."""
        return [parameter for parameter in self.policy.whole.parameters() if parameter.requires_grad]

    @property
    def loaded(self) -> int:
        """Bytes of a loaded weight."""
        return self.policy.loaded.itemsize


def resolve(options: PlanOptions, words: Sequence[str] = ()) -> Job:
    """Resolve a recipe with overrides, with the checks of a launch.

    Args:
        words: overrides, as on a launch's command line.

    Raises:
        ValueError: the recipe or an option is wrong, or the model is unknown.
    """
    resolved = offline.resolve(options.recipe, words, options.gpus, options.nodes)
    run, args, model = resolved.run, resolved.args, resolved.model
    if resolved.sharding.kind not in PLANNED:
        raise RecipeError(
            f"{resolved.sharding.file} has DeepSpeed's ZeRO of stage {resolved.sharding.kind.removeprefix('zero')}, "
            "but only stage 3 can be planned: set zero_stage to 3, or shard with accelerate_configs/fsdp2.yaml."
        )
    if isinstance(run, RunConfig) and isinstance(args, EntropyForkGRPOConfig):
        check_held_out(run, args, 1)
        run.evaluation_steps(args), run.weight_steps(args)  # refuse what a launch would refuse
        limit_vllm(args, run.max_prompt_length)
    if not model.model_name_or_path:
        raise RecipeError("model_name_or_path is missing: set it to a Hub id or a local folder.")
    config = read_local_config(*_origin(model, recipe.find(options.recipe)), options.model_config)
    if isinstance(run, SFTRunConfig):
        policy, objective, problems = model_of(config, model), None, run.num_responses
    else:
        assert isinstance(args, EntropyForkGRPOConfig)
        if run.max_position_embeddings is not None:
            config.get_text_config().max_position_embeddings = run.max_position_embeddings
        policy = model_of(config, model)
        objective = _objective(policy, args, resolved.sharding)
        problems = run.num_train_problems if run.task else None
    job = Job(
        options=options,
        words=tuple(words),
        policy=policy,
        objective=objective,
        lengths=_lengths(resolved, policy, options),
        problems=problems if options.problems is None else options.problems,
        **vars(resolved),
    )
    check_quantised(model, job.uses_vllm, job.sharding.shards)
    return job


def _objective(policy: Model, args: EntropyForkGRPOConfig, sharding: Sharding) -> Objective:
    """Return the trainer's objective; raise `ValueError` if a setting and the model exclude each other."""
    text, coefficient = policy.config.get_text_config(), args.router_aux_loss_coef
    if coefficient is None:
        coefficient = getattr(text, "router_aux_loss_coef", 0.0)
    balances = hasattr(text, "output_router_logits") and coefficient != 0  # same rule as TRL
    is_deepspeed, inert = sharding.kind == "zero3", padding_is_inert(text)
    return Objective.from_args(args, policy.head_refusal, balances, policy.trains_head, inert, is_deepspeed)


def _lengths(resolved: Resolved, policy: Model, options: PlanOptions) -> Lengths:
    """Return the lengths of sequences; of the prompts from the options, the recipe, its task, or an assumption."""
    run, args = resolved.run, resolved.args
    if isinstance(args, TeacherSFTConfig):
        prompt, longest, limit = 0, args.max_length or policy.positions or ASSUMED_PROMPT, "max_length"
    else:
        assert isinstance(run, RunConfig)
        longest, limit = args.max_completion_length, "max_completion_length"
        prompt = options.prompt_length or run.max_prompt_length or (run.task.longest_prompt if run.task else None)
    mean = options.mean_length
    if mean is not None and not 0 < mean <= longest:
        raise ValueError(f"--mean-length is {mean:g}: it must lie between 0 and {limit} ({longest}).")
    return Lengths(ASSUMED_PROMPT if prompt is None else prompt, longest, mean, assumed=prompt is None)


def _origin(model: CheckedModelConfig, recipe_file: Path) -> tuple[str, str | None]:
    """Return name and commit of the model.

    If another recipe has yet to produce the model, return the base of that recipe.

    Raises:
        RecipeError: that recipe names no model.
    """
    name, revision = model.model_name_or_path, model.model_revision
    maker = recipe_file.parent / f"{Path(name).name}.yaml"
    while Path(name).parent == RUNS and not Path(name).is_dir() and maker.is_file():
        settings = recipe.without_unread(recipe.load(maker))
        base, commit = map(settings.get, ("model_name_or_path", "model_revision"))
        if base is None:
            raise RecipeError(f"{maker}: model_name_or_path is missing: set it to a Hub id or a local folder.")
        name, revision = base.value, None if commit is None else commit.value
        maker = maker.parent / f"{Path(name).name}.yaml"
    return name, revision

"""vLLM's share of a GPU: weights, memory reserved by the profiling pass, and sequences that the cache holds."""

from dataclasses import dataclass
from typing import Any

from ..config.batches import VLLM_BATCHED_TOKENS
from .job import Job
from .memory import GIB, sampler_share, vllm_share

ELEMENT = 2  # bytes of a weight, a key and a value: vLLM serves bfloat16
SERVER_SHARE, SERVER_SEQUENCES = 0.92, 1024  # vLLM's own defaults on a server
# The cache should hold all concurrent sequences at this part of the largest length: more of them would take memory
# from it for buffers of the sampler.
SHORTEST_PART, FEWEST_SEQUENCES = 16, 64
# Bytes of the sampler per logit: bfloat16, and float32 for raw logits, processed logits and probabilities.
SAMPLED_LOGIT = 2 + 3 * 4
# Weights take at most this part of a server's memory, because the cache decides how many sequences it writes at once.
WEIGHTS_SHARE = 0.5


def sampler(job: Job) -> dict[str, Any] | None:
    """Return vLLM's use of its memory, or `None` for a run that samples without vLLM.

    A server has a machine of its own: as few of its GPUs as possible share a copy of the model, and all have one.
    """
    if not job.uses_vllm:
        return None
    if job.colocates:
        left, share = sampler_share(job, job.options.gpu_memory), vllm_share(job)
        cache = _cache(job, job.grpo.vllm_tensor_parallel_size, share)
        caches = [_cache(job, ranks, share) for ranks in parallel_sizes(job)]
        speeds = {str(c["gpus"]): c["tokens_per_second"] for c in caches if holds_a_sequence(c)}
        return cache | {"sampler_share": left, "by_tensor_parallel": speeds}
    sizes = server_sizes(job)
    room = WEIGHTS_SHARE * SERVER_SHARE * job.options.gpu_memory * GIB
    return next((size for size in sizes if holds_a_sequence(size) and size["weights"] <= room), sizes[-1])


def server_sizes(job: Job) -> list[dict[str, Any]]:
    """Return the use of memory and the copies of a server, by the number of GPUs that share a copy."""
    sizes = [_cache(job, ranks, SERVER_SHARE) for ranks in parallel_sizes(job)]
    return [size | {"copies": job.gpus // size["gpus"]} for size in sizes]


def parallel_sizes(job: Job) -> list[int]:
    """Return the numbers of GPUs that may share a copy of the model: divisors of a machine's GPUs and of the heads."""
    heads = job.policy.config.get_text_config().num_attention_heads
    return [ranks for ranks in range(1, job.gpus + 1) if job.gpus % ranks == 0 and heads % ranks == 0]


# Seconds of a decoding step beside the GPU's work: for scheduling, by the engine's place, for a group of GPUs, and for
# every sequence. Assumed, not measured here.
IN_PROCESS, ON_SERVER, IN_GROUP, PER_SEQUENCE = 4e-3, 2.5e-3, 1e-3, 10e-6


@dataclass(frozen=True)
class Device:
    """Rates that a GPU achieves, for estimates. Assumed, not measured here.

    Attributes:
        name: name of the GPU.
        bandwidth: bytes a second that decoding reads.
        decoding, prefill, training: operations a second.
    """

    name: str
    bandwidth: float
    decoding: float
    prefill: float
    training: float


# Three quarters of the bandwidth of its memory. Two fifths of its bfloat16 operations while decoding, three tenths in
# passes of the trainer.
H100 = Device("H100", 0.75 * 3.35e12, 0.4 * 989e12, 300e12, 0.3 * 989e12)


@dataclass(frozen=True)
class Engine:
    """A copy of the model that decodes, for an estimate of its speed.

    Attributes:
        gpus: GPUs that share the copy.
        weights: bytes of weights on one of them.
        operations: operations of a token, over all of them.
        token: bytes of a cached token on one of them.
        in_process: whether the engine runs in a training process.
        device: the GPU.
    """

    gpus: int
    weights: float
    operations: float
    token: float
    in_process: bool
    device: Device = H100

    def step(self, sequences: int, tokens: float) -> float:
        """Return the seconds of a decoding step of a number of sequences, which have `tokens` tokens together."""
        device = self.device
        waiting = IN_PROCESS + PER_SEQUENCE * sequences if self.in_process else ON_SERVER
        work = max(self.weights / device.bandwidth, self.operations * sequences / self.gpus / device.decoding)
        return waiting + (IN_GROUP if self.gpus > 1 else 0) + work + tokens * self.token / device.bandwidth

    def prefill(self, tokens: float) -> float:
        """Return the seconds in which `tokens` tokens of prompts, or of interrupted responses, are computed."""
        return self.operations * tokens / self.gpus / self.device.prefill

    def tokens_per_second(self, sequences: int, context: float) -> float:
        """Return the tokens that a number of sequences of `context` tokens write in a second."""
        return sequences / self.step(sequences, sequences * context)


def engine(job: Job, ranks: int) -> Engine:
    """Return a copy of the job's model on `ranks` GPUs."""
    policy = job.policy
    keys = getattr(policy.config.get_text_config(), "num_key_value_heads", None) or ranks
    token = policy.cache_token() * ELEMENT / min(ranks, keys)  # ranks share the key-value heads, but not one head
    return Engine(ranks, policy.parameters * ELEMENT / ranks, 2 * policy.parameters, token, job.colocates)


def _cache(job: Job, ranks: int, share: float) -> dict[str, Any]:
    """Return vLLM's use of the memory of one of `ranks` GPUs that share a copy of the model.

    vLLM first runs a profiling pass with its maximum number of concurrent sequences. The cache gets the part of vLLM's
    share that weights and profiling pass leave. If the cache cannot hold one sequence of `max_model_len`, vLLM does
    not start.
    """
    args, policy, copy = job.grpo, job.policy, engine(job, ranks)
    longest = args.vllm_max_model_length or policy.positions or job.lengths.whole
    sampled = policy.vocabulary * SAMPLED_LOGIT  # bytes of the profiling pass for each sequence

    def cached_tokens(sequences: int) -> float:
        return max(share * job.options.gpu_memory * GIB - copy.weights - sequences * sampled, 0) / copy.token

    sequences = SERVER_SEQUENCES
    if job.colocates:
        # TRL sets max_num_seqs to the responses of a rollout on the GPUs that share a model.
        sequences = min(job.per_device * ranks * args.steps_per_generation, VLLM_BATCHED_TOKENS)
        if args.vllm_max_num_seqs is not None:
            sequences = min(sequences, args.vllm_max_num_seqs)
        elif args.vllm_gpu_memory_utilization is None:
            held = int(cached_tokens(sequences) / (longest / SHORTEST_PART))
            sequences = min(sequences, max(held, FEWEST_SEQUENCES))
    cached = int(cached_tokens(sequences))
    concurrent = min(int(cached / (job.lengths.prompt + job.lengths.expected)), sequences)
    context = job.lengths.prompt + job.lengths.expected / 2
    copies = (job.processes if job.colocates else job.gpus) // ranks
    return {
        "mode": args.vllm_mode,
        "gpus": ranks,
        "share": share,
        "weights": round(copy.weights),
        "profiled": sequences * sampled,
        "max_num_seqs": sequences,
        "max_model_len": longest,
        "bytes_per_token": round(copy.token),
        "cached_tokens": cached,
        "concurrent_sequences": concurrent,
        "tokens_per_second": round(copy.tokens_per_second(concurrent, context) * copies),
    }


def holds_a_sequence(cache: dict[str, Any]) -> bool:
    """Return whether the cache holds one sequence of `max_model_len`, which is vLLM's condition for starting."""
    return cache["cached_tokens"] >= cache["max_model_len"]

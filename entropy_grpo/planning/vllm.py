"""vLLM's share of a GPU: weights, memory reserved by the profiling pass, and sequences that the cache holds."""

from typing import Any

from .job import Job
from .memory import GIB

ELEMENT = 2  # bytes of a weight, a key and a value: vLLM serves bfloat16
SERVER_SHARE, SERVER_SEQUENCES = 0.92, 1024  # vLLM's own defaults on a server
# TRL's `max_num_batched_tokens`, which bounds the tokens that need logits at once.
BATCHED_TOKENS = 4096
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
        return _cache(job, job.args.vllm_tensor_parallel_size)
    heads = job.policy.config.get_text_config().num_attention_heads
    sizes = [_cache(job, ranks) for ranks in range(1, job.gpus + 1) if job.gpus % ranks == 0 and heads % ranks == 0]
    room = WEIGHTS_SHARE * SERVER_SHARE * job.options.gpu_memory * GIB
    cache = next((size for size in sizes if holds_a_sequence(size) and size["weights"] <= room), sizes[-1])
    return cache | {"copies": job.gpus // cache["gpus"]}


def _cache(job: Job, ranks: int) -> dict[str, Any]:
    """Return vLLM's use of the memory of one of `ranks` GPUs that share a copy of the model.

    vLLM first runs a profiling pass with its maximum number of concurrent sequences. The cache gets the part of vLLM's
    share that weights and profiling pass leave. If the cache cannot hold one sequence of `max_model_len`, vLLM does
    not start.
    """
    args, policy = job.args, job.policy
    weights = policy.parameters * ELEMENT / ranks
    keys = getattr(policy.config.get_text_config(), "num_key_value_heads", None) or ranks
    token = policy.cache_token() * ELEMENT / min(ranks, keys)  # ranks share the key-value heads, but not one head
    # TRL sets max_num_seqs to the responses of a rollout on the GPUs that share a model.
    sequences = job.per_device * ranks * args.steps_per_generation if job.colocates else SERVER_SEQUENCES
    profiled = min(sequences, BATCHED_TOKENS) * policy.vocabulary * SAMPLED_LOGIT
    share = args.vllm_gpu_memory_utilization if job.colocates else SERVER_SHARE
    room = max(share * job.options.gpu_memory * GIB - weights - profiled, 0)
    expected = job.lengths.prompt + (job.lengths.mean or job.lengths.completion)
    return {
        "mode": args.vllm_mode,
        "gpus": ranks,
        "share": share,
        "weights": round(weights),
        "profiled": round(profiled),
        "max_num_seqs": sequences,
        "max_model_len": args.vllm_max_model_length or policy.positions or job.lengths.whole,
        "bytes_per_token": round(token),
        "cached_tokens": int(room / token),
        "concurrent_sequences": min(int(room / token / expected), sequences),
    }


def holds_a_sequence(cache: dict[str, Any]) -> bool:
    """Return whether the cache holds one sequence of `max_model_len`, which is vLLM's condition for starting."""
    return cache["cached_tokens"] >= cache["max_model_len"]

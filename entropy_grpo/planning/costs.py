"""What training a model of a given shape costs: bytes by part and floating-point operations by pass.

Pure arithmetic; `plan` decides what applies to a recipe. Bytes are those of one GPU. A multiply-add is 2 operations.

Sources: states, Rajbhandari et al., ZeRO (arXiv 1910.02054), section 3.1: per parameter a weight, a gradient and
Adam's two moments, each divided by the GPUs that share them. Activations, Korthikanti et al. (arXiv 2205.05198),
section 4: what each operation of a layer keeps for its backward pass; their count, 34 s b h bytes, is that of GPT with
dropout, and is done here again for RMSNorm, gated MLP, grouped queries and attention that keeps no scores. Operations,
Kaplan et al. (arXiv 2001.08361), table 1: 2 per weight and token forward, twice that backward, and attention's.
"""

import math
from collections.abc import Sequence

from .models import Shape, linear_layers, linear_parameters, parameters

FLOAT32 = 4
# A cast of activations in front of every linear layer under autocast; else those of one input share it.
INPUTS_SHARED, INPUTS_CAST = 2, 5
# Rows and columns of a tile of logits.
TILE_ROWS, TILE_COLUMNS = 4096, 32768
# Bytes that a token of the rollout takes: ids and masks are int64; old log-probabilities, the sampler's, their ratio
# and entropies float32; the kept mask 1 byte.
PROMPT_TOKEN, COMPLETION_TOKEN = 8 + 8, 8 + 8 + 3 * 4 + 4 + 1
# bitsandbytes' 4-bit quantisation (QLoRA, arXiv 2305.14314, section 3): weights that share a scale, scales that share
# one where they are quantised themselves, and the float32 entries of the tables that a tensor keeps for each.
BLOCK, NESTED_BLOCK = 64, 256
TABLE, NESTED_TABLE = 16, 256 + 1
ADAMW_STEP = 4  # torch keeps the number of steps of every tensor, a float32


def adamw_states(tensors: Sequence[int], bytes_per_moment: float = FLOAT32) -> float:
    """Two moments per parameter and a step counter per tensor, whose sizes are given."""
    return 2 * bytes_per_moment * sum(tensors) + ADAMW_STEP * len(tensors)


def quantised_weights(shape: Shape, bits: int, nested: bool) -> int:
    """Bytes of all linear layers as bitsandbytes keeps them: 4 bits with scales, or 8 with one per output.

    Args:
        nested: whether the scales of 4-bit weights are quantised to 8 bits (double quantisation).
    """

    def tensor(outputs: int, inputs: int) -> int:
        if bits == 8:
            return outputs * inputs + FLOAT32 * outputs
        blocks = math.ceil(outputs * inputs / BLOCK)
        scales = blocks + FLOAT32 * (math.ceil(blocks / NESTED_BLOCK) + NESTED_TABLE) if nested else FLOAT32 * blocks
        return math.ceil(outputs * inputs / 2) + scales + FLOAT32 * TABLE

    return shape.layers * sum(tensor(*sizes) for sizes in linear_layers(shape).values())


def layer_activations(shape: Shape, width: int, compute: int, autocast: bool, attention: str) -> float:
    """Bytes that one decoder layer keeps for its backward pass, per token.

    Args:
        width: tokens of a sequence, padding included.
        compute: bytes of an activation of a linear layer, 2 or 4.
        autocast: whether weights and the residual stream are float32 under torch's autocast.
        attention: `sdpa` is torch's with a padding mask, which every layer turns into one of the compute dtype, and
            for which keys and values are repeated for every query head; `flash_attention_2` needs neither; `eager`
            keeps the scores.
    """
    stream = FLOAT32 if autocast else compute
    hidden, queries, keys = shape.hidden, shape.queries, shape.keys
    # RMSNorm: its input in float32 and its output before the scale; then the inputs of the linear layers.
    norms = 2 * hidden * (FLOAT32 + stream) + 2 * FLOAT32
    inputs = hidden * compute * (INPUTS_CAST if autocast else INPUTS_SHARED)
    if shape.qk_norm:
        norms += (queries + keys) * (FLOAT32 + compute) + FLOAT32 * (shape.heads + shape.kv_heads)
    # Queries, keys, values and result, which is the output layer's input; the log-sum-exp of each row's scores.
    repeated = keys if attention == "flash_attention_2" else queries
    core = compute * (2 * queries + 2 * repeated) + FLOAT32 * shape.heads
    if attention == "sdpa":
        core += compute * width
    elif attention == "eager":
        core += shape.heads * width * (FLOAT32 + (compute if compute != FLOAT32 else 0))
    # Gate before and after its activation, up, and their product, which is the down layer's input.
    mlp = 4 * shape.intermediate * compute
    return norms + inputs + core + mlp


def activations(shape: Shape, width: int, compute: int, autocast: bool, attention: str, checkpointing: bool) -> float:
    """Bytes that the backbone keeps for its backward pass, per token.

    With gradient checkpointing the input of every layer, and the inside of the one that is computed again.
    """
    layer = layer_activations(shape, width, compute, autocast, attention)
    stream = FLOAT32 if autocast else compute
    final_norm = shape.hidden * (FLOAT32 + stream)
    if checkpointing:
        return shape.layers * shape.hidden * stream + layer + final_norm
    return shape.layers * layer + final_norm


def head_memory(shape: Shape, rows: float, compute: int, weight: int, trained: bool) -> float:
    """Bytes of the fused head's backward pass over `rows`: a tile of logits, gathered rows, float32 sums.

    `weight` is the bytes of an element of the weight: where it is not float32, the sum is cast once.
    """
    tile = min(rows, TILE_ROWS) * min(shape.vocab, TILE_COLUMNS) * compute
    weight_gradient = shape.vocab * shape.hidden * (FLOAT32 + (weight if weight != FLOAT32 else 0))
    return tile + rows * shape.hidden * (compute + FLOAT32) + (weight_gradient if trained else 0)


def full_logits(shape: Shape, rows: float, compute: int) -> float:
    """Bytes of whole logits and of their log-softmax in float32, which a head without tiles makes."""
    return rows * shape.vocab * (compute + FLOAT32)


def kv_cache_token(shape: Shape, element: int = 2) -> int:
    """Bytes of a token's keys and values in all layers."""
    return 2 * shape.layers * shape.keys * element


def rollout_buffer(prompt: int, completion: int, sequences: int) -> int:
    """Bytes of a process's part of the rollout, padded to its longest prompt and response."""
    return sequences * (prompt * PROMPT_TOKEN + completion * COMPLETION_TOKEN)


def backbone_forward(shape: Shape, width: float, sequences: float) -> float:
    """Operations of the decoder layers on sequences of `width` tokens.

    Attention is counted as the whole square, scores and weighted values, as kernels with a padding mask compute it.
    """
    matmuls = 2 * linear_parameters(shape) * width
    attention = 2 * 2 * shape.layers * shape.queries * width**2
    return sequences * (matmuls + attention)


def backbone_backward(shape: Shape, width: float, sequences: float, checkpointing: bool, frozen: bool) -> float:
    """Operations of the backward pass: gradients of inputs and, unless they are frozen, of weights.

    With gradient checkpointing the forward pass is made again.
    """
    linear = 2 * linear_parameters(shape) * width * sequences
    forward = backbone_forward(shape, width, sequences)
    backward = 2 * forward - (linear if frozen else 0)
    return backward + (forward if checkpointing else 0)


def head_matmul(shape: Shape, rows: float) -> float:
    """Operations of one product of `rows` hidden states with the LM head."""
    return 2.0 * shape.vocab * shape.hidden * rows


def generation(shape: Shape, prompt: float, completion: float, sequences: float) -> float:
    """Operations of sampling with a KV cache: the prompt at once, then a token at a time, each with the head."""
    matmuls = 2 * linear_parameters(shape) * (prompt + completion)
    # A new token attends to those before it; the prompt is a square.
    attended = prompt**2 + completion * (prompt + (completion + 1) / 2)
    attention = 2 * 2 * shape.layers * shape.queries * attended
    return sequences * (matmuls + attention + head_matmul(shape, completion))


def inference_weights(shape: Shape, element: int = 2) -> int:
    """Bytes of the weights that a sampler holds."""
    return parameters(shape) * element

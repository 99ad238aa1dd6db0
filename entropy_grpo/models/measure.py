"""Measurement of a model without weights, for any architecture that transformers builds from a configuration.

Parameters are counted on the meta device. Operations are counted, and memory of a training pass is followed, on copies
with one and two decoder layers. Equal layers cost the same, so that both copies determine the whole model. A model
with different layers is measured as a whole.
"""

import copy
import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import logging
from trl.trainer.utils import add_fused_lm_head

from .adapters import adapt, unwrapped
from .config import CheckedModelConfig
from .head import trains_head, why_not
from .load import positions_of

# Sequence lengths; two lengths separate operations per token from operations per pair of tokens.
SHORT, LONG = 64, 128
MASKED = ("sdpa", "eager")
# SDPA as it runs where nothing is padded. Under fake tensors transformers would make a mask nevertheless.
WITHOUT_MASK = "sdpa_without_mask"
AttentionInterface.register(WITHOUT_MASK, sdpa_attention_forward)
AttentionMaskInterface.register(WITHOUT_MASK, lambda *args, **kwargs: None)
_Trained = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Operations:
    """Operations of the decoder layers on a sequence of n tokens: `token * n + pair * n**2`; a multiply-add is 2.

    Attention counts the whole square of scores, because kernels with a padding mask compute all of it.
    """

    token: float
    pair: float

    def __call__(self, tokens: float) -> float:
        return self.token * tokens + self.pair * tokens**2


@dataclass(frozen=True)
class Activations:
    """Bytes of a training pass of the decoder, beyond weights and their gradients.

    Attributes:
        kept: bytes kept for the backward pass at the end of the forward pass.
        peak: most bytes at one moment of both passes, `kept` included.
    """

    kept: float
    peak: float


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of transformers about a model that is never run."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _decoder_layers(model: nn.Module, number: int) -> nn.ModuleList:
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == number]
    if not lists:
        raise ValueError(
            f"model_name_or_path is a {type(model).__name__}, which has no list of {number} decoder layers, so that "
            "it cannot be planned."
        )
    return lists[0]


def _signature(layer: nn.Module) -> tuple:
    """Return the classes of a layer's modules and the shapes of its tensors, which are the same for equal layers."""
    modules = tuple((name, type(m).__name__) for name, m in layer.named_modules())
    return modules, tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())


def _decoder(model: _Trained) -> PreTrainedModel:
    """Return the model without its LM head, as the fused heads call it."""
    decoder = unwrapped(model).base_model
    assert isinstance(decoder, PreTrainedModel), type(decoder)
    return decoder


def _once(measurement: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the results of a method of `Model` by its arguments."""

    @functools.wraps(measurement)
    def known(self: "Model", *args: Any, **kwargs: Any) -> Any:
        key = (measurement.__name__, args, *kwargs.items())
        if key not in self._results:
            self._results[key] = measurement(self, *args, **kwargs)
        return self._results[key]

    return known


class Model:
    """Causal language model on the meta device, with the adapters of a recipe.

    Attributes:
        loaded: dtype of the loaded weights.
        tensors: sizes of the parameter tensors of the model without adapters; a tied LM head counts once.
        layer_sizes: parameters of each decoder layer.
        linear: (outputs, inputs) of its linear layers, without the LM head.
        vocabulary, hidden: sizes of the LM head.
        positions: maximum number of tokens of a sequence, or None if nothing limits it.
        head_refusal: why the sparse LM head cannot serve the model, or None.
        trains_head: whether the LM head's weight has a gradient.
        whole: model with its adapters.

    Raises:
        ValueError: transformers has no causal language model for the configuration, or PEFT cannot adapt it.
    """

    def __init__(self, config: PreTrainedConfig, settings: CheckedModelConfig):
        self.config, self.settings = config, settings
        self._results: dict[tuple, Any] = {}
        # TRL loads float32 if no dtype is set; `auto` is the dtype of publication.
        self.loaded = torch.float32 if settings.dtype in (None, "float32") else torch.bfloat16
        with torch.device("meta"):
            base = self._bare(config, dtype=self.loaded)
            self.positions = positions_of(config)
            self._depth = config.get_text_config().num_hidden_layers
            head = base.get_output_embeddings()
            self.vocabulary, self.hidden = head.weight.shape
            self.tensors = [p.numel() for p in base.parameters()]
            self.linear = [tuple(m.weight.shape) for m in base.modules() if isinstance(m, nn.Linear) and m is not head]
            layers = _decoder_layers(base, self._depth)
            self.layer_sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
            self._uniform = len({_signature(layer) for layer in layers}) == 1
            add_fused_lm_head(base)
            self.head_refusal = why_not(base)
            self.whole = self._adapted(base)
            self.trains_head = trains_head(self.whole)

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied LM head counts once."""
        return sum(self.tensors)

    def _bare(self, config: PreTrainedConfig, **options: object) -> PreTrainedModel:
        try:
            with _quiet():
                return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
        except (ValueError, KeyError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"model_name_or_path has the type {config.model_type!r}, of which transformers builds no causal "
                f"model: {reason}"
            ) from error

    def _adapted(self, base: PreTrainedModel) -> _Trained:
        if not self.settings.use_peft:
            return base
        model = adapt(base, self.settings)
        if self.settings.is_quantised:  # TRL trains bfloat16 adapters on a quantised base
            for parameter in model.parameters():
                parameter.data = parameter.data.bfloat16() if parameter.requires_grad else parameter.data
        return model

    def _copy(self, depth: int, checkpointing: bool, attention: str | None, dtype: torch.dtype) -> _Trained:
        """Return the model in training mode with only its first layers, on the meta device."""
        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        text.num_hidden_layers = depth
        if getattr(text, "layer_types", None) is not None:
            text.layer_types = text.layer_types[:depth]
        with torch.device("meta"):
            model = self._adapted(self._bare(config, attn_implementation=attention, dtype=dtype)).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if self.settings.use_peft:
                model.enable_input_require_grads()  # same call as in TRL
        return model

    def _over_depth(self, measure: Callable[[int], list[float]]) -> list[float]:
        """Return the result of `measure` for all layers, extrapolated from one and two layers if layers are equal."""
        if not self._uniform or self._depth < 2:
            return measure(self._depth)
        return [a + (b - a) * (self._depth - 1) for a, b in zip(measure(1), measure(2), strict=True)]

    @_once
    def operations(self, checkpointing: bool) -> tuple[Operations, Operations]:
        """Return the operations of a forward pass and of its backward pass, without the LM head.

        With gradient checkpointing the backward pass includes the recomputation.
        """

        def measure(depth: int) -> list[float]:
            model = self._copy(depth, checkpointing, "eager", torch.bfloat16)
            # torch counts no operations of grouped matmuls, the default for experts, but it counts batched matmuls.
            _decoder(model).config.get_text_config()._experts_implementation = "batched_mm"
            return [count for width in (SHORT, LONG) for count in _counted(model, width)]

        short_forward, short_backward, long_forward, long_backward = self._over_depth(measure)
        return _operations(short_forward, long_forward), _operations(short_backward, long_backward)

    @_once
    def activations(
        self,
        batch: int,
        width: int,
        compute: torch.dtype,
        autocast: bool,
        attention: str | None,
        checkpointing: bool,
        masked: bool = True,
    ) -> Activations:
        """Return the bytes of a training pass over `batch` sequences of `width` tokens, including padding.

        Args:
            compute: dtype of the linear layers' arithmetic.
            autocast: whether torch's autocast casts the loaded weights; otherwise the weights have dtype `compute`.
            attention: `sdpa` or `eager`; `None` for transformers' choice between both; any other name stands for an
                attention that never takes a mask.
            checkpointing: whether gradient checkpointing is on.
            masked: whether the pass has a padding mask. `eager` needs a causal mask even without it.
        """
        weights = self.loaded if autocast else compute

        def measure(depth: int) -> list[float]:
            model = self._copy(depth, checkpointing, attention if attention in MASKED else None, weights)
            text = _decoder(model).config.get_text_config()
            mask = compute if text._attn_implementation == "eager" else torch.bool
            if mask == torch.bool and not (masked and attention in (None, *MASKED)):
                text._attn_implementation, mask = WITHOUT_MASK, None
            with FakeTensorMode():
                _materialise(model, None if autocast else compute)
                ids = torch.zeros(batch, width, dtype=torch.long)
                return _followed(model, ids, mask, torch.autocast("cpu", compute, enabled=autocast))

        kept, forward, backward = self._over_depth(measure)
        return Activations(kept, max(forward, backward))

    @_once
    def cache_token(self) -> float:
        """Return the number of elements of a token's keys and values in all layers."""

        def measure(depth: int) -> list[float]:
            model = self._copy(depth, False, "eager", torch.bfloat16).eval()
            with torch.device("meta"), torch.no_grad():
                ids, mask = torch.zeros(1, SHORT, dtype=torch.long), _explicit_mask(1, SHORT, torch.bfloat16)
                cache = _decoder(model)(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
            kept = [t for layer in cache.layers for t in vars(layer).values() if isinstance(t, torch.Tensor)]
            return [sum(t.numel() for t in kept if t.ndim > 2) / SHORT]

        return self._over_depth(measure)[0]


_MODELS: dict[tuple[str, str], Model] = {}  # the one used last at the end
_KEPT_MODELS = 16  # of tens of thousands of objects each


def model_of(config: PreTrainedConfig, settings: CheckedModelConfig) -> Model:
    """Return the model of a configuration with its adapters; equal requests share it and its measurements."""
    key = f"{type(config).__name__} {config.to_json_string(use_diff=False)}", repr(settings)
    model = _MODELS[key] = _MODELS.pop(key, None) or Model(copy.deepcopy(config), settings)
    for oldest in list(_MODELS)[:-_KEPT_MODELS]:
        del _MODELS[oldest]
    return model


def _explicit_mask(batch: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a mask (B, 1, width, width), which transformers uses without reading its values."""
    return torch.ones(batch, 1, width, width, dtype=dtype)


def _counted(model: _Trained, width: int) -> tuple[int, int]:
    """Return the operations of a forward and of a backward pass over one sequence, as counted by torch."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        ids, mask = torch.zeros(1, width, dtype=torch.long), _explicit_mask(1, width, torch.bfloat16)
        hidden = _decoder(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        forward = counter.get_total_flops()
        hidden.sum().backward()
    return forward, counter.get_total_flops() - forward


def _operations(short: float, long: float) -> Operations:
    """Return operations per token and per pair from the operations at the two lengths."""
    pair = (long / LONG - short / SHORT) / (LONG - SHORT)
    return Operations(short / SHORT - pair * SHORT, pair)


def _materialise(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Move a model from the meta device to the CPU; under FakeTensorMode this allocates no memory.

    Trained parameters get gradients, as after an earlier micro-batch.

    Args:
        dtype: dtype of the parameters; `None` for their own.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None and old not in made:
                made[old] = nn.Parameter(torch.empty(old.shape, dtype=dtype or old.dtype), old.requires_grad)
                made[old].grad = torch.empty_like(made[old]) if old.requires_grad else None
            module._parameters[name] = made.get(old)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)


class _Allocated(TorchDispatchMode):
    """Bytes of all tensors that are made under this mode, until their storage is freed.

    Attributes:
        now: bytes at this moment.
        peak: most bytes since `peak` was set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}  # by address of the storage

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        ours = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in ours | self._sizes.keys():
                storage = tensor.untyped_storage()
                self._sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata)
        self.peak = max(self.peak, self.now)
        return results

    def _free(self, address: int) -> None:
        self.now -= self._sizes.pop(address)


def _followed(model: _Trained, ids: torch.Tensor, mask: torch.dtype | None, precision: torch.autocast) -> list[float]:
    """Return the bytes kept by a decoder's forward pass, and the peaks of its forward and of its backward pass.

    The backward pass ends at the embeddings, whose gradient is smaller than the LM head's.

    Args:
        ids: (B, T).
        mask: dtype of the padding mask; `None` for no mask.
        precision: context of the forward pass.
    """
    with _Allocated() as allocated:
        batch, width = ids.shape
        masks = None if mask is None else _explicit_mask(batch, width, mask)
        with precision:
            embedded = model.get_input_embeddings()(ids)
            embedded = embedded.detach().requires_grad_(embedded.requires_grad)
            hidden = _decoder(model)(inputs_embeds=embedded, attention_mask=masks, use_cache=False).last_hidden_state
        # Like the LM head, the sum keeps neither the hidden states nor their gradient.
        loss = hidden.sum()
        del hidden
        kept, forward = allocated.now, allocated.peak
        allocated.peak = kept
        loss.backward()
        return [kept, forward, allocated.peak]

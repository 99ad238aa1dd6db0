"""Which dtypes a run computes in, read off the tensors of the run itself.

Names are those of the table in docs/numerics.md.
"""

from collections import defaultdict
from contextlib import contextmanager

import torch
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

MATMULS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_on_grid(tensor):
    """Whether bfloat16 holds every value exactly."""
    return bool((tensor.bfloat16().float() == tensor).all())


class Matmuls(TorchDispatchMode):
    """Notes the dtypes of the operands of matrix products, below autocast."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in MATMULS:
            self.found |= {x.dtype for x in args if isinstance(x, torch.Tensor)}
        return function(*args, **(kwargs or {}))


class Dtypes(TrainerCallback):
    """The dtypes of a trainer's numbers, by name; `on_grid` names those all of whose values bfloat16 holds."""

    def __init__(self, trainer, reinforces=True):
        self.trainer, self.found, self.on_grid = trainer, defaultdict(set), set()
        self.values = defaultdict(list)
        trainer.add_callback(self)
        if reinforces:
            self._watch("_get_per_token_logps_and_entropies", ("log-probabilities", "entropies"))
        self._watch("compute_loss", ("loss",), Matmuls(self.found["matrix products"]))

    def _watch(self, name, outputs, mode=None):
        function = getattr(self.trainer, name)

        def watched(*args, **kwargs):
            if mode is None:
                result = function(*args, **kwargs)
            else:
                with mode:
                    result = function(*args, **kwargs)
            for key, value in zip(outputs, result if isinstance(result, tuple) else (result,), strict=False):
                if value is not None:
                    self.found[key].add(value.dtype)
                    self.values[key].append(value.detach().float().flatten().cpu())
            return result

        setattr(self.trainer, name, watched)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        layer = next(m for m in model.modules() if type(m).__name__.endswith("DecoderLayer"))
        layer.register_forward_hook(lambda module, inputs, output: self.found["hidden states"].add(output.dtype))
        wrapped = self.trainer.model_wrapped
        held = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.trainer.is_deepspeed_enabled:  # which has weights of its own beside those of the modules
            held = wrapped.optimizer.fp32_partitioned_groups_flat
        self.found["weights that the optimiser holds"] |= {weight.dtype for weight in held}
        if isinstance(wrapped, DistributedDataParallel):

            def hook(group, bucket):
                self.found["gradients between processes"].add(bucket.buffer().dtype)
                return allreduce_hook(group, bucket)

            wrapped.register_comm_hook(distributed.group.WORLD, hook)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for parameter in model.parameters():
            if parameter.grad is not None:
                self.found["gradients that the optimiser reads"].add(parameter.grad.dtype)

    def on_train_end(self, args, state, control, optimizer=None, **kwargs):
        for moments in optimizer.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                self.found["moments of AdamW"].add(moments[name].dtype)
        for name, values in self.values.items():
            if is_on_grid(torch.cat(values)):
                self.on_grid.add(name)

    def report(self):
        return {
            "dtypes": {
                name: sorted(str(d).removeprefix("torch.") for d in dtypes) for name, dtypes in self.found.items()
            },
            "on_grid": sorted(self.on_grid),
        }


@contextmanager
def reductions(found):
    """Note the dtype of every reduce-scatter: the reduction of gradients by FSDP2, and by ZeRO-3."""
    names = ("reduce_scatter_single", "reduce_scatter_tensor")
    functions = {name: getattr(distributed, name) for name in names if hasattr(distributed, name)}

    def watched(reduce):
        def noted(*args, **kwargs):
            found.update(x.dtype for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
            return reduce(*args, **kwargs)

        return noted

    for name, function in functions.items():
        setattr(distributed, name, watched(function))
    try:
        yield
    finally:
        for name, function in functions.items():
            setattr(distributed, name, function)

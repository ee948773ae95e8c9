"""The processes of a run: one, or many started by `accelerate launch` or torchrun, whose weights are sharded (FSDP2).

accelerate finds the others, picks each one's device and sets the process group up; torch's fully_shard splits weights,
gradients and optimiser state layer by layer. Checkpoints hold whole tensors, so that they do not depend on the number
of processes. Not here: which process reads which data (trainer.py).
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor

from ..errors import LocaldiffError, OptionError
from .bodies import Scorer


class Processes:
    """This process among `world`; `main` is the one that writes files and talks."""

    def __init__(self, device: str) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        if device == "cuda" and not torch.cuda.is_available():
            raise OptionError("--device is cuda, but torch finds no GPU; use --device cpu or a torch built for CUDA")
        cpu = device == "cpu" or not torch.cuda.is_available()
        self.rank = 0
        self.device = torch.device("cpu" if cpu else "cuda")
        if self.world > 1:
            try:
                from accelerate import PartialState
            except ImportError:
                raise LocaldiffError(
                    "several processes need the package 'accelerate', which is not installed; "
                    "run: pip install 'localdiff[train]'"
                ) from None
            state = PartialState(cpu=cpu)
            self.rank, self.device = state.process_index, state.device

    def alone(self, what: str) -> None:
        """raises OptionError where there are several processes"""
        if self.world > 1:
            raise OptionError(f"{what} needs whole weights, but {self.world} processes share them; leave it out")

    @property
    def main(self) -> bool:
        return self.rank == 0

    def shard(self, scorer: Scorer, dtype: torch.dtype) -> None:
        """Move the model to its device and split it over the processes, in place."""
        scorer.to(self.device)
        if self.world == 1:
            return
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        narrow = dtype if dtype is not torch.float32 else None
        # inputs stay as they are: the weights of the loss need float32
        wide = torch.float32 if narrow else None
        policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=wide, cast_forward_inputs=False)
        for layer in layers_of(scorer.model):
            fully_shard(layer, mp_policy=policy)
        fully_shard(scorer, mp_policy=policy, reshard_after_forward=False)

    def mean(self, *values: float) -> list[float]:
        """Each value averaged over the processes."""
        if self.world == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(summed)
        return [float(value) / self.world for value in summed]

    def any(self, flag: bool) -> bool:
        return self.mean(float(flag))[0] > 0

    def random_state(self) -> list[Tensor]:
        """torch's own generators, which dropout draws from: the CPU's and the device's."""
        own = [torch.get_rng_state()]
        return own if self.device.type == "cpu" else [*own, torch.cuda.get_rng_state(self.device)]

    def set_random_state(self, state: list[Tensor]) -> None:
        """States of another kind of device are left out."""
        torch.set_rng_state(state[0])
        if self.device.type != "cpu" and len(state) > 1:
            torch.cuda.set_rng_state(state[1], self.device)

    def wait(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, value)
        return found


def leave() -> None:
    """End a process that is one of several, its work done; nothing where it is the only one.

    The interpreter's own ending aborts now and then: a thread of gloo that drops the last reference to a tensor asks
    for the interpreter's lock, and waits for it across the ending. torch's caches keep the process group, and so its
    threads, alive whatever is destroyed before.
    """
    if not torch.distributed.is_initialized():
        return
    torch.distributed.barrier()  # the first process holds the store that the others talk to
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def layers_of(model: Any) -> list[Any]:
    """The repeated layers of the body: the modules of the longest list."""
    lists = [list(module) for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=len, default=[])


def whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, put together where it is sharded; every process has to ask."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().cpu()


def whole_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state of a model, whole; tensors that are tied share memory."""
    shared: dict[int, Tensor] = {}
    weights: dict[str, Tensor] = {}
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in model.state_dict().items():
        key = id(named[name]) if name in named else id(tensor)
        if key not in shared:
            shared[key] = whole(tensor)
        weights[name] = shared[key]
    return weights


def whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimiser, whole; the optimiser keeps its own."""
    saved = optimizer.state_dict()
    whole_state = {
        index: {name: whole(value) if isinstance(value, Tensor) else value for name, value in entry.items()}
        for index, entry in saved["state"].items()
    }
    return {**saved, "state": whole_state}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimiser a state of whole tensors, each split like its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entry in state["state"].items():
        parameter = parameters[index]
        if not hasattr(parameter, "device_mesh"):
            continue
        from torch.distributed.tensor import distribute_tensor

        for name, value in entry.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0:
                moved = value.to(parameter.device)
                entry[name] = distribute_tensor(moved, parameter.device_mesh, parameter.placements)
    optimizer.load_state_dict(state)

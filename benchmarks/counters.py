"""What a call asks of any device, counted without a clock: steering figures where there is no GPU."""

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

# operations after which the program knows a number of the device, so that it waited for it
WAITS = {
    'aten._local_scalar_dense', 'aten.nonzero', 'aten.masked_select', 'aten.equal', 'aten.is_nonzero', 'aten._unique2',
    'aten.unique_dim', 'aten.unique_consecutive', 'aten.repeat_interleave', 'torchvision.nms',
}  # fmt: skip
COPIES = {'aten.copy_', 'aten.clone', 'aten._to_copy', 'aten.contiguous'}


class Counter(TorchDispatchMode):
    """Counts what PyTorch's dispatcher hands to the device while it is active."""

    launches = 0  # operations that compute; a view does not
    waits = 0  # those that make the program wait: numbers that are read, sizes that depend on values
    relayout_bytes = 0  # written by copies that only change the order in memory

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Count an operation, and do it."""
        result = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        if not func.is_view:
            self.launches += 1
        given = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        by_mask = name.startswith('aten.index') and any(each.dtype == torch.bool for each in given[1:])
        self.waits += name in WAITS or by_mask
        if name in COPIES and len(given) and isinstance(result, Tensor):
            source = given[-1]
            same = source.dtype == result.dtype and source.numel() == result.numel() > 1
            if same and source.ndim == result.ndim and source.stride() != result.stride():
                self.relayout_bytes += result.numel() * result.element_size()
        return result


class Reads(TorchFunctionMode):
    """Counts the calls that bring whole tensors to the program, which the dispatcher does not see on the CPU."""

    waits = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Count a call, and make it."""
        self.waits += func in (Tensor.tolist, Tensor.cpu)
        return func(*args, **(kwargs or {}))


def convolution_backward_flop(grad, image, weight, *options, **_: Any) -> int:
    """Return the operations of both gradients from the shapes; PyTorch counts a depthwise convolution as a full one."""
    transposed, *_, wanted = options[4:8]
    batch, _, *places = image if transposed else grad
    return 2 * batch * math.prod(places) * math.prod(weight) * sum(wanted[:2])


def count(work: Callable[[], object]) -> dict[str, float]:
    """Call ``work`` and return its counts, the bytes that autograd kept, and what convolutions and products compute."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()  # a storage once
        return tensor

    formulas = {torch.ops.aten.convolution_backward: convolution_backward_flop}
    counter, reads, flops = Counter(), Reads(), FlopCounterMode(display=False, custom_mapping=formulas)
    with (
        mock.patch.object(torch, 'inference_mode', torch.no_grad),  # in which operations are not taken apart
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        reads,
        counter,
        flops,
    ):
        work()
    return dict(
        launches=counter.launches,
        waits=counter.waits + reads.waits,
        relayout_mb=round(counter.relayout_bytes / 1e6, 1),
        saved_mb=round(sum(saved.values()) / 1e6, 1),
        gflop=flops.get_total_flops() / 1e9,
    )

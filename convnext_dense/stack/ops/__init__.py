"""The compiled ops of mmcv, one file per family, served by torchvision and plain torch.

In: the name of an op, as mmcv's Python wrappers ask ``mmcv._ext`` for it. Out: a function with the arguments of the
compiled op, output buffers filled in place included, and with its values.

To add an op: write a function of that name in the family's file (or in a new file) and add one line to ``OPS``.
"""

import importlib
from collections.abc import Callable

# op name -> the file of this folder that holds a function of that name
OPS: dict[str, str] = {
    'get_compiler_version': 'build_info',
    'get_compiling_cuda_version': 'build_info',
    'nms': 'nms',
    'nms_match': 'nms',
    'roi_align_backward': 'roi_align',
    'roi_align_forward': 'roi_align',
    'softnms': 'nms',
}


def find_op(name: str) -> Callable:
    """Return the function of the op, or one that raises ``NotImplementedError`` when called.

    Importing ``mmcv.ops`` asks for about 150 names, so a missing op may only complain once it is used.
    """
    if name in OPS:
        return getattr(importlib.import_module(f'{__name__}.{OPS[name]}'), name)
    return _missing_op(name)


def _missing_op(name: str) -> Callable:
    def missing_op(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(
            f"The mmcv op '{name}' is not implemented here: torchvision serves mmcv's ops, and of them those listed in "
            'convnext_dense.stack.ops.OPS. Use a model without this op, or install an mmcv with compiled ops '
            '(https://mmcv.readthedocs.io/en/2.x/get_started/installation.html), which is then used instead.'
        )

    missing_op.__name__ = missing_op.__qualname__ = name
    return missing_op

"""Third-party messages that mislead: they ask the user to mend code that is not the user's.

Each row is limited to one message of one module, so that the same message from other code is shown. Only messages
are listed that appear in a sound run of a stock config and that no user can act on. What is printed is left alone.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import LogRecord
from types import ModuleType
from typing import NamedTuple


class Warned(NamedTuple):
    """A warning to drop: what it says (a regular expression for its beginning), of which kind, from which module."""

    message: str
    category: type[Warning]
    module: str


WARNINGS = (
    # mmcv warns about an import that is its own, whenever mmcv.ops can be imported
    Warned(r'``MultiScaleDeformableAttention`` has been moved to', ImportWarning, r'mmcv\.cnn\.bricks\.transformer'),
    # the old spelling is in the OpenMMLab code and works; with mixed precision it is warned about at every start
    Warned(r'`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated', FutureWarning, r'(mmengine|mmdet|mmseg)\.'),
    # torch 2.4 warns of its own recomputation of activations
    Warned(r'`torch\.cpu\.amp\.autocast\(args\.\.\.\)` is deprecated', FutureWarning, r'torch\.utils\.checkpoint'),
    # the prior generators of mmdet rely on the default, which has not changed
    Warned(
        r'torch\.meshgrid: in an upcoming release, it will be required to pass the indexing argument',
        UserWarning,
        r'torch\.functional',
    ),
    # MMEngine's runner passes it; the old spelling works
    Warned(r'`broadcast_buffers` is deprecated', FutureWarning, r'mmengine\.model\.wrappers\.distributed'),
    # DDP compares strides of depthwise weights (C, 1, k, k) in their dimension of size 1, where they mean nothing
    Warned(r'Grad strides do not match bucket view strides', UserWarning, r'torch\.autograd\.graph'),
    # mmdet's mask head copies a tensor in an unusual but sound way
    Warned(
        r'To copy construct from a tensor, it is recommended to use',
        UserWarning,
        r'mmdet\.models\.roi_heads\.mask_heads\.fcn_mask_head',
    ),
    # mmcv's MaskedConv2d, which guided anchoring predicts with, uses an old spelling that works
    Warned(r'This overload of addmm is deprecated', UserWarning, r'mmcv\.ops\.masked_conv'),
    # mmseg's own heads call the old function
    Warned(r'``build_(backbone|neck|head|loss)`` would be deprecated soon', UserWarning, r'mmseg\.models\.builder'),
    # the default is what the published recipes trained with, and to state it changes nothing
    Warned(r'Default ``avg_non_ignore`` is False', UserWarning, r'mmseg\.models\.losses\.cross_entropy_loss'),
    # not to draw is the default of every mmseg config
    Warned(
        r'The draw is False, it means that the hook for visualization will not take effect',
        UserWarning,
        r'mmseg\.engine\.hooks\.visualization_hook',
    ),
    # the pipelines of mmseg's own configs set it; it works
    Warned(r'`reduce_zero_label` will be deprecated', UserWarning, r'mmseg\.datasets\.transforms\.loading'),
    # mmseg's SegTTAModel hands labels without a channel to mmengine, once an image, and mmengine adds it
    Warned(r'The shape of value will convert from', UserWarning, r'mmengine\.structures\.pixel_data'),
    # upstream's configs ask for pinned memory, which without a GPU changes nothing
    Warned(
        r"'pin_memory' argument is set as true but no accelerator is found",
        UserWarning,
        r'torch\.utils\.data\.dataloader',
    ),
    # Python >= 3.13 warns about a call in MMEngine, at its import; where warnings are errors, it ends there
    Warned(r"'maxsplit' is passed as positional argument", DeprecationWarning, r'mmengine\.utils\.misc'),
    # the init_model and init_detector of mmseg and mmdet leave the folder out, since inference has none
    Warned(
        r"Failed to add <class 'mmengine\.visualization\.vis_backend\.LocalVisBackend'>, please provide the `save_dir`",
        UserWarning,
        r'mmengine\.visualization\.visualizer',
    ),
    # onedl-mmdetection warns at every import of a second COCO metric, which no recipe uses
    Warned(
        r'faster_coco_eval is not installed, metrics will not be computed',
        UserWarning,
        r'mmdet\.evaluation\.metrics\.faster_coco_metric',
    ),
)

# What a line that MMEngine logs at level WARNING begins with, a regular expression
LOG_LINES = (
    r'"FileClient" will be deprecated in future',  # MMEngine's own CheckpointHook calls it
    r'"HardDiskBackend" is the alias of "LocalBackend"',  # MMEngine's own FileClient calls it
    r'The prefix is not set in metric class IoUMetric',  # mmseg's metric has no prefix by design
    # mmdet and mmseg have no registry of functions; each inferencer asks them for the collate function of MMEngine
    r'Failed to search registry with scope "mm(det|seg)" in the "function" registry tree',
)


def silence_warnings() -> None:
    """Drop the listed warnings. Called again it changes nothing: Python keeps equal filters once."""
    for warned in WARNINGS:
        warnings.filterwarnings('ignore', warned.message, warned.category, warned.module)


@contextmanager
def without_torchscript_warning() -> Iterator[None]:
    """Drop the warning of PyTorch < 2.6 when ``torch.distributed.optim`` is imported, which overrides all filters."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warned in caught:
        if not str(warned.message).startswith('`TorchScript` support for functional optimizers is deprecated'):
            warnings.warn_explicit(warned.message, warned.category, warned.filename, warned.lineno)


def silence_log_lines(logger_module: ModuleType) -> None:
    """Drop the listed lines in ``mmengine.logging.logger``, for the loggers that exist and for those to come."""
    listed = re.compile('|'.join(LOG_LINES))
    upstream_filter = logger_module.FilterDuplicateWarning.filter

    def drop_listed_and_repeated(self: object, record: LogRecord) -> bool:
        return not listed.match(str(record.msg)) and upstream_filter(self, record)

    logger_module.FilterDuplicateWarning.filter = drop_listed_and_repeated

"""Messages of other libraries that mislead: they ask the user to mend code that is not the user's.

Only messages are listed that appear in a sound run of a stock config and that no user can act on. Each row names the
module, so that the same message from other code is shown.
"""

import functools
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import LogRecord

# How a warning's message begins (a regular expression), its kind, and the module that warns (a regular expression)
WARNINGS = (
    # mmcv warns about an import that is its own, whenever mmcv.ops can be imported
    (r'``MultiScaleDeformableAttention`` has been moved to', ImportWarning, r'mmcv\.cnn\.bricks\.transformer'),
    # the old spelling is in the OpenMMLab code and works; with mixed precision it is warned about at every start
    (r'`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated', FutureWarning, r'(mmengine|mmdet|mmseg)\.'),
    # torch 2.4 warns of its own recomputation of activations
    (r'`torch\.cpu\.amp\.autocast\(args\.\.\.\)` is deprecated', FutureWarning, r'torch\.utils\.checkpoint'),
    # the prior generators of mmdet rely on the default, which has not changed
    (r'torch\.meshgrid: in an upcoming release', UserWarning, r'torch\.functional'),
    # MMEngine's runner passes it; the old spelling works
    (r'`broadcast_buffers` is deprecated', FutureWarning, r'mmengine\.model\.wrappers\.distributed'),
    # DDP compares strides of depthwise weights (C, 1, k, k) in their dimension of size 1, where they mean nothing
    (r'Grad strides do not match bucket view strides', UserWarning, r'torch\.autograd\.graph'),
    # mmdet's mask head copies a tensor in an unusual but sound way
    (r'To copy construct from a tensor', UserWarning, r'mmdet\.models\.roi_heads\.mask_heads\.fcn_mask_head'),
    # mmcv's MaskedConv2d, which guided anchoring predicts with, uses an old spelling that works
    (r'This overload of addmm is deprecated', UserWarning, r'mmcv\.ops\.masked_conv'),
    # mmseg's own heads call the old function
    (r'``build_(backbone|neck|head|loss)`` would be deprecated soon', UserWarning, r'mmseg\.models\.builder'),
    # the default is what the published recipes trained with, and to state it changes nothing
    (r'Default ``avg_non_ignore`` is False', UserWarning, r'mmseg\.models\.losses\.cross_entropy_loss'),
    # not to draw is the default of every mmseg config
    (r'The draw is False, it means that the hook', UserWarning, r'mmseg\.engine\.hooks\.visualization_hook'),
    # the pipelines of mmseg's own configs set it; it works
    (r'`reduce_zero_label` will be deprecated', UserWarning, r'mmseg\.datasets\.transforms\.loading'),
    # mmseg's SegTTAModel hands labels without a channel to mmengine, once an image, and mmengine adds it
    (r'The shape of value will convert from', UserWarning, r'mmengine\.structures\.pixel_data'),
    # gradients are accumulated before the first step of the optimizer; no value of the schedule is skipped
    (r'Detected call of `scheduler\.step\(\)` before', UserWarning, r'mmengine\.optim\.scheduler\.param_scheduler'),
    # upstream's configs ask for pinned memory, which without a GPU changes nothing
    (r"'pin_memory' argument is set as true but no", UserWarning, r'torch\.utils\.data\.dataloader'),
    # Python >= 3.13 warns about a call in MMEngine, at its import; where warnings are errors, it ends there
    (r"'maxsplit' is passed as positional argument", DeprecationWarning, r'mmengine\.utils\.misc'),
    # the init_model and init_detector of mmseg and mmdet leave the folder out, since inference has none
    (
        r"Failed to add <class 'mmengine\.visualization\.vis_backend\.LocalVisBackend'>",
        UserWarning,
        r'mmengine\.visualization\.visualizer',
    ),
    # onedl-mmdetection warns at every import of a second COCO metric, which no recipe uses
    (r'faster_coco_eval is not installed', UserWarning, r'mmdet\.evaluation\.metrics\.faster_coco_metric'),
)

# Regular expressions for the beginning of a line that MMEngine logs at level WARNING
LOG_LINES = (
    r'"FileClient" will be deprecated in future',  # MMEngine's own CheckpointHook calls it
    r'"HardDiskBackend" is the alias of "LocalBackend"',  # MMEngine's own FileClient calls it
    r'The prefix is not set in metric class IoUMetric',  # mmseg's metric has no prefix by design
    # mmdet and mmseg have no registry of functions; each inferencer asks them for the collate function of MMEngine
    r'Failed to search registry with scope "mm(det|seg)" in the "function" registry tree',
)


@functools.cache
def silence() -> None:
    """Drop the listed warnings and log lines from now on. The commands of this package call it; no import does."""
    from mmengine.logging.logger import FilterDuplicateWarning

    listed = re.compile('|'.join(LOG_LINES))
    upstream_filter = FilterDuplicateWarning.filter

    def drop_listed_and_repeated(self: object, record: LogRecord) -> bool:
        return not listed.match(str(record.msg)) and upstream_filter(self, record)

    FilterDuplicateWarning.filter = drop_listed_and_repeated
    ignore_listed()


def ignore_listed() -> None:
    """Add Python's filters for the listed warnings."""
    for message, category, module in WARNINGS:
        warnings.filterwarnings('ignore', message, category, module)


@contextmanager
def quiet_import() -> Iterator[None]:
    """Drop the listed warnings of imports in this block, and that of PyTorch < 2.6, which overrides all filters."""
    with warnings.catch_warnings(record=True) as caught:
        ignore_listed()
        before = list(warnings.filters)
        yield
        added = [each for each in warnings.filters if each not in before]
    warnings.filters[:0] = added  # those of the imported libraries
    for warned in caught:
        if not str(warned.message).startswith('`TorchScript` support for functional optimizers is deprecated'):
            warnings.warn_explicit(warned.message, warned.category, warned.filename, warned.lineno)

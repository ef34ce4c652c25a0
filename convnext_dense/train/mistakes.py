"""What a run raises and what the user is told: the only place where an exception of a library becomes a UserError."""

import ast
import contextlib
import errno
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from convnext_dense.compat.checkpoints import CHECKPOINT_SUFFIXES
from convnext_dense.compat.errors import UserError
from convnext_dense.train.launch import is_lost_connection

BUILD_ERRORS = (KeyError, TypeError, ValueError, AttributeError, AssertionError, ImportError, OSError, RuntimeError)
RESUME = 'A training continues from its latest checkpoint with --resume.'
UNREADABLE = re.compile(r'\[Errno \d+\] (?P<reason>[^:]+): (?P<file>([\'"]).+\3)$')  # as Python's OSError says it
NO_IMAGE = re.compile(r'failed to load image: (?P<file>.+)')  # as the loading of MMCV and MMDetection says it
UNUSED = re.compile(r'did not receive grad for rank \d+: (?P<indices>[\d ]+)')  # as PyTorch says it
# the functions of MMCV, MMDetection and MMSegmentation that read label maps, in a traceback
READS_LABEL_MAPS = re.compile(r'in _load_(seg_map|masks_and_semantic_segs)\b')

# what a file is, and what to do about one that is missing or damaged
IMAGE = ('image', 'Replace it or take it out of the annotations.')
LABEL_MAP = ('label map', 'Replace it or take its image out of the dataset.')
ANNOTATIONS = ('annotation file', 'Set data_root and ann_file of the dataset, or ann_file of the evaluator.')
CHECKPOINT = ('checkpoint', 'Set load_from, or checkpoint in the init_cfg of the model, to a file that exists.')
OTHER = ('file', 'Put it there or correct the path in the config.')
KINDS = {
    **dict.fromkeys(('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'), IMAGE),
    **dict.fromkeys(('.json', '.xml', '.csv'), ANNOTATIONS),
    **dict.fromkeys(CHECKPOINT_SUFFIXES, CHECKPOINT),
}


def file_kind(file: str, error: BaseException) -> tuple[str, str]:
    """Return a row of the table of kinds, by the file's name and by the function that read it."""
    kind = KINDS.get(Path(file).suffix.lower(), OTHER)
    is_read_as_labels = READS_LABEL_MAPS.search(''.join(traceback.format_exception(error)))
    return LABEL_MAP if kind is IMAGE and is_read_as_labels else kind


def message_of(error: BaseException) -> str:
    """Return what an exception says; in that of a data loader's worker, it stands below the worker's traceback."""
    lines = re.findall(r'^[\w.]+: (.*)', str(error), re.MULTILINE)
    return lines[-1] if lines and 'Original Traceback' in str(error) else str(error)


def bad_file(error: BaseException) -> str | None:
    """Answer an exception about a file that cannot be read, or is no image."""
    text = message_of(error)
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)) and (match := UNREADABLE.match(text)):
        file = ast.literal_eval(match['file'])
        problem = 'does not exist' if isinstance(error, FileNotFoundError) else f'cannot be read ({match["reason"]})'
    elif isinstance(error, AssertionError) and (match := NO_IMAGE.match(text)):
        file, problem = match['file'], 'is damaged'
    else:
        return None
    name, cure = file_kind(file, error)
    return f'The {name} {file} {problem}. {cure} {RESUME}'


def unused_parameters(error: BaseException, model: torch.nn.Module | None) -> str | None:
    """Answer what PyTorch says of parameters without a gradient on several processes; it numbers them, we name them."""
    match = UNUSED.search(str(error))
    if match is None or model is None:
        return None
    names = [name for name, param in model.named_parameters() if param.requires_grad]
    unused = [names[int(index)].removeprefix('module.') for index in match['indices'].split()]
    shown = ', '.join(unused[:3]) + (', ...' if len(unused) > 3 else '')
    return (
        f'{len(unused)} parameters take no part in the loss ({shown}), and the processes wait for their gradients. '
        'Freeze them or take them out of the model, or set find_unused_parameters = True in the config.'
    )


@contextlib.contextmanager
def run_errors(model: torch.nn.Module | None = None) -> Iterator[None]:
    """Turn known mistakes that show in the middle of a run into a :class:`UserError`; other exceptions pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = bad_file(error) or unused_parameters(error, model)
        if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
            text = f'The disk of the work dir is full. The checkpoints in it are complete; free some space. {RESUME}'
        if text is None:
            raise
        raise UserError(text) from error


@contextlib.contextmanager
def build_errors() -> Iterator[None]:
    """Turn what building from a wrong config raises into a :class:`UserError`."""
    try:
        with run_errors():
            yield
    except UserError:
        raise
    except BUILD_ERRORS as error:
        if is_lost_connection(error):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise UserError(f'The config cannot be built: {text}') from error

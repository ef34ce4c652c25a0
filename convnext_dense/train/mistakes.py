"""What a run raises and what the user is told: the only place where an exception of others becomes a UserError."""

import ast
import contextlib
import errno
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from convnext_dense.compat.checkpoints import CHECKPOINT_SUFFIXES
from convnext_dense.compat.errors import UserError
from convnext_dense.train.launch import is_lost_connection

BUILD_ERRORS = (KeyError, TypeError, ValueError, AttributeError, AssertionError, ImportError, OSError, RuntimeError)
RESUME = 'A training continues from its latest checkpoint with --resume.'


class Kind(NamedTuple):
    """A kind of file, and what to do about one that is missing or damaged."""

    name: str
    cure: str


IMAGE = Kind('image', 'Replace it or take it out of the annotations.')
LABEL_MAP = Kind('label map', 'Replace it or take its image out of the dataset.')
ANNOTATIONS = Kind('annotation file', 'Set data_root and ann_file of the dataset, or ann_file of the evaluator.')
CHECKPOINT = Kind('checkpoint', 'Set load_from, or checkpoint in the init_cfg of the model, to a file that exists.')
CONFIG = Kind('config', 'Correct the path that names it.')
OTHER = Kind('file', 'Put it there or correct the path in the config.')
KINDS = {
    **dict.fromkeys(('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'), IMAGE),
    **dict.fromkeys(('.json', '.xml', '.csv'), ANNOTATIONS),
    **dict.fromkeys(CHECKPOINT_SUFFIXES, CHECKPOINT),
    '.py': CONFIG,
}
# the functions of MMCV, MMDetection and MMSegmentation that read label maps, in a traceback
READS_LABEL_MAPS = re.compile(r'in _load_(seg_map|masks_and_semantic_segs)\b')


class Failure(NamedTuple):
    """An exception as it was raised, also where a worker of a data loader raised it and only its text came back."""

    error: BaseException
    type: str
    text: str
    trace: str

    def kind(self, file: str) -> Kind:
        """Return what kind of file this is, by its name and by the function that read it."""
        kind = KINDS.get(Path(file).suffix.lower(), OTHER)
        return LABEL_MAP if kind is IMAGE and READS_LABEL_MAPS.search(self.trace) else kind


def read_failure(error: BaseException) -> Failure:
    """Return what happened; the text of a worker's exception ends with its name and its message."""
    trace = ''.join(traceback.format_exception(error))
    if 'Original Traceback' in str(error):
        *_, (name, text) = re.findall(r'^([\w.]+): (.*)', str(error), re.MULTILINE) or [('', '')]
        return Failure(error, name.rpartition('.')[2], text, trace)
    return Failure(error, type(error).__name__, str(error), trace)


def missing_file(failure: Failure) -> str | None:
    """Answer an exception of the operating system that names a file which was to be read."""
    match = re.match(r'\[Errno \d+\] (?P<reason>[^:]+): (?P<file>([\'"]).+\3)$', failure.text)
    if match is None or failure.type not in ('FileNotFoundError', 'PermissionError', 'IsADirectoryError'):
        return None
    file = getattr(failure.error, 'filename', None) or ast.literal_eval(match['file'])
    kind = failure.kind(str(file))
    reason = 'does not exist' if failure.type == 'FileNotFoundError' else f'cannot be read ({match["reason"]})'
    return f'The {kind.name} {file} {reason}. {kind.cure} {RESUME}'


def damaged_image(failure: Failure) -> str | None:
    """Answer what MMCV's and MMDetection's loading says of a file that is no image."""
    match = re.match(r'failed to load image: (?P<file>.+)', failure.text)
    if match is None or failure.type != 'AssertionError':
        return None
    kind = failure.kind(match['file'])
    return f'The {kind.name} {match["file"]} is damaged. {kind.cure} {RESUME}'


def full_disk(failure: Failure) -> str | None:
    """Answer a disk or a quota without space, which a run meets when it saves a checkpoint."""
    if getattr(failure.error, 'errno', None) not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return f'The disk of the work dir is full. The checkpoints in it are complete; free some space. {RESUME}'


def unused_parameters(failure: Failure, model: torch.nn.Module | None) -> str | None:
    """Answer what PyTorch says of parameters without a gradient on several processes; it numbers them, we name them."""
    match = re.search(r'did not receive grad for rank \d+: (?P<indices>[\d ]+)', failure.text)
    if match is None or model is None:
        return None
    names = [name for name, param in model.named_parameters() if param.requires_grad]
    unused = [names[int(index)].removeprefix('module.') for index in match['indices'].split()]
    shown = ', '.join(unused[:3]) + (', ...' if len(unused) > 3 else '')
    return (
        f'{len(unused)} parameters take no part in the loss ({shown}), and the processes wait for their gradients. '
        'Freeze them or take them out of the model, or set find_unused_parameters = True in the config.'
    )


def answer(error: BaseException, model: torch.nn.Module | None) -> str | None:
    """Return what to tell the user; None where the exception is no known mistake."""
    failure = read_failure(error)
    for known in (missing_file, damaged_image, full_disk):
        if text := known(failure):
            return text
    return unused_parameters(failure, model)


@contextlib.contextmanager
def run_errors(model: torch.nn.Module | None = None) -> Iterator[None]:
    """Turn known mistakes that show in the middle of a run into a :class:`UserError`; other exceptions pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = answer(error, model)
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

"""What a run raises and what the user is told: the only place where an exception of a library becomes a UserError."""

import ast
import contextlib
import errno
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.runner import Runner

from convnext_dense.compat.checkpoints import CHECKPOINT_SUFFIXES
from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.train.launch import is_lost_connection
from convnext_dense.train.resume import how_to_continue

BUILD_ERRORS = (KeyError, TypeError, ValueError, AttributeError, AssertionError, ImportError, OSError, RuntimeError)
UNREADABLE = re.compile(r'\[Errno \d+\] (?P<reason>[^:]+): (?P<file>([\'"]).+\3)$')  # as Python's OSError says it
NO_IMAGE = re.compile(r'failed to load image: (?P<file>.+)')  # as the loading of MMCV and MMDetection says it
LATE_DATA = re.compile(r'DataLoader timed out after (?P<seconds>[\d.]+) seconds')  # as PyTorch says it
LOST_WORKER = re.compile(r'DataLoader worker \(pid.*?\) (?P<end>is killed by signal: \w+|exited unexpectedly)')
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
    return f'The {name} {file} {problem}. {cure}'


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


def missing_data(error: BaseException, runner: Runner | None) -> str | None:
    """Answer what PyTorch says of a worker of a data loader that does not answer or has gone.

    It says the latter wherever the run is, also to libraries that make another exception of it, and a third of that.
    """
    text, earlier = str(error), error.__context__
    while earlier is not None:
        text, earlier = f'{text}\n{earlier}', earlier.__context__
    if match := LATE_DATA.search(text):
        return (
            f'No data came within {match["seconds"]} s: a worker of the data loader hangs{awaited(runner)}. See '
            'whether the disk answers, or give a larger --timeout; train_dataloader.num_workers=0 shows where it hangs.'
        )
    match = LOST_WORKER.search(text)
    if match or is_broken_transfer(error):
        end = match['end'] if match else 'exited unexpectedly'
        return (
            f'A worker of the data loader {end}: most often the memory was full. Lower '
            'train_dataloader.num_workers, train_dataloader.batch_size or the size of the images.'
        )
    return None


def is_broken_transfer(error: BaseException) -> bool:
    """Tell whether a process went while a tensor was taken over from it."""
    frames = (frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, ConnectionError | EOFError) and any('rebuild_storage' in name for name in frames)


def awaited(runner: Runner | None) -> str:
    """Name the images of the step that waits for its data; empty where no training waits."""
    loader = getattr(getattr(runner, '_train_loop', None), 'dataloader', None)
    places = getattr(getattr(loader, 'batch_sampler', None), 'recent', {}).get(getattr(runner, 'iter', None), [])
    files = [loader.dataset.get_data_info(place).get('img_path') for place in places]
    return f' over the images {shorten(files)} of step {runner.iter + 1}' if all(files) and files else ''


@contextlib.contextmanager
def run_errors(runner: Runner | None = None) -> Iterator[None]:
    """Turn known mistakes that show in the middle of a run into a :class:`UserError`; other exceptions pass.

    Args:
        runner: Of the run; a training that ends is told from which checkpoint it continues.
    """
    is_training = getattr(runner, '_train_loop', None) is not None
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = (
            bad_file(error) or unused_parameters(error, getattr(runner, 'model', None)) or missing_data(error, runner)
        )
        if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
            text = 'The disk of the work dir is full. The checkpoints in it are complete; free some space.'
        if text is None:
            raise
        raise UserError(f'{text} {how_to_continue(runner.cfg)}' if is_training else text) from error


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
        where = traceback.extract_tb(error.__traceback__)[-1]  # of an assertion, which often says nothing
        raise UserError(
            f'The config cannot be built: {text if str(text) else f"{where.line} ({where.name})"}'
        ) from error

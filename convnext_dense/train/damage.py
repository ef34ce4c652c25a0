"""Images and label maps that turn out to be damaged in the middle of a training: left out, named, and counted."""

import os
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch.utils.data import Dataset

from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.compat.unpickling import first_line
from convnext_dense.data.checks.files import find_defect
from convnext_dense.data.checks.segmentation import IGNORED
from convnext_dense.train.mistakes import NO_IMAGE
from convnext_dense.train.resume import how_to_continue

LEFT_OUT = 'left_out'  # what was, in the metadata of a sample and in the log of a run
MOST_TRIES = 20  # samples that a batch may pass over for one that is sound


def load_sample(dataset: Dataset, place: int) -> Any:
    """Return the sample at a place, or the next one that is sound, with the names of those that were passed over.

    The names stand in the metadata of the sample, because a worker of the data loader tells the training nothing else.

    Raises:
        UserError: Too many samples in a row are damaged.
        Exception: What loading raises that is about no file.
    """
    damaged: dict[str, str] = {}  # file -> what is wrong with it
    for step in range(MOST_TRIES):
        try:
            sample = dataset[(place + step) % len(dataset)]
            found = dict(label_problems(sample, dataset))
        except Exception as error:
            found = dict(loading_problem(error))
            if not found:
                raise
        if not found:
            return marked(sample, damaged) if damaged else sample
        damaged |= found
    raise UserError(f'{len(damaged)} damaged files in a row: {describe(damaged)}.')


def marked(sample: Any, damaged: Mapping[str, str]) -> Any:
    """Return a sample with the names of damaged files in its metadata."""
    element = next(elements(sample), None)
    if element is None:
        raise UserError(f'{describe(damaged)}. Replace it or take it out of the data.')
    element.set_metainfo({LEFT_OUT: dict(damaged)})
    return sample


def loading_problem(error: Exception) -> Iterator[tuple[str, str]]:
    """Yield the file that a step named ``Load...`` of a pipeline could not read, and why; nothing of other errors."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        step, results = frame.f_locals.get('self'), frame.f_locals.get('results')
        if isinstance(results, Mapping) and type(step).__name__.startswith('Load'):
            is_image = 'Image' in type(step).__name__
            file = None if is_image else results.get('seg_map_path')
            what = f'annotations of {results.get("img_path")}' if not (is_image or file) else None
            yield what or str(file or results.get('img_path')), reason_of(error)
            return


def reason_of(error: Exception) -> str:
    """Return in a few words why a file could not be read."""
    if isinstance(error, FileNotFoundError):
        return 'does not exist'
    if NO_IMAGE.match(str(error)):
        return 'is damaged'
    return f'cannot be read ({type(error).__name__}: {first_line(error)})'


def label_problems(sample: Any, dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Yield the files of a sample that were read though they are cut short, or that have other labels, and why."""
    num_classes = len((getattr(dataset, 'metainfo', None) or {}).get('classes') or ())
    for element in elements(sample):
        image = str(element.get('img_path'))
        if os.path.isfile(image) and (defect := find_defect(image)):  # some versions of OpenCV fill the rest with grey
            yield image, f'is {defect}'
        if num_classes and 'gt_sem_seg' in element:
            labels = element.gt_sem_seg.data
            wrong = labels[(labels < 0) | (labels >= num_classes)]
            wrong = wrong[(wrong != IGNORED) & (wrong != getattr(dataset, 'ignore_index', IGNORED))]
            if len(wrong):
                yield str(element.get('seg_map_path')), f'has the label {int(wrong[0])} of {num_classes} classes'


def elements(tree: Any) -> Iterator[BaseDataElement]:
    """Yield the annotated samples in nested containers."""
    if isinstance(tree, BaseDataElement):
        yield tree
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (list, tuple)) else ()
    for part in parts:
        yield from elements(part)


def describe(damaged: Mapping[str, str]) -> str:
    """Return the damaged files with what is wrong with them.

    >>> describe({'a.jpg': 'is damaged'})
    'a.jpg is damaged'
    """
    return shorten(f'{file} {problem}' for file, problem in damaged.items())


@HOOKS.register_module()
class DamageHook(Hook):
    """Name each damaged file once, and end the training where there are too many.

    Args:
        max_left_out: Files that may be left out.
        max_share: Files that may be left out as a share of the samples, where that is more.

    Raises:
        UserError: More files than that are damaged.
    """

    priority = 'VERY_HIGH'

    def __init__(self, max_left_out: int = 10, max_share: float = 0.001) -> None:
        self.max_left_out, self.max_share = max_left_out, max_share

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Look at the samples of a step; each process tells the others what it has found."""
        known = dict(runner.message_hub.runtime_info.get(LEFT_OUT, {}))
        found = {}
        for element in elements(data_batch):
            found |= element.metainfo.get(LEFT_OUT, {})
        found = {file: problem for file, problem in found.items() if file not in known}
        if not runner.roll_call.total(len(found))[0]:
            return
        for others in all_gather_object(found):
            known |= others
        runner.message_hub.update_info(LEFT_OUT, known)
        if found:
            runner.logger.warning(f'left out, with the next sample in its place: {describe(found)}')
        most = max(self.max_left_out, self.max_share * len(runner.train_dataloader.dataset))
        if len(known) > most:
            raise UserError(
                f'{len(known)} files are damaged, more than {most:g}: {describe(known)}. Replace them or take them out '
                f'of the data; `convnext-dense check-data` finds them all. {how_to_continue(runner.cfg)}'
            )

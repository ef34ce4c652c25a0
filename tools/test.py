"""Evaluate a detector or a segmentor: ``python tools/test.py CONFIG CHECKPOINT``."""

import argparse
import os

from mmengine.config import DictAction

from convnext_dense.runs import test, user_errors


def parse_args() -> argparse.Namespace:
    """Return the command line's options; the names are MMDetection's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file of the whole model')
    parser.add_argument('--work-dir', help='folder for the log (default: work_dirs/<config name>)')
    parser.add_argument('--out', help='write predictions: a .pkl file for detectors, a folder for segmentors')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='save pictures of the predictions in this folder of the work dir')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds for which a window stays')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override the config')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    local_rank = vars(args).pop('local_rank')
    if local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(local_rank))
    return args


if __name__ == '__main__':
    with user_errors():
        test(**vars(parse_args()))

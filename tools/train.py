"""Train a detector or a segmentor: ``python tools/train.py CONFIG``."""

import argparse
import os

from mmengine.config import DictAction

import convnext_dense
from convnext_dense.runs import train, user_errors


def parse_args() -> argparse.Namespace:
    """Return the command line's options; the names are MMDetection's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)')
    parser.add_argument('--amp', action='store_true', help='mixed precision, where the config does not ask for it')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='continue from the latest checkpoint of the work dir, or from CKPT',
    )
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the lr with the batch size')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override the config')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)
    parser.add_argument('--version', action='version', version=convnext_dense.__version__)
    args = parser.parse_args()
    local_rank = vars(args).pop('local_rank')
    if local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(local_rank))
    return args


if __name__ == '__main__':
    with user_errors():
        train(**vars(parse_args()))

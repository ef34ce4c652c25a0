"""What the tools share: options named like MMDetection's, and one message for a user's mistake."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator

from mmengine.config import DictAction

from convnext_dense.errors import UserError
from convnext_dense.runs import is_first_process

TRACEBACK_VARIABLE = 'CONVNEXT_DENSE_TRACEBACK'


def config_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with a config file and options that override it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override the config')
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what every run takes: where it writes and how its processes are launched."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    # PyTorch's old launcher passes this instead of setting LOCAL_RANK
    parser.add_argument('--local_rank', '--local-rank', action=LocalRank, type=int, help=argparse.SUPPRESS)


class LocalRank(argparse.Action):
    """Put the option's value into the environment, unless it is there; the arguments do not get it."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**{**kwargs, 'default': argparse.SUPPRESS})

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Set ``LOCAL_RANK``."""
        os.environ.setdefault('LOCAL_RANK', str(values))


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a :class:`UserError` into one message on standard error and exit code 2; Ctrl-C into exit code 130."""
    try:
        yield
    except UserError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        if is_first_process():
            print(f'error: {error}', file=sys.stderr)
            if error.__cause__ is not None:
                print(f'(set {TRACEBACK_VARIABLE}=1 for the traceback)', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('interrupted; the last checkpoint is kept, continue with --resume', file=sys.stderr)
        sys.exit(130)

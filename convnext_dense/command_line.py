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
    parser.add_argument('--cfg-options', nargs='+', action=Options, metavar='KEY=VALUE', help='override the config')
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what every run takes: where it writes and how its processes are launched."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    # PyTorch's old launcher passes this instead of setting LOCAL_RANK
    parser.add_argument('--local_rank', '--local-rank', action=LocalRank, type=int, help=argparse.SUPPRESS)


class Options(DictAction):
    """MMEngine's ``KEY=VALUE`` pairs, with an error for words that are none."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Parse the pairs."""
        for word in values:
            if '=' not in word:
                parser.error(f'{option_string} takes KEY=VALUE pairs; got {word!r}')
        super().__call__(parser, namespace, values, option_string)


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
        # every rank speaks: an image may be damaged for one of them alone
        rank = '' if is_first_process() else f' (rank {os.environ["RANK"]})'
        print(f'error{rank}: {error}', file=sys.stderr)
        if error.__cause__ is not None:
            print(f'(set {TRACEBACK_VARIABLE}=1 for the traceback)', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('interrupted; a training continues from its latest checkpoint with --resume', file=sys.stderr)
        sys.exit(130)

"""What the tools share: options named like MMDetection's, and one message for a user's mistake."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from mmengine.config import DictAction

from convnext_dense.compat import trust_checkpoints
from convnext_dense.compat.errors import UserError
from convnext_dense.train.launch import is_in_group, is_lost_connection, say_once, was_said

TRACEBACK_VARIABLE = 'CONVNEXT_DENSE_TRACEBACK'


def config_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with a config file and options that override it."""
    parser = OneVoiceParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument('--cfg-options', nargs='+', action=Options, metavar='KEY=VALUE', help='override the config')
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what every run takes: where it writes and how its processes are launched."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    # PyTorch's old launcher passes this instead of setting LOCAL_RANK
    parser.add_argument('--local_rank', '--local-rank', action=LocalRank, type=int, help=argparse.SUPPRESS)


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add the opt-in to checkpoints that can run code; :func:`call` heeds it."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read checkpoints that need more than tensors and plain data; they can run any code',
    )


def call(function: Callable, parser: argparse.ArgumentParser) -> Any:
    """Call a function with the options of the command line, and return what it returns.

    A :class:`UserError` ends the program as in :func:`user_errors`. ``--trust-checkpoint`` holds during the call.
    """
    options = vars(parser.parse_args())
    trust = trust_checkpoints() if options.pop('trust_checkpoint', False) else contextlib.nullcontext()
    with user_errors(), trust:
        return function(**options)


class OneVoiceParser(argparse.ArgumentParser):
    """Argparse's parser; one of several processes prints a mistake in the options."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit."""
        say_once(f'{self.format_usage()}{self.prog}: error: {message}')
        sys.exit(2)


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
    """Turn a :class:`UserError` into one message on standard error and exit code 2; Ctrl-C into exit code 130.

    Of several processes on a machine, the one that finds the mistake first prints it.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        hint = f'\n(set {TRACEBACK_VARIABLE}=1 for the traceback)' if error.__cause__ is not None else ''
        say_once(f'error: {error}{hint}')
        leave(2)
    except RuntimeError as error:
        if is_lost_connection(error) and was_said():
            leave(2)  # the process that failed has told why
        raise
    except KeyboardInterrupt:
        say_once('interrupted; a training continues from its latest checkpoint with --resume')
        leave(130)


def leave(code: int) -> NoReturn:
    """Exit; out of a process group at once, because its destructors wait for the others or abort this process."""
    if is_in_group():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)

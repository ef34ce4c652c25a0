"""Runs that are killed and resumed, each in a process of its own, forked from one that has imported everything.

The arguments are a config, a work dir, and a list of tries as JSON. A try is killed so many seconds after it has logged
so many steps, ``[steps, seconds]``; ``null`` lets it end. It prints the exit code of each try.
"""

import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from convnext_dense.train import run as runs


def start(config: str, work_dir: str) -> int:
    """Train in a child that resumes what is there; return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(f'{work_dir}.log', 'a') as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.setsid()  # the workers of the data loader are killed with it
        runs.train(config, work_dir, resume='auto')
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def watch(child: int, log: Path, kill: tuple[int, float] | None) -> int:
    """Wait for a child, or kill it at its time; return its exit code."""
    deadline, limit, before = None, time.monotonic() + 300, num_steps(log)
    while time.monotonic() < (deadline or limit):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if kill and deadline is None and num_steps(log) >= before + kill[0]:
            deadline = time.monotonic() + kill[1]
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def num_steps(log: Path) -> int:
    """Return how many steps are logged."""
    return log.read_text().count('(train) [') if log.exists() else 0


if __name__ == '__main__':
    for library in ('mmcv.ops', 'mmdet.apis', 'mmseg.apis'):  # before the fork, once for all
        importlib.import_module(library)
    config, work_dir, kills = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    log = Path(f'{work_dir}.log')
    for kill in kills:
        print(watch(start(config, work_dir), log, kill), flush=True)

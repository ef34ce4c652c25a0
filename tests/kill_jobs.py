"""Runs that are killed and resumed, each in a process of its own, forked from one that has imported everything.

The arguments are a config, a folder, options as JSON, and the seconds at which each try is killed, as JSON; ``null``
lets it end. It prints a line of JSON for each try: exit code, and the seconds it took.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from convnext_dense.train import run as runs


def run_until(config: str, work_dir: str, options: dict, seconds: float | None) -> int:
    """Train in a child, resume what is there, and kill the child after so many seconds; return its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open(f'{work_dir}.log', 'a') as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            os.setsid()  # the workers of the data loader are killed with it
            runs.train(config, work_dir, cfg_options=options, resume='auto')
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    deadline = time.monotonic() + (seconds or 300)
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == '__main__':
    for library in ('mmcv.ops', 'mmdet.apis', 'mmseg.apis'):  # before the fork, once for all
        importlib.import_module(library)
    config, work_dir, options, kills = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:5])
    Path(work_dir).mkdir(parents=True, exist_ok=True)
    for seconds in kills:
        begin = time.monotonic()
        code = run_until(config, work_dir, options, seconds)
        print(json.dumps([code, time.monotonic() - begin]), flush=True)

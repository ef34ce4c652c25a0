"""PyTorch's torchrun with its options, without tracebacks of its own: ``python tools/torchrun.py ... SCRIPT ...``.

It ends with the exit code of the process that failed first. After an exit code of this package it says nothing: that
process has said what to do.
"""

import logging
import os
import signal
import sys

from torch.distributed import DistNetworkError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

SAID = (2, 3, 75, 130)  # exit codes of convnext_dense.cli
SIGNAL_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}  # with which the processes have ended

if __name__ == '__main__':
    if hasattr(signal, 'SIGUSR1'):  # which not every version hands on to the processes
        signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)  # what it says of a failed process
    try:
        main()
    except SignalException as error:
        sys.exit(SIGNAL_CODES.get(error.sigval, 128 + error.sigval))
    except (ValueError, AssertionError) as error:  # of its own checks of options, before it starts a process
        print(f'error: torchrun cannot start: {str(error) or "an option is out of range"}', file=sys.stderr)
        sys.exit(2)
    except DistNetworkError as error:
        print(f'error: the processes cannot meet; check MASTER_ADDR, or choose another PORT. {error}', file=sys.stderr)
        sys.exit(2)
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        if said := sorted(codes.intersection(SAID)):
            sys.exit(said[0])
        print(error, file=sys.stderr)
        sys.exit(max(1, error.get_first_failure()[1].exitcode))

"""The processes of a run: who they are, what starts them, how they end, and which of them speaks."""

import contextlib
import datetime
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.dist import is_distributed as is_in_group

from convnext_dense.compat.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LAUNCHERS = {  # launcher -> the variable with the number of processes, the command that starts them
    'pytorch': ('WORLD_SIZE', 'tools/dist_train.sh CONFIG GPUS'),
    'slurm': ('SLURM_NTASKS', 'tools/slurm_train.sh PARTITION JOB_NAME CONFIG'),
}


def process_rank() -> int:
    """Return the number of this process in its run; it is known before torch.distributed is up."""
    return int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0)))


def num_processes(launcher: str) -> int:
    """Return how many processes the run has on all machines; it is known before torch.distributed is up."""
    return int(os.environ[LAUNCHERS[launcher][0]]) if launcher in LAUNCHERS else 1


def device_type() -> str:
    """Return 'cuda' where there is a GPU, else 'cpu'."""
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def check_launcher(launcher: str) -> str:
    """Return the launcher that started this process: 'none' means 'pytorch' where torchrun started it.

    A :class:`UserError` says what is wrong where it did not start this process, or where there are too few GPUs.
    """
    if launcher == 'none' and 'TORCHELASTIC_RUN_ID' in os.environ:
        launcher = 'pytorch'
    if launcher not in LAUNCHERS:
        return launcher
    size, command = LAUNCHERS[launcher]
    if size not in os.environ:
        raise UserError(f'--launcher {launcher} finds no {size} in the environment. Start the run with {command}.')
    num_gpus = torch.cuda.device_count()
    if launcher == 'slurm' and num_gpus == 0:
        instead = LAUNCHERS['pytorch'][1]
        raise UserError(f'--launcher slurm needs a GPU for each process, and there is none here. Use {instead}.')
    local_size = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    if launcher == 'pytorch' and 0 < num_gpus < local_size:
        raise UserError(f'{local_size} processes were started for {num_gpus} GPUs on this machine. Start one for each.')
    return launcher


def join_group(timeout: float) -> None:
    """Let the processes that torchrun has started meet where MMEngine, which does it otherwise, cannot.

    MMEngine asks for a GPU. After a restart, PyTorch 2.14 hands out addresses of processes that have gone, so that each
    start gets names of its own. A process waits ``timeout`` seconds for the others.
    """
    restarts, is_cuda = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)), device_type() == 'cuda'
    if is_in_group() or (is_cuda and not restarts):
        return
    if is_cuda:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    store, rank, size = next(torch.distributed.rendezvous('env://'))
    torch.distributed.init_process_group(
        'nccl' if is_cuda else 'gloo', store=torch.distributed.PrefixStore(f'start {restarts}', store), rank=rank,
        world_size=size, timeout=datetime.timedelta(seconds=timeout),
    )  # fmt: skip


def leave_group() -> None:
    """End a distributed run on all processes together, because one that leaves early can abort the others."""
    if is_in_group():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def is_lost_connection(error: BaseException) -> bool:
    """Tell whether an error means that another process of the run has gone; gloo's errors have no class."""
    known = getattr(torch.distributed, 'DistBackendError', ())  # some builds of PyTorch have no distributed package
    return isinstance(error, known) or 'gloo/transport' in str(error)


TIMED_OUT = re.compile('timed out', re.IGNORECASE)  # as gloo says it
ABSENT = re.compile(r'[Rr]anks? ([\d, ]+) failed to pass')  # as PyTorch says it


class RollCall:
    """What the processes of a run tell each other between steps, on the CPU, beside the group of the gradients.

    Args:
        timeout: Seconds for which a process waits for the others.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        num_groups = 2 if get_world_size() > 1 else 0  # one to count, and one to ask who is absent
        span = datetime.timedelta(seconds=timeout)
        self.groups = [torch.distributed.new_group(backend='gloo', timeout=span) for _ in range(num_groups)]

    def total(self, *counts: int) -> list[int]:
        """Return the sums of some counts over all processes, which call it together.

        Raises:
            UserError: A process did not come in time.
        """
        if not self.groups:
            return list(counts)
        numbers = torch.tensor(counts)
        try:
            torch.distributed.all_reduce(numbers, group=self.groups[0])
        except RuntimeError as error:
            if not TIMED_OUT.search(str(error)):
                raise
            raise UserError(
                f'Process {self.absent()} of {get_world_size()} did not come to the next step within {self.timeout:g} '
                's: it hangs, perhaps while it loads data. If steps do take so long, give a larger --timeout.'
            ) from error
        return numbers.tolist()

    def absent(self) -> str:
        """Return the ranks of the processes that do not answer."""
        span = datetime.timedelta(seconds=min(self.timeout, 30))
        try:
            torch.distributed.monitored_barrier(self.groups[1], span, wait_all_ranks=True)
        except RuntimeError as error:
            found = ABSENT.search(str(error)) if get_rank() == 0 else None
            return found[1] if found else '0' if get_rank() else '?'
        return '?'


def check_same_checkpoint(file: str | None) -> None:
    """Raise a :class:`UserError` where the processes would resume from different checkpoints, or only some of them."""
    names = [name and Path(name).name for name in all_gather_object(file)]
    if len(set(names)) > 1:
        found = ', '.join(f'process {rank}: {name or "none"}' for rank, name in enumerate(names))
        raise UserError(
            f'The processes find different checkpoints to resume from ({found}). Put the work dir on a disk that all '
            'machines share, or copy the checkpoint to the same place on each.'
        )


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a work dir during this one: two would overwrite each other's checkpoints.

    The system frees the lock of a process that is killed. Its data workers have no part in it, as they would have in a
    lock of ``flock``.

    Raises:
        UserError: Another training is in it.
    """
    if fcntl is None or process_rank() > 0:
        yield
        return
    place = folder / '.training'
    with place.open('a+b', buffering=0) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise UserError(
                f'Another training writes to {folder}: {file.read().decode()}. Wait for its end, or give this one a '
                f'folder of its own with --work-dir. If that machine is gone, delete {place}.'
            ) from None
        except OSError:
            pass  # the disk has no locks
        with contextlib.suppress(OSError):  # the disk is full
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
        try:
            yield
        finally:
            place.unlink(missing_ok=True)


def say_once(text: str) -> None:
    """Print a message on standard error unless another process of the run on this machine has already printed one.

    The processes share a file. The first process locks it, prints and marks it. The others wait for the lock and find
    the mark. No process ends before the message is on the screen, because its launcher would then end the others.
    """
    slate = shared_file()
    if slate is None or fcntl is None:
        print(text, file=sys.stderr, flush=True)
        return
    with slate.open('a') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not was_said():
            print(text, file=sys.stderr, flush=True)
            file.write('said')


def was_said() -> bool:
    """Tell whether a process of this run on this machine has printed why the run ends."""
    slate = shared_file()
    return slate is not None and slate.exists() and slate.stat().st_size > 0


def shared_file() -> Path | None:
    """Return a file that the processes of a run on one machine share; None for a single process.

    Torchrun makes a folder for each start of its processes, tells them its place, and removes it in the end.
    """
    if error_file := os.environ.get('TORCHELASTIC_ERROR_FILE'):
        return Path(error_file).parents[1] / 'said'
    if int(os.environ.get('SLURM_NTASKS', 1)) > 1:
        step = '.'.join(os.environ.get(name, '') for name in ('SLURM_JOB_ID', 'SLURM_STEP_ID'))
        return Path(tempfile.gettempdir()) / f'convnext-dense-{step}.said'
    return None

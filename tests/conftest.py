"""What several rooms' tests share. Its imports of the package prepare the stack for all of them."""

import http.server
import os
import re
import subprocess
import sys
import tempfile
import threading
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch

from convnext_dense.compat.checkpoints import SAFE_TORCH
from convnext_dense.compat.warnings import WARNINGS


def pytest_configure(config):
    """Set up a test run.

    Warnings are errors here, but for the third-party ones that the commands silence. One thread each: the tensors are
    small, and threads that wait for each other on a busy machine take twice the time.
    """
    os.environ['CONVNEXT_DENSE_CACHE'] = tempfile.mkdtemp(prefix='convnext-dense-tests-')
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # of the programs that tests start
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    for message, category, module in WARNINGS:
        beginning = message.replace(':', '.')  # a colon separates the fields of pytest's filter
        config.addinivalue_line('filterwarnings', f'ignore:{beginning}:{category.__name__}:{module}')
    # NumPy 2 of pycocotools' arrays
    config.addinivalue_line('filterwarnings', 'ignore:__array_:DeprecationWarning')
    # torch.hub leaves the connection of a download that fails to the garbage collector, in whatever test it works
    config.addinivalue_line('filterwarnings', 'ignore:unclosed <socket:ResourceWarning')
    spare_repeats()
    if torch.__version__ < SAFE_TORCH:  # every test that downloads a .pth file would fail
        config.addinivalue_line('filterwarnings', 'ignore:PyTorch .* can be attacked by a .pth file:UserWarning')


def spare_repeats():
    """Spare the runs in this process what each does anew, which takes half of the time of many tests."""
    # after the package's import of MMEngine, which lets its warnings through
    from mmengine.config import config as mmengine_config
    from mmengine.dataset import base_dataset as mmengine_dataset
    from mmengine.runner import runner as mmengine_runner
    from yapf.yapflib import yapf_api

    formatted, format_code = {}, yapf_api.FormatCode

    def look_up(text, **style):  # for every checkpoint
        if text not in formatted:
            formatted[text] = format_code(text, **style)
        return formatted[text]

    mmengine_config.FormatCode = yapf_api.FormatCode = look_up  # onedl-mmengine looks it up at each call
    mmengine_runner.collect_env = cache(mmengine_runner.collect_env)  # starts a compiler
    mmengine_dataset.gc = SimpleNamespace(collect=int)  # to save memory in workers, of all that pytest keeps


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=['cpu', 'cuda'])
def device(request):
    """Run a test on the CPU, and on a GPU where there is one."""
    if request.param == 'cuda' and not torch.cuda.is_available():
        pytest.skip('needs a GPU')
    return torch.device(request.param)


@pytest.fixture
def run_python():
    """Run a program in a Python of its own; ``options`` are Python's."""

    def run(code, *arguments, options=()):
        command = [sys.executable, *options, '-c', code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return run


@pytest.fixture
def serve():
    """Serve a folder on this machine; calling it returns the address and a list of the paths that are asked for."""
    servers = []

    def start(folder):
        requests = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                requests.append(self.path)

        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        servers.append(server)
        return f'http://127.0.0.1:{server.server_port}', requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def one_process():
    """A process group of this process."""
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def from_timm():
    """Rename timm's keys by a few substitutions of their own, independent of the package's tables."""

    def rename(state_dict):
        renamed = {}
        for key, value in state_dict.items():
            key = re.sub(r'^stem[._](\d)', r'downsample_layers.0.\1', key)
            key = re.sub(r'^stages[._](\d)\.downsample', r'downsample_layers.\1', key)
            key = re.sub(r'^stages[._](\d)\.blocks', r'stages.\1', key)
            key = key.replace('conv_dw', 'dwconv').replace('mlp.fc', 'pwconv')
            if 'mlp.grn' in key:
                key = key.replace('mlp.grn.weight', 'grn.gamma').replace('mlp.grn.bias', 'grn.beta')
                value = value.reshape(1, 1, 1, -1)
            renamed[key] = value
        return renamed

    return rename


@pytest.fixture(scope='session')
def drawn(tmp_path_factory):
    """Options that let all splits of a drawn config use a few small drawings, which tests only read."""
    from convnext_dense.configs import SPLITS
    from convnext_dense.data import write_shapes

    data = dict(num_train=8, num_val=3, size=64)
    data['data_root'] = str(write_shapes(tmp_path_factory.mktemp('data') / 'shapes', **data))
    options = {f'{split}_dataloader.dataset.{key}': value for split in SPLITS for key, value in data.items()}
    return {**options, 'train_dataloader.batch_size': 4, 'default_hooks.logger.interval': 1}


@pytest.fixture(scope='session')
def drawn_boxes(drawn):
    """The same for a detector, whose evaluators read a file too."""
    ann_file = f'{drawn["val_dataloader.dataset.data_root"]}/annotations/instances_val.json'
    return {**drawn, 'val_evaluator.ann_file': ann_file, 'test_evaluator.ann_file': ann_file}


@pytest.fixture(scope='session')
def leaf_stats():
    """Count a config's model once for all tests; all leaves together take seconds."""
    from convnext_dense.train.stats import count_config

    return cache(count_config)

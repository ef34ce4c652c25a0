"""What several rooms' tests share."""

import re
from functools import cache

import pytest
import torch

from convnext_dense.stack.quiet import WARNINGS


def pytest_configure(config):
    """Warnings are errors here, but for the third-party ones that the package silences."""
    for warned in WARNINGS:
        message = warned.message.replace(':', '.')  # a colon separates the fields of pytest's filter
        line = f'ignore:{message}:{warned.category.__name__}:{warned.module}'
        config.addinivalue_line('filterwarnings', line)


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
def leaf_stats():
    """Count a config's model once for all tests; all leaves together take seconds."""
    from convnext_dense.model_stats import count_config

    return cache(count_config)

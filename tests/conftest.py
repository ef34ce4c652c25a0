"""What several rooms' tests share."""

import re

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

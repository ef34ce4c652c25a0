"""The rows of swap_configs.csv: a config of the libraries runs with ConvNeXt-atto, or fails for the reason given.

A config runs where, on drawn data and without compiled ops, its model takes a training step of the config's optimizer
with a finite loss and gradients, predicts with all thresholds at 0, and predicts the same, bit by bit, in a second
model that loads the saved weights strictly. ``strides`` are those of the maps that neck or heads use, ``parameters``
are in millions, ``fitted`` are the parts of the model with other channels, ``unused`` the backbone's parameters without
a gradient, and ``needs`` is a package that the config cannot do without. A row with neither strides nor an error needs
more than drawn data; it is only listed. ``export`` is ``yes`` where ``test_export.py`` exports the model, or a part of
the reason why it is refused.
"""

import csv
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement

from convnext_dense import UserError
from convnext_dense.configs import dotted, load_config, model_scope
from convnext_dense.swap import prove, swap_backbone
from convnext_dense.swap.proof import SEED, build_model, predict, take_step
from convnext_dense.swap.read import STRIDES
from convnext_dense.train.screen import quiet

ROWS = list(csv.DictReader(Path(__file__).with_name('swap_configs.csv').read_text().splitlines()))


def cases(is_chosen):
    return [
        pytest.param(row, id=row['config'], marks=[] if row['fast'] else pytest.mark.slow)
        for row in ROWS
        if is_chosen(row)
    ]


@pytest.fixture
def swap(tmp_path):
    """Exchange the backbone of a config: `swap(name)` returns the changes and the written file."""

    def exchange(name):
        swapped, file = swap_backbone(name, 'atto', weights=''), tmp_path / 'config.py'
        file.write_text(swapped.text(tmp_path))
        return swapped.changes, file

    return exchange


@pytest.mark.parametrize('row', cases(lambda row: row['strides']))
def test_a_config_runs(row, swap, tmp_path):
    changes, file = swap(row['config'])
    cfg = load_config(file)
    with model_scope(cfg), quiet():
        torch.manual_seed(SEED)
        if row['needs'] and find_spec(row['needs']) is None:
            with pytest.raises(Exception, match=row['needs']):
                take_step(build_model(cfg, 'cpu'), cfg)
            return
        model, other = build_model(cfg, 'cpu'), build_model(cfg, 'cpu')
        before = [parameter.clone() for parameter in model.parameters()]
        unused = take_step(model, cfg).without_gradient
        prediction = predictions(predict(model, cfg))
        torch.save(model.state_dict(), tmp_path / 'weights.pth')
        load_checkpoint(other, str(tmp_path / 'weights.pth'), map_location='cpu', strict=True, logger='silent')
        pairs = list(zip(prediction, predictions(predict(other, cfg)), strict=True))

    assert not all(torch.equal(*each) for each in zip(before, model.parameters(), strict=True))
    assert pairs
    assert all(torch.equal(one, another) for one, another in pairs)
    assert ' '.join(unused) == row['unused']
    backbone = next(value for path, value in changes.items() if path[-1] == 'backbone')
    strides = [STRIDES[stage] for stage in backbone.get('out_indices', range(len(STRIDES)))]
    assert ' '.join(map(str, strides)) == row['strides']
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == float(row['parameters'])
    fitted = dict.fromkeys(dotted(path[1:-1]) for path in changes if str(path[-1]).endswith('in_channels'))
    assert ' '.join(fitted) == row['fitted']


def predictions(sample):
    """Return the tensors that a model predicted."""
    sample = sample[-1] if 'video_data_samples' in sample else sample
    return [tensor for key, value in sample.items() if key.startswith('pred_') for tensor in tensors(value)]


def tensors(node):
    """Yield the tensors in a prediction."""
    if isinstance(node, torch.Tensor):
        yield node
    elif hasattr(node, 'tensor'):  # MMDetection's boxes
        yield node.tensor
    elif isinstance(node, BaseDataElement):
        yield from tensors(dict(node.items()))
    elif isinstance(node, (Mapping, list, tuple)):
        for child in node.values() if isinstance(node, Mapping) else node:
            yield from tensors(child)


@pytest.mark.parametrize('row', cases(lambda row: row['error']))
def test_a_config_does_not_run(row, swap):
    with pytest.raises(UserError) as error:
        prove(swap(row['config'])[1], 'cpu')
    assert row['error'] in str(error.value)


def test_the_rows_add_up():
    assert len({row['config'] for row in ROWS}) == len(ROWS) == 126
    assert sum(bool(row['strides']) and not row['needs'] for row in ROWS) == 106
    assert [row['config'].partition('/')[0] for row in ROWS if row['needs']] == ['boxinst', 'paa', 'lad']
    gaps = [row for row in ROWS if not row['strides']]
    assert len(gaps) == 17
    page = (Path(__file__).parents[1] / 'docs/swap.md').read_text()
    assert [row['config'] for row in gaps if f'`{row["config"]}`' not in page] == []

"""The benchmark of our backbone beside mmpretrain's: its statistics, its configs, and what it reads from runs."""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from convnext_dense import UserError
from convnext_dense.compat import read_checkpoint
from convnext_dense.configs import load_config

FILE = Path(__file__).parent.parent / 'benchmarks/parity.py'
spec = importlib.util.spec_from_file_location('parity', FILE)
parity = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parity)


def options(tmp_path, **changes):
    given = dict(recipe='det', data=None, keep_schedule=False, size=None, batch=None, double=False, cfg_options={})
    return argparse.Namespace(out=tmp_path, **(given | changes))


def log_run(tmp_path, side, seed, score, epochs=5, loss=1.0):
    """Write what a training logs: two steps, and an evaluation after some epochs."""
    file = parity.run_folder(tmp_path, side, seed) / '20260101_000000/vis_data/scalars.json'
    file.parent.mkdir(parents=True)
    parts = dict(loss_rpn_cls=loss / 2)
    parts['s0.loss_bbox'] = loss / 2
    rows = [dict(loss=loss, lr=1e-3, time=1.0, step=step, **parts) for step in (1, 2)]
    rows.append({'coco/bbox_mAP': score, 'coco/bbox_mAP_s': -1.0, 'data_time': 0.1, 'time': 0.1, 'step': epochs})
    file.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    initial = parity.initial(tmp_path, 'ours', seed)
    initial.parent.mkdir(exist_ok=True)
    initial.touch()


def test_the_interval_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    ours, stock = rng.normal(30, 5, 12), rng.normal(31, 4, 12)
    expected = stats.ttest_rel(ours, stock).confidence_interval(0.95)
    found = parity.paired(ours - stock)
    assert (found['low'], found['high']) == pytest.approx((expected.low, expected.high))
    assert found['difference'] == pytest.approx(np.mean(ours) - np.mean(stock))


@pytest.mark.parametrize('num', [6, 12, 40])
def test_a_difference_is_detectable_with_the_power_that_is_said(num):
    differences = np.linspace(-1, 1, num)
    error = differences.std(ddof=1) / num**0.5
    shift = parity.paired(differences)['detectable'] / error
    power = stats.nct.sf(stats.t.ppf(0.975, num - 1), num - 1, shift)
    assert power == pytest.approx(0.8, abs=0.02)


def test_table_and_picture_of_the_pairs_that_are_complete(tmp_path):
    parity.write_configs(options(tmp_path))
    for seed, (ours, stock) in enumerate([(0.30, 0.32), (0.34, 0.33), (0.20, 0.24)]):
        log_run(tmp_path, 'ours', seed, ours)
        log_run(tmp_path, 'stock', seed, stock)
    log_run(tmp_path, 'ours', 3, 0.5)  # whose partner is missing
    table = parity.report(tmp_path, parity.RECIPES['det'])
    assert table.startswith('3 seeds: 0, 1, 2\n')
    row = next(line for line in table.splitlines() if 'bbox_mAP' in line)
    assert row.startswith('| bbox_mAP | 28.000 | 7.211 | 29.667 | 4.933 | -1.667 |')
    assert 'bbox_mAP_s' not in table
    assert table.endswith('apart: up to 0e+00; up to 0e+00; up to 0e+00\n')
    assert '| loss_rpn_cls | 0.500 | 0.000 | 0.500 | 0.000 | +0.000 |' in table
    assert (tmp_path / 'parity.png').read_bytes().startswith(b'\x89PNG')
    assert json.loads((tmp_path / 'parity.json').read_text())['runs']['ours']['3']['bbox_mAP'] == 50
    alone = parity.report(tmp_path, parity.RECIPES['det'], ['ours'])
    assert alone.startswith('4 seeds: ')
    assert 'difference' not in alone


def test_how_far_runs_are_apart():
    assert parity.apart([4.0, 3.0, 2.0], [4.0, 3.02, 2.1]) == 'up to 5e-02, 1% from step 3'
    assert parity.apart([4.0, 3.0], [4.0, 3.000003]) == 'up to 1e-06'


def test_a_run_that_has_not_ended_says_nothing(tmp_path):
    parity.write_configs(options(tmp_path))
    log_run(tmp_path, 'ours', 0, 0.3, epochs=4)
    assert parity.read_run(tmp_path, 'ours', 0) is None
    assert parity.read_run(tmp_path, 'stock', 0) is None
    assert parity.report(tmp_path, parity.RECIPES['det']) == ''


def test_both_sides_have_one_recipe(tmp_path):
    parity.write_configs(options(tmp_path, recipe='decay', batch='4', cfg_options={'optim_wrapper.optimizer.lr': 0.5}))
    ours, stock = (load_config(tmp_path / f'{side}.py', import_modules=False) for side in parity.SIDES)
    assert stock.model.backbone.type == 'mmpretrain.ConvNeXt'
    assert stock.optim_wrapper.constructor == 'LearningRateDecayOptimizerConstructor'
    for cfg in (ours, stock):
        assert (cfg.model.backbone.arch, cfg.model.backbone.drop_path_rate) == ('atto', 0.2)
        assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.paramwise_cfg.decay_rate) == (0.5, 0.7)
        assert (cfg.train_dataloader.batch_size, cfg.train_cfg.val_interval) == (4, 5)
    ours, stock = ours.to_dict(), stock.to_dict()
    differing = {name for name in ours.keys() | stock.keys() if ours.get(name) != stock.get(name)}
    assert differing == {'custom_imports', 'model', 'optim_wrapper'}
    ours['model'].pop('backbone'), stock['model'].pop('backbone')
    assert ours['model'] == stock['model']


def test_runs_of_other_options_are_not_mixed(tmp_path):
    parity.write_configs(options(tmp_path))
    parity.write_configs(options(tmp_path))
    with pytest.raises(UserError, match='other options'):
        parity.write_configs(options(tmp_path, batch='2'))


def test_other_rates_are_refused(tmp_path, monkeypatch):
    stock = {'backbone.stages.0.1.depthwise_conv.weight': (1e-3, 0.05), 'neck.weight': (1e-3, 0.05)}
    rates = {'ours': {'backbone.stages.0.1.dwconv.weight': (1e-3, 0.05), 'neck.weight': (1e-3, 0.05)}, 'stock': stock}
    monkeypatch.setattr(parity, 'read_rates', lambda config: rates[config.stem])
    parity.check_rates(tmp_path)
    stock['backbone.stages.0.1.depthwise_conv.weight'] = (1e-3, 0.0)
    with pytest.raises(UserError, match=r'stages\.0\.1\.depthwise_conv'):
        parity.check_rates(tmp_path)


def test_initial_weights_are_the_same_under_both_names(tmp_path):
    parity.write_configs(options(tmp_path))
    parity.write_initial(tmp_path, 3)
    ours, stock = (read_checkpoint(parity.initial(tmp_path, side, 3))['state_dict'] for side in parity.SIDES)
    assert {parity.stock_name(name) for name in ours} == stock.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(stock[parity.stock_name(name)], tensor, rtol=0, atol=0)

"""Two processes with parts of a model train as two with whole copies of it, and save what one process can read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_distributed import JOBS, STEPS, TORCHRUN, folder, recorded  # noqa: F401  the fixture

from convnext_dense import UserError
from convnext_dense.configs import load_config
from convnext_dense.train.switches import apply_switches

needs_fsdp = pytest.mark.skipif(torch.__version__ < '2.6', reason='--fsdp needs PyTorch 2.6')
WAYS = {'copies': {}, 'zero': {'zero': True}, 'fsdp': {'fsdp': True}}


@pytest.fixture(scope='module')
def runs(folder):  # noqa: F811
    """The folder with a run of each way from the same weights, and one of each that continues from its middle."""
    plain = dict(config=str(folder / 'segmentor.py'), cfg_options={'train_dataloader.batch_size': 2})
    jobs = [['train', dict(plain, work_dir='start')]]
    plain['cfg_options'] = plain['cfg_options'] | {'load_from': 'start/iter_5.pth'}
    jobs += [['train', dict(plain, work_dir=name, **switch)] for name, switch in WAYS.items()]
    for name, switch in WAYS.items():
        again = dict(plain, work_dir=f'{name}_resumed', resume=f'{name}/iter_5.pth', **switch)
        jobs.append(['train', again])
    place = folder / 'shards'
    place.mkdir()
    command = [sys.executable, *TORCHRUN, JOBS, json.dumps(jobs)]
    with (place / 'output.txt').open('w') as output:
        done = subprocess.run(command, cwd=place, stdout=output, stderr=output, timeout=300)
    printed = (place / 'output.txt').read_text()
    assert done.returncode == 0, printed[-3000:]
    assert 'returned a view tensor' not in printed
    return place


def checkpoint(runs: Path, name: str) -> dict:
    return torch.load(runs / f'{name}/iter_10.pth', weights_only=False)


def losses(runs: Path, name: str) -> list[float]:
    return [row['losses']['loss'] for rank in (0, 1) for row in recorded(runs / f'{name}/record_{rank}.jsonl', 'step')]


@pytest.mark.slow
@pytest.mark.parametrize('way', ['zero', 'fsdp'])
def test_parts_train_as_copies_do(runs, way):
    assert len(losses(runs, way)) == 2 * STEPS
    assert losses(runs, way) == pytest.approx(losses(runs, 'copies'), rel=1e-4)
    found, expected = checkpoint(runs, way), checkpoint(runs, 'copies')
    assert found['state_dict'].keys() == expected['state_dict'].keys()
    for name, tensor in expected['state_dict'].items():
        assert type(found['state_dict'][name]) is torch.Tensor
        assert (found['state_dict'][name] - tensor).norm() <= 2e-3 * max(1, tensor.norm()), name
    moments, others = found['optimizer']['state'], expected['optimizer']['state']
    assert moments.keys() == others.keys()
    for number, state in others.items():
        assert moments[number]['exp_avg'].shape == state['exp_avg'].shape
        assert (moments[number]['exp_avg'] - state['exp_avg']).norm() <= 1e-2 * max(1e-3, state['exp_avg'].norm())


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS)
def test_parts_continue_where_they_stopped(runs, way):
    whole, resumed = checkpoint(runs, way)['state_dict'], checkpoint(runs, f'{way}_resumed')['state_dict']
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize('switch', ['zero', 'fsdp'])
def test_one_process_has_no_parts(switch):
    cfg = load_config('seg/upernet_convnext_atto_shapes')
    cfg.launcher = 'none'
    with pytest.raises(UserError, match=f'--{switch} is for several processes'):
        apply_switches(cfg, **{switch: True})


@pytest.mark.parametrize(
    ('switch', 'change', 'named'),
    [
        ('zero', {'optim_wrapper.optimizer.type': 'Lion'}, ('--zero', 'AdamW', 'Lion')),
        pytest.param('fsdp', {'custom_hooks': [dict(type='EMAHook')]}, ('--fsdp', '--ema'), marks=needs_fsdp),
    ],
)
def test_what_cannot_be_divided(switch, change, named, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    cfg = load_config('seg/upernet_convnext_atto_shapes', change)
    cfg.launcher = 'pytorch'
    with pytest.raises(UserError) as error:
        apply_switches(cfg, **{switch: True})
    assert all(word in str(error.value) for word in named)

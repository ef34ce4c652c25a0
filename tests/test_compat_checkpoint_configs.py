"""A config inside of a checkpoint is Python: no door of MMEngine runs it, unless the user trusts the file."""

import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner
from mmseg.apis import MMSegInferencer

from convnext_dense import UserError
from convnext_dense.compat import trust_checkpoints


@pytest.fixture
def trap(tmp_path):
    """A folder that exists when the config of the checkpoint was run, and the checkpoint."""
    text = f"__import__('os').mkdir({str(tmp_path / 'trapped')!r})\nmodel = dict(type='NoSuchModel')\n"
    meta = dict(cfg=text, config=text, epoch=1, iter=1)
    torch.save({'meta': meta, 'message_hub': dict(runtime_info=dict(cfg=text))}, tmp_path / 'trap.pth')
    return tmp_path / 'trapped', str(tmp_path / 'trap.pth')


@pytest.mark.parametrize('inferencer', [DetInferencer, MMSegInferencer])
@pytest.mark.parametrize('model', [None, {}])
def test_inferencers_ask_for_the_config(inferencer, model, trap):
    trapped, file = trap
    with pytest.raises(
        UserError,
        match=rf'{inferencer.__name__} got no config, .*trap\.pth, which is Python and can run any code .*Give the '
        rf"config too: {inferencer.__name__}\(model=CONFIG, weights='{file}'\)\. .*trust_checkpoints",
    ):
        inferencer(model=model, weights=file, device='cpu')
    assert not trapped.exists()
    with trust_checkpoints(), pytest.raises(KeyError, match='NoSuchModel'):
        inferencer(model=model, weights=file, device='cpu')
    assert trapped.exists()


@pytest.mark.parametrize('runner', [Runner, FlexibleRunner])
def test_no_runner_runs_a_config_to_resume(runner, trap, monkeypatch):
    trapped, file = trap

    class Loop:
        pass

    class Resuming(runner):
        train_loop = Loop()
        strategy = Loop()

        def __init__(self):
            self.strategy.resume = lambda *_, **__: torch.load(file, weights_only=True)

        def load_checkpoint(self, *_, **__):
            return torch.load(file, weights_only=True)

    with pytest.raises(UserError, match=r"holds a config as meta\['config'\], which is Python and can run any code"):
        Resuming().resume(file)
    assert not trapped.exists()
    with trust_checkpoints(), pytest.raises(AttributeError):  # what this runner lacks, after the config
        Resuming().resume(file)
    assert trapped.exists()


def test_a_config_of_the_users_own_is_run():
    assert Config.fromstring('a = 1 + 1', '.py').a == 2

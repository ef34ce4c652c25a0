"""What the inspector says of files: ours, foreign ones, ones without a ConvNeXt and damaged ones."""

import json

import pytest
import timm
import torch
import torchvision
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file
from small_models import SMALL
from torch import nn

from convnext_dense import ConvNeXt
from convnext_dense.weights.inspect import describe


def without_first_stage():
    model = ConvNeXt(SMALL)
    model.stages[0] = nn.Identity()
    return model


CONFIG = "raise SystemExit('a config is not run')\n"


def rows(source) -> dict[str, str]:
    """Return the rows of the text by their names."""
    lines = describe(source).splitlines()
    assert len(lines) <= 25
    return {line[2:16].strip(): line[16:] for line in lines[1:]}


def save(content, tmp_path, name='file.pth', **options):
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


def detector() -> dict[str, torch.Tensor]:
    """The names of a Cascade Mask R-CNN for three classes, as MMDetection has them."""
    heads = {f'roi_head.bbox_head.{i}.fc_cls.weight': torch.randn(4, 16) for i in range(3)}
    return {
        **{f'backbone.{key}': value for key, value in ConvNeXt(SMALL).state_dict().items()},
        'neck.lateral_convs.0.bn.weight': torch.randn(8),
        'neck.lateral_convs.0.bn.running_mean': torch.randn(8),
        'neck.lateral_convs.0.bn.num_batches_tracked': torch.tensor(3),
        **heads,
        'roi_head.mask_head.conv_logits.weight': torch.randn(3, 16, 1, 1),
    }


def test_checkpoint_of_a_detector(tmp_path):
    meta = dict(
        epoch=12,
        iter=1200,
        seed=7,
        time='20260131_120000',
        cfg=CONFIG,
        experiment_name='cascade_20260131_093000',
        mmengine_version='0.10.7' + 'e' * 40,
        dataset_meta=dict(classes=('date', 'fig', 'hazelnut'), palette=[(1, 2, 3)] * 3),
    )
    history = {'val/coco/bbox_mAP': HistoryBuffer([0.1, 0.25], [1, 1]), 'train/loss': HistoryBuffer([1.5], [1])}
    content = {
        'meta': meta,
        'state_dict': detector(),
        'message_hub': dict(log_scalars=history, runtime_info={}, resumed_keys={}),
        'optimizer': dict(state={}, param_groups=[]),
    }
    file = save(content, tmp_path)
    num_params = sum(each.numel() for each in ConvNeXt(SMALL).parameters())
    assert rows(file) == {
        'file': f'{file.stat().st_size / 1e6:.1f} MB, PyTorch archive',
        'format': 'facebookresearch ConvNeXt',
        'backbone': "a ConvNeXt with depths (1, 1, 2, 1) and dims (8, 16, 24, 32) at 'backbone.': "
        f'69 tensors, {num_params:,}, output norms 0, 1, 2, 3',
        'model': 'Cascade Mask R-CNN, 3 box heads, 3 classes',
        'other parts': 'neck 3 (8), roi_head 4 (240)',
        'tensors': f'76, {num_params + 248:,}, float32 75, int64 1',
        'NaN, infinity': 'none',
        'classes': '3: date, fig, hazelnut',
        'training': 'epoch 12, iter 1200, seed 7, time 20260131_120000, mmengine_version 0.10.7',
        'config': 'cascade',
        'metrics': 'coco/bbox_mAP 0.25',
        'measured': 'last validation before the checkpoint was saved',
        'other entries': 'message_hub (3 entries), optimizer (2 entries)',
    }


@pytest.mark.parametrize(('by_epoch', 'step'), [(True, 12), (False, 1200)])
def test_metrics_come_from_the_log_of_the_run(tmp_path, by_epoch, step):
    """The checkpoint's own history ends one validation earlier: MMEngine saves first."""
    history = {'val/mIoU': HistoryBuffer([11.0], [1])}
    file = save(
        dict(meta=dict(epoch=12, iter=1200), state_dict=detector(), message_hub=dict(log_scalars=history)), tmp_path
    )
    for folder, value in (('20260101_000000', 22.0), ('20260102_000000', 33.0)):
        training = dict(loss=1.0, step=step, **(dict(epoch=12) if by_epoch else {}))
        validations = [dict(mIoU=value - 1, step=step - 1), dict(mIoU=value, time=0.1, step=step), dict(step=step + 1)]
        log = tmp_path / folder / 'vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text('\n'.join(map(json.dumps, [training, *validations])) + '\n{"mIoU": 4')
    assert rows(file)['metrics'] == 'mIoU 33'
    assert rows(file)['measured'] == "validation of this checkpoint, from the run's log"


def test_checkpoint_from_before_mmengine(tmp_path):
    meta = dict(CLASSES=('wall', 'floor'), PALETTE=[[1, 1, 1], [2, 2, 2]], config=CONFIG, epoch=3, iter=99)
    weights = {f'backbone.{key}': value for key, value in ConvNeXt(SMALL).state_dict().items()}
    heads = ('decode_head.fpn_bottleneck.conv', 'decode_head.conv_seg', 'auxiliary_head.conv_seg')
    weights |= {f'{name}.weight': torch.randn(2, 2, 1, 1) for name in heads}
    file = save(dict(meta=meta, state_dict=weights), tmp_path, _use_new_zipfile_serialization=False)
    found = rows(file)
    assert found['file'].endswith('MB, PyTorch pickle, as before PyTorch 1.6')
    assert found['model'] == 'UperNet with an auxiliary head, 2 classes'
    assert found['classes'] == '2: wall, floor'
    assert found['training'] == 'epoch 3, iter 99'


@pytest.mark.parametrize(
    ('build', 'backbone', 'model'),
    [
        (lambda: timm.create_model('convnextv2_atto', num_classes=9), 'ConvNeXt V2 atto: 1', 'classifier, 9 classes'),
        (lambda: torchvision.models.convnext_tiny(), 'ConvNeXt tiny: 1', 'classifier, 1000 classes'),
        (lambda: ConvNeXt('femto', grn=True), 'ConvNeXt V2 femto: ', None),
        (lambda: torchvision.models.resnet18(), None, 'a ResNet'),
        (lambda: timm.create_model('vit_tiny_patch16_224'), None, 'a Vision Transformer'),
        (lambda: nn.Linear(3, 4), None, None),
        (lambda: nn.ModuleDict(dict(stem=nn.Sequential(nn.Conv2d(3, 8, 4)), blocks=nn.Linear(2, 2))), None, None),
        (without_first_stage, None, None),
    ],
    ids=['timm', 'torchvision', 'ours', 'ResNet', 'ViT', 'no backbone', 'stem', 'no first stage'],
)
def test_other_models(tmp_path, build, backbone, model):
    weights = build().state_dict()
    save_file(weights, tmp_path / 'model.safetensors')
    found = rows(tmp_path / 'model.safetensors')
    assert found['file'].endswith(' MB, safetensors')
    assert found.get('backbone', '').startswith(backbone or '')
    assert ('backbone' in found) == (backbone is not None)
    assert found.get('model') == model
    assert found['tensors'].startswith(f'{len(weights)}, ')


def test_files_without_weights(tmp_path):
    found = rows(save({'epoch': 3, 'args': {'lr': 0.1}, 'note': 'x' * 50}, tmp_path))
    assert found['tensors'] == '0, 0'
    assert found['other entries'] == f'epoch (3), args (1 entries), note ({"x" * 27}...)'
    assert found['training'] == 'epoch 3'


def test_values_that_are_no_numbers_are_counted(tmp_path):
    weights = ConvNeXt(SMALL).state_dict()
    weights['norm0.bias'][:3] = torch.nan
    weights['norm1.bias'][0] = -torch.inf
    assert rows(save(weights, tmp_path))['NaN, infinity'] == '4 values in norm0.bias, norm1.bias'


def test_names_cannot_steer_the_terminal(tmp_path):
    text = describe(save({'a\x1b[2J\rb': torch.ones(1), 'state': 'x\x07'}, tmp_path), keys=True)
    assert all(c.isprintable() or c == '\n' for c in text)
    assert 'a?[2J?b' in text


def test_json_and_keys(tmp_path):
    file = save(detector(), tmp_path)
    found = json.loads(describe(file, keys=True, as_json=True))
    assert found['keys']['roi_head.bbox_head.0.fc_cls.weight'] == '(4, 16) float32'
    assert found['backbones'][0]['prefix'] == 'backbone.'
    assert (found['model'], found['num_classes']) == ('Cascade Mask R-CNN, 3 box heads', 3)
    lines = describe(file, keys=True).splitlines()
    assert len(lines) > len(detector())
    assert f'{"roi_head.bbox_head.0.fc_cls.weight":60} (4, 16) float32' in lines

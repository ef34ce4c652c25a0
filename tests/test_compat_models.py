"""The stock models of mmdet and mmseg train a step and predict on the prepared stack."""

import os
from pathlib import Path

import pytest

import convnext_dense

START = """
import sys, torch, convnext_dense
convnext_dense.compat.silence()
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
with open(sys.argv[1], 'w') as file:
    file.write(f'_base_ = {sys.argv[2]!r}')
config = Config.fromfile(sys.argv[1])
MessageHub.get_current_instance().update_info('epoch', 0)
"""
DETECTION = """
config.model.backbone.init_cfg = None
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
register_all_modules()
model = MODELS.build(config.model)
batch = demo_mm_inputs(1, [[3, 128, 160]], with_mask=True, num_classes=80)
"""
SEGMENTATION = """
config.model.pretrained = None
config.model.data_preprocessor.size = (64, 64)
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
register_all_modules()
model = revert_sync_batchnorm(MODELS.build(config.model))
sample = SegDataSample(metainfo={'img_shape': (64, 64), 'ori_shape': (64, 64)})
sample.gt_sem_seg = PixelData(data=torch.randint(0, 19, (1, 64, 64)))
batch = {'inputs': [torch.zeros(3, 64, 64, dtype=torch.uint8)] * 2, 'data_samples': [sample] * 2}
"""
STEP = """
losses = model.train_step(batch, build_optim_wrapper(model, config.optim_wrapper))
assert all(torch.as_tensor(value).isfinite().all() for value in losses.values()), losses
with torch.no_grad():
    print(sorted(model.eval().test_step(batch)[0].keys()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    'config',
    [
        'mmdet::carafe/mask-rcnn_r50_fpn-carafe_1x_coco.py',
        'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
        'mmdet::dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
        'mmdet::dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco.py',
        'mmdet::detectors/cascade-rcnn_r50-sac_1x_coco.py',
        'mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py',
        'mmdet::guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py',
        'mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py',
        'mmdet::tood/tood_r50_fpn_1x_coco.py',
        'mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py',
    ],
)
def test_a_stock_model_trains_and_predicts_and_nothing_of_ours_warns(config, run_python, tmp_path):
    """The libraries may warn of their own code; a warning begins with the file that it comes from."""
    task, predicted = (DETECTION, 'pred_instances') if config.startswith('mmdet') else (SEGMENTATION, 'pred_sem_seg')
    result = run_python(START + task + STEP, tmp_path / 'config.py', config)
    assert result.returncode == 0, result.stderr
    assert predicted in result.stdout
    assert str(Path(convnext_dense.__file__).parent) + os.sep not in result.stderr

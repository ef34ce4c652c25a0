"""The stock models of mmdet and mmseg train a step and predict on the prepared stack."""

import pytest
from test_compat_finder import run_python

DETECTION = """
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
with open(sys.argv[1], 'w') as file:
    file.write("_base_ = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'")
config = Config.fromfile(sys.argv[1])
config.model.backbone.init_cfg = None
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
register_all_modules()
model = MODELS.build(config.model)
batch = demo_mm_inputs(1, [[3, 64, 96]], with_mask=True, num_classes=80)
losses = model.train_step(batch, build_optim_wrapper(model, config.optim_wrapper))
assert all(value.isfinite() for value in losses.values()), losses
with torch.no_grad():
    print(sorted(model.eval().test_step(batch)[0].pred_instances.keys()))
"""

SEGMENTATION = """
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
with open(sys.argv[1], 'w') as file:
    file.write("_base_ = 'mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py'")
config = Config.fromfile(sys.argv[1])
config.model.pretrained = None
config.model.data_preprocessor.size = (64, 64)
for head in (config.model.decode_head, config.model.auxiliary_head):
    head.loss_decode.avg_non_ignore = True
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
register_all_modules()
model = revert_sync_batchnorm(MODELS.build(config.model))
sample = SegDataSample(metainfo={'img_shape': (64, 64), 'ori_shape': (64, 64)})
sample.gt_sem_seg = PixelData(data=torch.randint(0, 19, (1, 64, 64)))
batch = {'inputs': [torch.zeros(3, 64, 64, dtype=torch.uint8)] * 2, 'data_samples': [sample] * 2}
losses = model.train_step(batch, build_optim_wrapper(model, config.optim_wrapper))
assert all(value.isfinite() for value in losses.values()), losses
with torch.no_grad():
    print(tuple(model.eval().test_step(batch)[0].pred_sem_seg.shape))
"""

# As DETECTION, for models that ask for more ops than RoIAlign and NMS
OPS_OF_DETECTORS = """
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
with open(sys.argv[1], 'w') as file:
    file.write(f"_base_ = 'mmdet::{sys.argv[2]}.py'")
config = Config.fromfile(sys.argv[1])
config.model.backbone.init_cfg = None
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
register_all_modules()
MessageHub.get_current_instance().update_info('epoch', 0)
model = MODELS.build(config.model)
batch = demo_mm_inputs(1, [[3, 128, 160]], with_mask=True, num_classes=80)
losses = model.train_step(batch, build_optim_wrapper(model, config.optim_wrapper))
assert all(torch.as_tensor(value).isfinite().all() for value in losses.values()), losses
with torch.no_grad():
    model.eval().test_step(batch)
print('done')
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    'config',
    [
        'carafe/mask-rcnn_r50_fpn-carafe_1x_coco',
        'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco',
        'dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco',
        'detectors/cascade-rcnn_r50-sac_1x_coco',
        'dyhead/atss_r50_fpn_dyhead_1x_coco',
        'guided_anchoring/ga-retinanet_r50_fpn_1x_coco',
        'reppoints/reppoints-moment_r50_fpn_1x_coco',
        'tood/tood_r50_fpn_1x_coco',
    ],
)
def test_stock_models_with_deformable_and_other_layers_train_and_predict(config, tmp_path):
    result = run_python(OPS_OF_DETECTORS, str(tmp_path / 'config.py'), config)
    assert result.stdout == 'done\n', result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ('code', 'printed'),
    [(DETECTION, "['bboxes', 'labels', 'masks', 'scores']\n"), (SEGMENTATION, '(64, 64)\n')],
    ids=['detection', 'segmentation'],
)
def test_a_stock_model_trains_and_predicts_without_a_word(code, printed, tmp_path):
    result = run_python(code, str(tmp_path / 'config.py'))
    assert (result.stderr, result.stdout) == ('', printed)

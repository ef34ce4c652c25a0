"""COCO object detection: the data of instance segmentation without the masks."""

_base_ = ['coco_instance.py']

from convnext_dense.tta import multi_scale


def drop_masks(steps):
    """Return a pipeline that loads boxes alone."""
    return [dict(step, with_mask=False) if step['type'] == 'LoadAnnotations' else step for step in steps]


train_pipeline = drop_masks(_base_.train_pipeline)
test_pipeline = drop_masks(_base_.test_pipeline)
tta_pipeline = multi_scale(test_pipeline)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator

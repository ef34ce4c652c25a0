"""How `tools/test.py --tta` merges the views of an image; nothing is published with it."""

tta_model = dict(type='InstanceTTA', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))

"""The ladder's first step by MMDetection's recipe, SGD ``1x``: flips alone, no stochastic depth.

Compare with ``mask_rcnn_resnet_adamw_shapes.py``, which is the same but for the recipe. The rate is MMDetection's,
0.02 for 16 images, for the 8 images of a step here.
"""

_base_ = ['_base_/mask_rcnn_resnet_shapes.py']

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4))

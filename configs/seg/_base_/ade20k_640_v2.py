"""ADE20K in crops of 640 pixels, with the multi-scale test of ConvNeXt V2.

The paper does not say whether each size is also mirrored; here it is.
"""

_base_ = ['ade20k_640.py']

from convnext_dense.tta import multi_scale

tta_pipeline = multi_scale(_base_.test_pipeline, _base_.ratios_v2)

"""ADE20K with the multi-scale test of ConvNeXt V2 (arXiv 2301.00808, Section A.4), whose sizes are closer together.

The paper does not say whether each is also mirrored; here it is.
"""

_base_ = ['ade20k_512.py']

ratios = [0.75, 0.875, 1.0, 1.125, 1.25]
resizes = [
    dict(type='Resize', scale=tuple(int(ratio * side) for side in _base_.scale), keep_ratio=True) for ratio in ratios
]
load, views = _base_.tta_pipeline
tta_pipeline = [load, dict(views, transforms=[resizes, *views.transforms[1:]])]

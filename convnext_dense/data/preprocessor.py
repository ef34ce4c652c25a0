"""Normalisation of images with any number of channels; MMEngine's takes one or three."""

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module()
def BandsPreprocessor(base: str, mean: Sequence[float], std: Sequence[float], **options) -> nn.Module:
    """Return a data preprocessor of MMDetection's or MMSegmentation's that normalises any number of channels.

    Args:
        base: Its type, such as ``'DetDataPreprocessor'``.
        mean: Of each channel, in the range of the image's values.
        std: The standard deviation of each channel.
        **options: Of ``base``. ``bgr_to_rgb`` and ``rgb_to_bgr``, which are for three channels, have no effect.

    Raises:
        ValueError: There are not as many deviations as means.
    """
    if len(mean) != len(std):
        raise ValueError(f'mean has {len(mean)} values and std {len(std)}; they need one for each channel.')
    options = {key: value for key, value in options.items() if key not in ('bgr_to_rgb', 'rgb_to_bgr')}
    preprocessor = MODELS.build(dict(type=base, **options))
    for name, values in (('mean', mean), ('std', std)):
        preprocessor.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), False)
    preprocessor._enable_normalize = True
    return preprocessor

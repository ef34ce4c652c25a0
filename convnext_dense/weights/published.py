"""The weights that facebookresearch published: a short name goes in, the file's address, size and licence come out.

Sources: the tables in the READMEs of facebookresearch/ConvNeXt and facebookresearch/ConvNeXt-V2. ``tiny_1k`` is
ConvNeXt-T trained on ImageNet-1k, ``base_22k`` ConvNeXt-B on ImageNet-22k, ``base_22k_1k`` on both in turn;
``v2_base_1k`` is ConvNeXt V2, and ``cascade_mask_rcnn_tiny_1k`` a whole detector. A suffix ``_384`` or ``_512`` is the
image size in pixels, where it is not 224.
"""

from typing import NamedTuple

import torch

from convnext_dense.backbone import ConvNeXt
from convnext_dense.compat.errors import UserError
from convnext_dense.weights.licences import CC_BY_NC, MIT

HOST = 'https://dl.fbaipublicfiles.com/convnext/'
V1_SIZES = ('tiny', 'small', 'base', 'large', 'xlarge')
V2_SIZES = ('atto', 'femto', 'pico', 'nano', 'tiny', 'base', 'large', 'huge')


class Published(NamedTuple):
    """A file on facebookresearch's host.

    Attributes:
        path: Below :data:`HOST`.
        size: Of the model, in :data:`~convnext_dense.variants.VARIANTS`.
        licence: Of the weights.
        num_classes: Outputs of the classifier; 0: it has none; None: a whole detector or segmentor.
        whole: The weights of a whole model, in units of 1e6 bytes.
    """

    path: str
    size: str
    licence: str
    num_classes: int | None = None
    whole: int = 0

    @property
    def url(self) -> str:
        """The file's address."""
        return HOST + self.path

    @property
    def megabytes(self) -> int:
        """The weights in units of 1e6 bytes, in fp32; a file may hold more, such as the state of an optimizer."""
        if self.num_classes is None:
            return self.whole
        with torch.device('meta'):
            model = ConvNeXt(self.size, grn=self.path.startswith('convnextv2/'), out_norm=False)
        count = sum(parameter.numel() for parameter in model.parameters())
        if self.num_classes:  # the final norm, and a linear layer
            count += 2 * model.dims[-1] + (model.dims[-1] + 1) * self.num_classes
        return round(4 * count / 1e6)


PUBLISHED: dict[str, Published] = {
    # classifiers
    **{f'{size}_1k': Published(f'convnext_{size}_1k_224.pth', size, MIT, 1000) for size in V1_SIZES[:4]},
    **{f'{size}_1k_ema': Published(f'convnext_{size}_1k_224_ema.pth', size, MIT, 1000) for size in V1_SIZES[:4]},
    **{f'{size}_1k_384': Published(f'convnext_{size}_1k_384.pth', size, MIT, 1000) for size in ('base', 'large')},
    **{f'{size}_22k': Published(f'convnext_{size}_22k_224.pth', size, MIT, 21841) for size in V1_SIZES},
    **{
        f'{size}_22k_1k{suffix}': Published(f'convnext_{size}_22k_1k_{pixels}{ema}.pth', size, MIT, 1000)
        for suffix, pixels in (('', 224), ('_384', 384))
        for size in V1_SIZES
        for ema in ('_ema' if size == 'xlarge' else '',)
    },
    **{
        f'v2_{size}_fcmae': Published(f'convnextv2/pt_only/convnextv2_{size}_1k_224_fcmae.pt', size, CC_BY_NC, 0)
        for size in V2_SIZES
    },
    **{
        f'v2_{size}_1k': Published(f'convnextv2/im1k/convnextv2_{size}_1k_224_ema.pt', size, CC_BY_NC, 1000)
        for size in V2_SIZES
    },
    **{
        f'v2_{size}_22k_1k{suffix}': Published(
            f'convnextv2/im22k/convnextv2_{size}_22k_{pixels}_ema.pt', size, CC_BY_NC, 1000
        )
        for suffix, pixels, sizes in (
            ('', 224, ('nano', 'tiny', 'base', 'large')),
            ('_384', 384, ('nano', 'tiny', 'base', 'large', 'huge')),
            ('_512', 512, ('huge',)),
        )
        for size in sizes
    },
    # whole detectors and segmentors
    'mask_rcnn_tiny_1k': Published('coco/mask_rcnn_convnext_tiny_1k_3x.pth', 'tiny', MIT, whole=192),
    **{
        f'cascade_mask_rcnn_{size}_{data}': Published(
            f'coco/cascade_mask_rcnn_convnext_{size}_{data}_3x.pth', size, MIT, whole=whole
        )
        for data, sizes in (
            ('1k', {'tiny': 344, 'small': 430, 'base': 583}),
            ('22k', {'base': 583, 'large': 1019, 'xlarge': 1628}),
        )
        for size, whole in sizes.items()
    },
    **{
        f'upernet_{size}_{data}': Published(
            f'ade20k/upernet_convnext_{size}_{data}_{pixels}x{pixels}.pth', size, MIT, whole=whole
        )
        for data, pixels, sizes in (
            ('1k', 512, {'tiny': 241, 'small': 328, 'base': 488}),
            ('22k', 640, {'base': 488, 'large': 940, 'xlarge': 1565}),
        )
        for size, whole in sizes.items()
    },
}


def find_published(name: str) -> Published:
    """Return the file of a short name.

    Raises:
        UserError: No such file was published; the message lists those of the same size, or all names.

    >>> find_published('tiny_1k').url
    'https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth'
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    near = [known for known, file in PUBLISHED.items() if file.size in name.split('_')]
    raise UserError(f'No published weights are called {name!r}. Known: {", ".join(near or PUBLISHED)}.')

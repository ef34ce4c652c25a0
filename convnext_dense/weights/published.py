"""The weights that facebookresearch published: a short name goes in, the file's address, size and licence come out.

Sources: the tables in the READMEs of facebookresearch/ConvNeXt and facebookresearch/ConvNeXt-V2. ``tiny_1k`` is
ConvNeXt-T trained on ImageNet-1k, ``base_22k`` ConvNeXt-B on ImageNet-22k, ``base_22k_1k`` on both in turn;
``v2_base_1k`` is ConvNeXt V2, and ``cascade_mask_rcnn_tiny_1k`` a whole detector. A suffix ``_384`` or ``_512`` is the
image size in pixels, where it is not 224.
"""

from typing import NamedTuple

from convnext_dense.errors import UserError
from convnext_dense.variants import VARIANTS
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
    """

    path: str
    size: str
    licence: str
    num_classes: int | None = None

    @property
    def url(self) -> str:
        """The file's address."""
        return HOST + self.path

    @property
    def megabytes(self) -> int | None:
        """The weights of backbone and classifier in units of 1e6 bytes, in fp32; None for whole models."""
        if self.num_classes is None:
            return None
        depths, dims = VARIANTS[self.size]
        is_v2 = self.path.startswith('convnextv2/')
        inputs = (3, *dims[:3])
        kernels = (4, 2, 2, 2)
        count = 0
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            count += (inputs[i] * kernels[i] ** 2 + 1) * dim + 2 * (inputs[i] if i else dim)
            scale = 8 * dim if is_v2 else dim
            count += depth * (49 * dim + dim + 2 * dim + 8 * dim * dim + 5 * dim + scale)
        if self.num_classes:
            count += 2 * dims[-1] + (dims[-1] + 1) * self.num_classes
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
    'mask_rcnn_tiny_1k': Published('coco/mask_rcnn_convnext_tiny_1k_3x.pth', 'tiny', MIT),
    **{
        f'cascade_mask_rcnn_{size}_{data}': Published(
            f'coco/cascade_mask_rcnn_convnext_{size}_{data}_3x.pth', size, MIT
        )
        for data, sizes in (('1k', V1_SIZES[:3]), ('22k', V1_SIZES[2:]))
        for size in sizes
    },
    **{
        f'upernet_{size}_{data}': Published(f'ade20k/upernet_convnext_{size}_{data}_{pixels}x{pixels}.pth', size, MIT)
        for data, pixels, sizes in (('1k', 512, V1_SIZES[:3]), ('22k', 640, V1_SIZES[2:]))
        for size in sizes
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

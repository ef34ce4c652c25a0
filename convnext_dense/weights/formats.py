"""Foreign parameter names and ours: one literal table per format, read in either direction.

``{s}`` stands for a stage 0..3, ``{b}`` for a block and ``{i}`` for an entry of a Sequential. A row renames what its
left side begins with; what follows (``weight``, ``bias``) is kept. Inside a classifier the final norm and the head
have facebookresearch's names, ``norm`` and ``head``; a backbone has neither.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

FLAT, GRN, CHW = (-1,), (1, 1, 1, -1), (-1, 1, 1)  # how a vector of C entries is stored
STEM = 'downsample_layers.0.0.weight'
CLASSIFIER = ('norm.', 'head.')

# The licences of published weights.
MIT = 'MIT'  # facebookresearch, ConvNeXt V1
CC_BY_NC = 'CC-BY-NC 4.0'  # facebookresearch, ConvNeXt V2
DINOV3_LICENCE = 'DINOv3 License'
OF_THE_CARD = f"the model card's; facebookresearch's V1 weights are {MIT}, V2 {CC_BY_NC}"


def dense_kernel(kernel: Tensor) -> Tensor:
    """Return a sparse-convolution kernel as PyTorch stores it: (out, in / groups, k, k).

    ``kernel`` is (k * k, in, out), or (k * k, C) of a depthwise convolution, x before y (MinkowskiEngine).
    """
    size = math.isqrt(len(kernel)) if kernel.ndim in (2, 3) else 0
    if size * size != kernel.shape[:1].numel():
        return kernel  # of no use, which its shape tells whoever loads it
    if kernel.ndim == 2:
        kernel = kernel[:, None]
    return kernel.permute(2, 1, 0).unflatten(-1, (size, size)).transpose(-1, -2)


class Row(NamedTuple):
    """One line of a table: what a key begins with there, and here."""

    theirs: str
    ours: str
    shape: tuple[int, ...] | None = None  # in which they store the tensor, where it is not ours
    read: Callable[[Tensor], Tensor] | None = None  # makes our tensor from theirs, where a reshape does not


@dataclass(frozen=True)
class Format:
    """A naming scheme."""

    name: str  # for ``--to``
    title: str  # for reports
    rows: tuple[Row, ...]  # the table; where two rows have the same right side, the first is written
    left_out: Mapping[str, str] = field(default_factory=dict)  # beginnings of keys that no backbone needs -> why
    mark: str = ''  # a pattern that some key without prefix matches, where the rows alone do not tell the format
    licence: str = ''  # whose weights in it have which licence
    heads: tuple[tuple[str, str], ...] = ()  # (theirs, ours) inside the keys of a whole model's heads
    # Sizes whose pointwise layers are stored as 1x1 convolutions, (out, in, 1, 1); 'all' of them.
    conv_mlp: tuple[str, ...] = ()
    final_norm: str = ''  # our name of the output norm under which a classifier's final norm is stored
    has_other_sizes: bool = False  # some of its sizes compute something else with the same weights
    # Where something is written:
    prefix: str = ''  # before a backbone's keys
    classifier_prefix: str = ''  # before the keys of a classifier's backbone, if that differs; ``{v2}`` is the version
    wrapper: str = ''  # the entry of a .pth file that holds the tensors; without one they are its entries
    whole: str = ''  # whole models that the library has: 'all', 'UperNet' or none
    has_v2: bool = True  # the library has ConvNeXt V2

    @functools.cached_property
    def readers(self) -> tuple[tuple[re.Pattern, Row], ...]:
        """Compiled rows from theirs to ours."""
        return tuple((compile_template(row.theirs), row) for row in self.rows)

    @functools.cached_property
    def writers(self) -> tuple[tuple[re.Pattern, Row], ...]:
        """Compiled rows from ours to theirs."""
        return tuple((compile_template(row.ours), row) for row in self.rows if row.read is None)

    @functools.cached_property
    def stems(self) -> set[str]:
        """Their names of the stem's weight."""
        first = [row.theirs.format(s=0, i=0, b=0) for row in self.rows]
        return {key for start in first for key in (start, f'{start}weight') if self.read(key) == (STEM, None)}

    def read(self, key: str, tensor: Tensor | None = None) -> tuple[str, Tensor | None] | None:
        """Return our name and tensor of a key without prefix; None where the table has no row for it."""
        for pattern, row in self.readers:
            if match := pattern.match(key):
                name = row.ours.format(**match.groupdict()) + key[match.end() :]
                if tensor is None:
                    return name, None
                return name, in_our_shape(name, row.read(tensor) if row.read else tensor)
        return None

    def reason_to_leave_out(self, key: str) -> str:
        """Say why no backbone needs a key without prefix; empty where one may."""
        return next((why for start, why in self.left_out.items() if key.startswith(start)), '')

    def rename_head(self, key: str) -> str:
        """Return our name of a key outside of the backbone."""
        for theirs, ours in self.heads:
            key = key.replace(theirs, ours)
        return key

    def write(self, key: str, tensor: Tensor, arch: str | None = None) -> tuple[str, Tensor] | None:
        """Return their name and tensor of our key without prefix; None where the table has no row for it.

        ``arch`` is the name of the size, for formats whose shapes depend on it.
        """
        for pattern, row in self.writers:
            if match := pattern.match(key):
                name = row.theirs.format(**match.groupdict()) + key[match.end() :]
                is_conv = arch in self.conv_mlp or 'all' in self.conv_mlp
                if is_conv and '.pwconv' in key and tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]
                return name, tensor.reshape(row.shape) if row.shape else tensor
        return None


def compile_template(template: str) -> re.Pattern:
    """Return the pattern of a row's side.

    >>> compile_template('stages.{s}.').match('stages.12.gamma').groupdict()
    {'s': '12'}
    """
    return re.compile(re.sub(r'\\{(\w)\\}', r'(?P<\1>\\d{1,2})', re.escape(template)))


def in_our_shape(key: str, tensor: Tensor) -> Tensor:
    """Return the tensor in the shape that our parameter of that name has: a view wherever possible."""
    if '.grn.' in key:
        return tensor.reshape(GRN)
    if '.pwconv' in key and key.endswith('weight') and tensor.ndim == 4:
        return tensor.flatten(1)
    if key.endswith(('.gamma', '.bias')):
        return tensor.reshape(FLAT)
    return tensor


def same(*keys: str) -> tuple[Row, ...]:
    """Return rows of names that are the same there and here."""
    return tuple(Row(key, key) for key in keys)


PARTS = ('dwconv.', 'norm.', 'pwconv1.', 'grn.gamma', 'grn.beta', 'pwconv2.', 'gamma')  # of our blocks
FB_ROWS = (
    *same('downsample_layers.{s}.{i}.', *(f'stages.{{s}}.{{b}}.{part}' for part in PARTS), 'norm{s}.'),
    *same('norm.', 'head.'),  # of a classifier
)

FACEBOOK_V1, FACEBOOK_V2 = f"facebookresearch's own: {MIT}", f"facebookresearch's own: {CC_BY_NC}"

FB = Format('fb', 'facebookresearch ConvNeXt', FB_ROWS, licence=FACEBOOK_V1, wrapper='model', whole='all')
FB_V2 = Format('fb', 'facebookresearch ConvNeXt V2', FB_ROWS, mark=r'\.grn\.gamma$', licence=FACEBOOK_V2)
FCMAE = Format(
    'fcmae',
    'facebookresearch ConvNeXt V2, self-supervised (FCMAE)',
    rows=(
        Row('downsample_layers.{s}.{i}.kernel', 'downsample_layers.{s}.{i}.weight', read=dense_kernel),
        Row('downsample_layers.{s}.{i}.ln.', 'downsample_layers.{s}.{i}.'),
        Row('stages.{s}.{b}.dwconv.kernel', 'stages.{s}.{b}.dwconv.weight', read=dense_kernel),
        Row('stages.{s}.{b}.norm.ln.', 'stages.{s}.{b}.norm.'),
        Row('stages.{s}.{b}.pwconv1.linear.', 'stages.{s}.{b}.pwconv1.'),
        Row('stages.{s}.{b}.pwconv2.linear.', 'stages.{s}.{b}.pwconv2.'),
        *FB_ROWS,
    ),
    left_out=dict.fromkeys(('proj.', 'mask_token', 'decoder.', 'pred.'), 'decoder'),
    mark=r'\.kernel$|^(mask_token|decoder\.)',
    licence=FACEBOOK_V2,
)
DINOV3 = Format(
    'dinov3',
    'DINOv3 repository',
    FB_ROWS,
    left_out={'norms.': 'final norm once more'},
    mark=r'^norms\.3\.',
    licence=f"DINOv3's own: {DINOV3_LICENCE}",
)
EUPE = Format(
    'eupe',
    'EUPE',
    FB_ROWS,
    left_out={'norms.': 'norms of features', 'projectors.': 'projectors'},
    mark=r'^(projectors|norms\.[0-2])\.',
    licence="EUPE's own: FAIR Noncommercial Research License",
)
# OpenCLIP's image tower is timm's, at `visual.trunk.`: of a plain size it loads, without its head and the text tower.
TIMM = Format(
    'timm',
    'timm',
    rows=(
        *(
            row
            for dot in '._'  # features_only models flatten the first dot
            for row in (
                Row(f'stem{dot}{{i}}.', 'downsample_layers.0.{i}.'),
                Row(f'stages{dot}{{s}}.downsample.{{i}}.', 'downsample_layers.{s}.{i}.'),
                Row(f'stages{dot}{{s}}.blocks.{{b}}.conv_dw.', 'stages.{s}.{b}.dwconv.'),
                Row(f'stages{dot}{{s}}.blocks.{{b}}.norm.', 'stages.{s}.{b}.norm.'),
                Row(f'stages{dot}{{s}}.blocks.{{b}}.mlp.fc1.', 'stages.{s}.{b}.pwconv1.'),
                Row(f'stages{dot}{{s}}.blocks.{{b}}.mlp.grn.weight', 'stages.{s}.{b}.grn.gamma', FLAT),
                Row(f'stages{dot}{{s}}.blocks.{{b}}.mlp.grn.bias', 'stages.{s}.{b}.grn.beta', FLAT),
                Row(f'stages{dot}{{s}}.blocks.{{b}}.mlp.fc2.', 'stages.{s}.{b}.pwconv2.'),
                Row(f'stages{dot}{{s}}.blocks.{{b}}.gamma', 'stages.{s}.{b}.gamma'),
            )
        ),
        Row('head.norm.', 'norm.'),
        Row('head.fc.', 'head.'),
    ),
    left_out={'head.': 'classifier', 'norm_pre.': 'final norm'},
    licence=f"timm's own: {OF_THE_CARD}",
    conv_mlp=('atto', 'femto', 'pico', 'nano'),
    has_other_sizes=True,
)
MMPRETRAIN = Format(
    'mmpretrain',
    'mmpretrain',
    rows=(
        *same('downsample_layers.{s}.{i}.', 'stages.{s}.{b}.norm.', 'stages.{s}.{b}.gamma', 'norm{s}.'),
        Row('stages.{s}.{b}.depthwise_conv.', 'stages.{s}.{b}.dwconv.'),
        Row('stages.{s}.{b}.pointwise_conv1.', 'stages.{s}.{b}.pwconv1.'),
        Row('stages.{s}.{b}.grn.gamma', 'stages.{s}.{b}.grn.gamma', FLAT),
        Row('stages.{s}.{b}.grn.beta', 'stages.{s}.{b}.grn.beta', FLAT),
        Row('stages.{s}.{b}.pointwise_conv2.', 'stages.{s}.{b}.pwconv2.'),
        Row('head.fc.', 'head.'),
    ),
    final_norm='norm3.',  # a detector has an output norm there
    mark=r'\.depthwise_conv\.',
    licence="mmpretrain's own: Apache-2.0; converted weights keep their makers' licence",
    prefix='backbone.',
    wrapper='state_dict',
    whole='all',
)
HF = Format(
    'hf',
    'Hugging Face ConvNeXt',
    rows=(
        Row('embeddings.patch_embeddings.', 'downsample_layers.0.0.'),
        Row('embeddings.layernorm.', 'downsample_layers.0.1.'),
        Row('encoder.stages.{s}.downsampling_layer.{i}.', 'downsample_layers.{s}.{i}.'),
        Row('encoder.stages.{s}.layers.{b}.dwconv.', 'stages.{s}.{b}.dwconv.'),
        Row('encoder.stages.{s}.layers.{b}.layernorm.', 'stages.{s}.{b}.norm.'),
        Row('encoder.stages.{s}.layers.{b}.pwconv1.', 'stages.{s}.{b}.pwconv1.'),
        Row('encoder.stages.{s}.layers.{b}.grn.weight', 'stages.{s}.{b}.grn.gamma'),
        Row('encoder.stages.{s}.layers.{b}.grn.bias', 'stages.{s}.{b}.grn.beta'),
        Row('encoder.stages.{s}.layers.{b}.pwconv2.', 'stages.{s}.{b}.pwconv2.'),
        Row('encoder.stages.{s}.layers.{b}.layer_scale_parameter', 'stages.{s}.{b}.gamma'),
        *(Row(f'hidden_states_norms.stage{s + 1}.', f'norm{s}.') for s in range(4)),
        Row('layernorm.', 'norm.'),
        Row('classifier.', 'head.'),
    ),
    licence=f'from the Hub: {OF_THE_CARD}',
    heads=(('.batch_norm.', '.bn.'), ('head.classifier.', 'head.conv_seg.')),
    classifier_prefix='convnext{v2}.',
    whole='UperNet',
)
HF_DINOV3 = Format(
    'hf_dinov3',
    'Hugging Face DINOv3 ConvNeXt',
    rows=(
        Row('stages.{s}.downsample_layers.{i}.', 'downsample_layers.{s}.{i}.'),
        Row('stages.{s}.layers.{b}.depthwise_conv.', 'stages.{s}.{b}.dwconv.'),
        Row('stages.{s}.layers.{b}.layer_norm.', 'stages.{s}.{b}.norm.'),
        Row('stages.{s}.layers.{b}.pointwise_conv1.', 'stages.{s}.{b}.pwconv1.'),
        Row('stages.{s}.layers.{b}.pointwise_conv2.', 'stages.{s}.{b}.pwconv2.'),
        Row('stages.{s}.layers.{b}.gamma', 'stages.{s}.{b}.gamma'),
        Row('layer_norm.', 'norm.'),
    ),
    licence=f"DINOv3's own: {DINOV3_LICENCE}",
)
TORCHVISION = Format(
    'torchvision',
    'torchvision',
    rows=(
        *(
            row
            for s in range(4)
            for row in (
                # stage s stands at 2s + 1, the stem or the downsampling before it at 2s
                Row(f'features.{2 * s}.{{i}}.', f'downsample_layers.{s}.{{i}}.'),
                Row(f'features.{2 * s + 1}.{{b}}.block.0.', f'stages.{s}.{{b}}.dwconv.'),
                Row(f'features.{2 * s + 1}.{{b}}.block.2.', f'stages.{s}.{{b}}.norm.'),
                Row(f'features.{2 * s + 1}.{{b}}.block.3.', f'stages.{s}.{{b}}.pwconv1.'),
                Row(f'features.{2 * s + 1}.{{b}}.block.5.', f'stages.{s}.{{b}}.pwconv2.'),
                Row(f'features.{2 * s + 1}.{{b}}.layer_scale', f'stages.{s}.{{b}}.gamma', CHW),
            )
        ),
        Row('classifier.0.', 'norm.'),
        Row('classifier.2.', 'head.'),
    ),
    licence="torchvision's own: BSD-3-Clause",
    has_v2=False,
)

# ConvNeXt as the last step of the ladder, where the pointwise layers are convolutions.
LADDER = Format(
    'ladder',
    "ConvNeXt of this package's ladder",
    rows=(
        *same('downsample_layers.{s}.{i}.', 'stages.{s}.{b}.gamma', 'norm{s}.'),
        Row('stages.{s}.{b}.conv1.', 'stages.{s}.{b}.dwconv.'),
        Row('stages.{s}.{b}.norm1.', 'stages.{s}.{b}.norm.'),
        Row('stages.{s}.{b}.conv2.', 'stages.{s}.{b}.pwconv1.'),
        Row('stages.{s}.{b}.conv3.', 'stages.{s}.{b}.pwconv2.'),
    ),
    mark=r'^downsample_layers\.0\.1\.',  # the steps before have none, or no depthwise convolutions
    conv_mlp=('all',),
)
# Where several formats know as many keys, the first one is meant: FB, which has no mark, stands after its relatives.
FORMATS = (FCMAE, EUPE, DINOV3, MMPRETRAIN, FB_V2, FB, LADDER, TIMM, HF, HF_DINOV3, TORCHVISION)

# Formats whose right side are the names of ``ModernizedResNet``: its own, and those of a ResNet-50.
STEP = Format(
    'step',
    "a step of this package's ladder",
    rows=same(
        'downsample_layers.{s}.{i}.',
        *(f'stages.{{s}}.{{b}}.{part}' for part in ('conv{i}.', 'norm{i}.', 'shortcut.{i}.', 'gamma')),
        'norm{s}.',
    ),
    mark=r'^stages\.0\.0\.conv1\.',
)
RESNET = Format(
    'resnet',
    'ResNet of torchvision, timm or mmdet',
    rows=(
        Row('conv1.', 'downsample_layers.0.0.'),
        Row('bn1.', 'downsample_layers.0.1.'),
        *(
            Row(f'layer{s + 1}.{{b}}.{theirs}', f'stages.{s}.{{b}}.{ours}')
            for s in range(4)
            for theirs, ours in (('conv{i}.', 'conv{i}.'), ('bn{i}.', 'norm{i}.'), ('downsample.{i}.', 'shortcut.{i}.'))
        ),
    ),
    left_out={'fc.': 'classifier'},
    mark=r'^layer4\.0\.conv3\.',  # bottlenecks
)

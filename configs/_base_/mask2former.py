"""What Mask2Former's configs share: ConvNeXt with the drop path of Swin, and the rates (arXiv 2112.01527, Section 4.2).

The backbone learns at a tenth of the heads' rate. Norms and embeddings are not decayed. In MMEngine a custom key
overrides `norm_decay_mult`, so that 'backbone' would decay the norms there: they have keys of their own, as Swin's have
upstream. So have layer scale and GRN, which ConvNeXt's own recipes do not decay; biases are decayed, as in the paper.
"""

_base_ = []  # without it MMEngine takes a file that imports for a config of its other style

from convnext_dense.variants import resolve_variant


def scales_of(depths):
    """Return the names of what scales and shifts channels in a ConvNeXt."""
    between = ['downsample_layers.0.1', *(f'downsample_layers.{stage}.0' for stage in range(1, len(depths)))]
    blocks = [f'stages.{stage}.{block}' for stage, depth in enumerate(depths) for block in range(depth)]
    inside = [f'{block}.{part}' for block in blocks for part in ('norm', 'gamma', 'grn')]
    return [*between, *inside, *(f'norm{stage}' for stage in range(len(depths)))]


backbone = dict(type='ConvNeXt', drop_path_rate=0.3)
rates = dict(
    norm_decay_mult=0.0,
    custom_keys={
        'backbone': dict(lr_mult=0.1),
        # those of the deepest size: a key without a parameter does nothing
        **{f'backbone.{name}': dict(lr_mult=0.1, decay_mult=0.0) for name in scales_of(resolve_variant('base').depths)},
        **{name: dict(decay_mult=0.0) for name in ('query_embed', 'query_feat', 'level_embed')},
    },
)

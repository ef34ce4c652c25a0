"""What Mask2Former's configs share: the rates of ConvNeXt and of the heads (arXiv 2112.01527, Section 4.2).

The backbone learns at a tenth of the heads' rate; norms and embeddings are not decayed. In MMEngine custom keys
override `norm_decay_mult`: a key 'backbone' would decay the norms there, by 15 % on COCO. They have keys of their own,
as Swin's have upstream, and so have layer scale and GRN, which ConvNeXt's own recipes do not decay. Biases are decayed,
as in the paper.
"""

# of the keys in a parameter's name the longest counts, among equals the first in the alphabet
slow = ['stages', 'downsample_layers']
norms = ['.norm.', '.gamma', '.grn.beta', 'backbone.norm', 'downsample_layers.0.1']
norms += [f'downsample_layers.{stage}.0' for stage in (1, 2, 3)]
embeddings = ['query_embed', 'query_feat', 'level_embed']

rates = dict(
    norm_decay_mult=0.0,
    custom_keys={
        **{name: dict(lr_mult=0.1) for name in slow},
        **{name: dict(lr_mult=0.1, decay_mult=0.0) for name in norms},
        **{name: dict(decay_mult=0.0) for name in embeddings},
    },
)

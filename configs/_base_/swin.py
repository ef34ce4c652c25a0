"""What the Swin configs share: where the initial weights are, and which parameters have no weight decay.

Detectors start from the files of Swin's authors, segmentors from the same weights under MMSegmentation's names.
"""

swin_files = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0'
mmseg_files = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin'
not_decayed = ['absolute_pos_embed', 'relative_position_bias_table', 'norm']
without_decay = dict(custom_keys={name: dict(decay_mult=0.0) for name in not_decayed})

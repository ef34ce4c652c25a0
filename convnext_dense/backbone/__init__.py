"""ConvNeXt as a backbone: its stages, its block, and what PyTorch computes slowly on a CPU."""

from convnext_dense.backbone.block import Block, LayerNorm2d
from convnext_dense.backbone.convnext import ConvNeXt, StagedBackbone

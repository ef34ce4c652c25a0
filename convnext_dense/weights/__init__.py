"""Where weights come from and how foreign names become ours."""

from convnext_dense.weights.loading import Report, check_fit, load_backbone

__all__ = ['Report', 'check_fit', 'load_backbone']

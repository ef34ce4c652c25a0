"""Exchange the backbone of any config of MMDetection or MMSegmentation for a ConvNeXt.

In: a config. Out: the text of a short one that inherits it, proven by a training step and a prediction. ``upstream``
finds and reads the config, ``maps`` asks the old backbone what it gives, ``channels`` fits neck and heads, ``recipes``
knows the sizes' weights and rates, ``training`` fits the run, ``writing`` writes it down, ``proof`` runs it.
``pipelines`` is the table of what was tried.
"""

from .proof import Proof, prove
from .swapping import Swap, swap_backbone, write_swap

__all__ = ['Proof', 'Swap', 'prove', 'swap_backbone', 'write_swap']

"""Exchange the backbone of any config of MMDetection or MMSegmentation for a ConvNeXt.

In: a config file. Out: the text of a short one that inherits it, proven by a training step and a prediction.
``maps`` asks the old backbone what it gives, ``recipes`` knows the sizes' weights and rates, ``changes`` says what must
differ, ``writing`` writes it down, ``proof`` runs it.
"""

from .proof import Proof, prove
from .swapping import Swap, swap_backbone, write_swap

__all__ = ['Proof', 'Swap', 'prove', 'swap_backbone', 'write_swap']

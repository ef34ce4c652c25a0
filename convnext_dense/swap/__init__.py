"""Put a ConvNeXt in the place of the backbone of any config of MMDetection or MMSegmentation."""

from .exchange import Swap, swap_backbone, write_swap
from .proof import Proof, prove

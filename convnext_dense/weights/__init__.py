"""Where weights come from, how foreign names become ours and back, and what was loaded."""

from convnext_dense.weights.load import fit, load_weights
from convnext_dense.weights.mmengine import CheckWeightsHook
from convnext_dense.weights.report import Report
from convnext_dense.weights.sources import Checkpoint, fetch

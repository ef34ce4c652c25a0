"""Training and testing with a config, and what a run shows of itself."""

from convnext_dense.train.run import test, train
from convnext_dense.train.runner import OneLineRunner
from convnext_dense.train.saves import SafeCheckpointHook
from convnext_dense.train.screen import ProgressBarHook
from convnext_dense.train.summary import RunSummaryHook

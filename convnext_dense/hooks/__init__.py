"""Hooks that watch a run: they read the runner's state and write to the screen and the work dir."""

from convnext_dense.hooks.progress import ProgressBarHook
from convnext_dense.hooks.summary import RunSummaryHook
from convnext_dense.hooks.weights import CheckWeightsHook

__all__ = ['RUN_HOOKS', 'CheckWeightsHook', 'ProgressBarHook', 'RunSummaryHook']

RUN_HOOKS = ('CheckWeightsHook', 'ProgressBarHook', 'RunSummaryHook')  # of every run of the tools

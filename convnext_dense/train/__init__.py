"""Runs: a config goes in, a finished training or test comes out."""

from convnext_dense.train.progress import ProgressBarHook
from convnext_dense.train.run import OneLineRunner, test, train
from convnext_dense.train.summary import RunSummaryHook

__all__ = ['OneLineRunner', 'ProgressBarHook', 'RunSummaryHook', 'test', 'train']

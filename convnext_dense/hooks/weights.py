"""Refuse a checkpoint that does not fit the whole model where the whole model is meant."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from convnext_dense.weights import fit


@HOOKS.register_module()
class CheckWeightsHook(Hook):
    """To test and to resume, every key of the model must be in the checkpoint, and no other.

    To fine-tune from ``load_from`` it is enough that the backbone fits, which every loading checks.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Raise a UserError where keys or shapes differ; ``checkpoint`` is what the file holds."""
        if runner._train_dataloader is None or runner._resume:
            fit(runner.model, checkpoint, need='all')

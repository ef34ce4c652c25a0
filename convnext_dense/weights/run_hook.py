"""Refuse a checkpoint that does not fit the whole model, or the whole run, where that is meant."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from convnext_dense.compat.errors import UserError
from convnext_dense.weights.loading import fit
from convnext_dense.weights.upstream import is_to_train


@HOOKS.register_module()
class CheckWeightsHook(Hook):
    """To test and to resume, every key of the model must be in the checkpoint, and no other.

    To fine-tune from ``load_from`` it is enough that the backbone fits, which every loading checks.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Raise a UserError where keys or shapes differ; ``checkpoint`` is what the file holds."""
        if runner._resume and not is_run(checkpoint):
            source = getattr(checkpoint, 'source', 'the checkpoint')
            raise UserError(
                f'{source} holds weights alone, not the state of a run that could be resumed. Start from these weights '
                f'with --cfg-options load_from={source} instead of --resume.'
            )
        if not is_to_train(runner):
            fit(runner.model, checkpoint, need='all')


def is_run(checkpoint: dict) -> bool:
    """Tell whether a checkpoint has what MMEngine's ``Runner.resume`` reads besides the weights."""
    meta = checkpoint.get('meta')
    return 'message_hub' in checkpoint and isinstance(meta, dict) and {'epoch', 'iter'} <= meta.keys()

"""Refuse a checkpoint that does not fit the model, before MMEngine loads what fits and keeps the rest random."""

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from convnext_dense.weights import check_fit


@HOOKS.register_module()
class CheckWeightsHook(Hook):
    """Compare a checkpoint with the model when it is loaded.

    To test and to resume, every key must fit. To fine-tune from ``load_from``, the backbone must fit; heads for other
    classes start from scratch, and MMEngine's log lists them.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Raise a UserError where keys or shapes differ; ``checkpoint`` is what the file holds."""
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        is_fine_tuning = runner._train_dataloader is not None and not runner._resume
        state_dict = checkpoint.get('state_dict', checkpoint)
        check_fit(model, state_dict, str(runner._load_from), only='backbone.' if is_fine_tuning else '')

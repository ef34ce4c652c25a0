"""Losses and gradients that are NaN or infinite: the step is skipped and reported, and too many end the training."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from convnext_dense.compat.errors import NotFiniteError, shorten
from convnext_dense.compat.files import write_text
from convnext_dense.train.damage import elements
from convnext_dense.train.resume import how_to_continue
from convnext_dense.weights.load import is_finite, unwrap_model

FOLDER = 'nonfinite'  # of the reports, in the work dir
SKIPPED = 'skipped_steps'  # how many there were, in the log of a run
CURE = (
    'If it comes again, start anew with a lower optim_wrapper.optimizer.lr, with optim_wrapper.clip_grad.max_norm=1 or '
    'with a longer warm-up in param_scheduler.'
)
SCALER_SKIPS = 20  # in a row, with which mixed precision may look for its scale: 2 ** 20 is above the first one


@HOOKS.register_module()
class FiniteHook(Hook):
    """Skip the steps whose gradients are NaN or infinite, and report them in ``nonfinite/`` of the work dir.

    The norm of all gradients tells. It is the same on all processes, because the gradients are, so that all skip the
    same step. A skipped step changes neither the weights nor the state of the optimizer nor running statistics.

    Args:
        max_skipped: Steps that may be skipped in a row; the training then ends.
        max_share: Steps that may be skipped in all, as a share of all steps; at least ``max_skipped`` may.

    Raises:
        NotFiniteError: More steps than that were not finite.
    """

    priority = 'VERY_HIGH'

    def __init__(self, max_skipped: int = 10, max_share: float = 0.01) -> None:
        self.max_skipped, self.max_share = max_skipped, max_share
        self.num_in_row, self.num_by_scaler = 0, 0

    def before_train(self, runner: Runner) -> None:
        """Look at the gradients before each step of an optimizer from now on."""
        self.wrappers = wrappers_of(runner.optim_wrapper)
        for wrapper in self.wrappers:
            wrapper.optimizer.register_step_pre_hook(lambda *_, wrapper=wrapper: self.check(wrapper))
        model = unwrap_model(runner.model)
        self.buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]  # such as running means
        self.copies = [buffer.clone() for buffer in self.buffers]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the buffers, which a forward pass changes."""
        self.norms: list[float] = []
        if self.buffers:
            torch._foreach_copy_(self.copies, self.buffers)

    def check(self, wrapper: OptimWrapper) -> None:
        """Take the gradients away from an optimizer where they are not finite: it then does nothing."""
        norm = gradient_norm(wrapper)
        self.norms.append(norm)
        if not math.isfinite(norm):
            wrapper.optimizer.zero_grad(set_to_none=True)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Mapping | None = None
    ) -> None:
        """Report a step that was not finite."""
        losses = {name: float(torch.as_tensor(value).detach()) for name, value in (outputs or {}).items()}
        is_lost = self.was_skipped_by_scaler()
        if all(map(math.isfinite, [*self.norms, *losses.values()])) and not is_lost:
            self.num_in_row = 0 if self.norms else self.num_in_row
            return
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.copies)
        file = self.report(runner, losses, data_batch)
        if self.norms or is_lost:  # else the sum of gradients, to which this step adds, will tell
            self.count(runner, f'step {runner.iter + 1}: {describe(losses, self.norms)}', file)

    def count(self, runner: Runner, text: str, file: Path) -> None:
        """Count a step of the optimizer that was not finite, and end the training where there are too many."""
        self.num_in_row += 1
        total = runner.message_hub.runtime_info.get(SKIPPED, 0) + 1
        runner.message_hub.update_info(SKIPPED, total)
        runner.logger.warning(f'{text}; it is skipped, the {self.num_in_row}. in a row and the {total}. in all: {file}')
        if self.num_in_row > self.max_skipped or total > max(self.max_skipped, self.max_share * runner.max_iters):
            raise NotFiniteError(
                f'{self.num_in_row} steps in a row and {total} of {runner.iter + 1} were not finite; the last was '
                f'{text}. Their images and losses lie in {file.parent}. {how_to_continue(runner.cfg)} {CURE}'
            )

    def was_skipped_by_scaler(self) -> bool:
        """Tell whether mixed precision finds no scale at which gradients are finite; a few skipped steps are usual."""
        scaled = [wrapper for wrapper in self.wrappers if hasattr(wrapper, 'loss_scaler') and wrapper.should_update()]
        self.num_by_scaler = self.num_by_scaler + 1 if scaled and not self.norms else 0
        return self.num_by_scaler > SCALER_SKIPS

    def report(self, runner: Runner, losses: Mapping[str, float], data_batch: Any) -> Path:
        """Write what is known of the step; each process reports its own images."""
        file = Path(runner.work_dir, FOLDER, f'step_{runner.iter + 1:07d}_process_{get_rank()}.json')
        scalers = [wrapper.loss_scaler.state_dict() for wrapper in self.wrappers if hasattr(wrapper, 'loss_scaler')]
        images = [str(element.get('img_path', '?')) for element in elements(data_batch)]
        facts = dict(
            step=runner.iter + 1, images=images, losses=losses, gradient_norms=self.norms,
            lr=[group['lr'] for wrapper in self.wrappers for group in wrapper.param_groups], loss_scalers=scalers,
        )  # fmt: skip
        write_text(json.dumps(facts, indent=1, default=str), file)
        return file


def check_finite(checkpoint: Mapping, cfg: Config) -> None:
    """Raise a :class:`NotFiniteError` where weights are NaN or infinite: such a checkpoint replaces no sound one."""
    bad = [name for name, tensor in checkpoint['state_dict'].items() if not is_finite(tensor)]
    if bad:
        raise NotFiniteError(
            f'Weights are NaN or infinite after step {checkpoint["meta"]["iter"]}, and were not saved: {shorten(bad)}. '
            f'{how_to_continue(cfg)} {CURE}'
        )


def fetched(outputs: Mapping | None) -> Mapping | None:
    """Return the numbers that a step gives, on the CPU; from a GPU they come in one piece instead of one by one."""
    on_gpu = {
        name: value for name, value in (outputs or {}).items() if isinstance(value, torch.Tensor) and value.is_cuda
    }
    if not on_gpu or any(value.numel() != 1 for value in on_gpu.values()):
        return outputs
    numbers = torch.stack([value.detach().reshape(()).double() for value in on_gpu.values()]).cpu()
    return {**outputs, **dict(zip(on_gpu, numbers, strict=True))}


def wrappers_of(wrapper: OptimWrapper | OptimWrapperDict) -> list[OptimWrapper]:
    """Return the wrappers of single optimizers."""
    return list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]


def gradient_norm(wrapper: OptimWrapper) -> float:
    """Return the Euclidean norm of an optimizer's gradients; where they were clipped by it, it is known."""
    if wrapper.clip_grad_kwargs and wrapper.grad_name == 'grad_norm':
        return wrapper.message_hub.get_scalar('train/grad_norm').current()
    gradients = [p.grad for group in wrapper.param_groups for p in group['params'] if p.grad is not None]
    if not gradients:
        return 0.0
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))


def describe(losses: Mapping[str, float], norms: Iterable[float]) -> str:
    """Return which numbers are not finite.

    >>> describe({'loss': float('nan'), 'loss_mask': 0.5}, [float('inf')])
    'loss nan, gradient norm inf'
    """
    numbers = [*losses.items(), *(('gradient norm', norm) for norm in norms)]
    bad = [f'{name} {value}' for name, value in numbers if not math.isfinite(value)]
    return ', '.join(bad) or 'the gradients overflow in mixed precision at every scale'

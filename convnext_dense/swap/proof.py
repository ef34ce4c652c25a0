"""A config goes in; its model takes a training step and predicts on drawn images, or it is said why not."""

import contextlib
import copy
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn

from convnext_dense import run_config
from convnext_dense.backbone import ConvNeXt
from convnext_dense.data.samples import draw_batch
from convnext_dense.errors import UserError
from convnext_dense.model_stats import model_scope

SIDE = 128  # pixels of the drawn images
LARGE_SIDE = 224  # where as many places as queries are needed
NUM_IMAGES = 2


@dataclass(frozen=True)
class Proof:
    """What a model did.

    Attributes:
        num_params: Of the model.
        loss: The sum of its losses on drawn images.
        without_gradient: Names of the backbone's parameters that no gradient reached.
        num_predictions: Boxes or labelled pixels that it predicted.
    """

    num_params: int
    loss: float
    without_gradient: tuple[str, ...]
    num_predictions: int

    def describe(self) -> list[str]:
        """Return what to tell a user, a line each."""
        lines = [
            f'proven on drawn images: {self.num_params / 1e6:.1f} M parameters, a training step (loss {self.loss:.3g}) '
            'and a prediction'
        ]
        if self.without_gradient:
            lines.append(f'no gradient reaches {", ".join(self.without_gradient)}, hence find_unused_parameters = True')
        return lines


def prove(file: str | os.PathLike, device: str | None = None) -> Proof:
    """Build the model of a config, take a training step on drawn images and predict one.

    Initial weights are random, and the sizes to which images are padded are left out.

    Args:
        file: Config of a detector or segmentor with a ConvNeXt.
        device: 'cuda' where there is one, else 'cpu'.

    Raises:
        UserError: The model cannot be built or run, or its loss is not finite.
    """
    cfg = run_config.load_config(file)
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    with model_scope(cfg), in_words(cfg.model.type):
        model = build_model(cfg, device)
        loss, without_gradient = take_step(model, cfg)
        return Proof(sum(p.numel() for p in model.parameters()), loss, without_gradient, len(predict(model, cfg)))


@contextlib.contextmanager
def in_words(kind: str) -> Iterator[None]:
    """Turn what a model raises into a :class:`UserError`, and keep its messages off the screen."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            logger.setLevel(logging.ERROR)
            yield
    except UserError:
        raise
    except Exception as error:  # of any model that there is
        raise UserError(f'{kind} does not run with this backbone: {type(error).__name__}: {error}') from error
    finally:
        logger.setLevel(level)


def build_model(cfg: Config, device: str) -> nn.Module:
    """Build the model with random weights."""
    cfg = copy.deepcopy(cfg)
    for node in run_config.walk(cfg.model):
        if 'drop_path_rate' in node:
            node['drop_path_rate'] = 0.0  # a dropped block gets no gradient
        if (node.get('init_cfg') or {}).get('type') == 'Pretrained':
            node['init_cfg'] = None
        if 'mean' in node and 'std' in node:  # a data preprocessor
            node.pop('batch_augments', None)
            if node.get('size'):
                node['size'] = (SIDE, SIDE)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return revert_sync_batchnorm(model).to(device)


def take_step(model: nn.Module, cfg: Config) -> tuple[float, tuple[str, ...]]:
    """Take a step of the config's optimizer on drawn images.

    Returns:
        The loss, and the names of the backbone's parameters that no gradient reached.
    """
    model.train()
    batch = draw_for(cfg, range(NUM_IMAGES))
    # the gradients are taken without scaling, wherever this runs
    wrapper_cfg = {key: value for key, value in cfg.optim_wrapper.items() if key not in ('loss_scale', 'dtype')}
    wrapper = build_optim_wrapper(model, {**wrapper_cfg, 'type': 'OptimWrapper'})
    MessageHub.get_current_instance().update_info('epoch', 0)  # a few heads ask for it
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    if not math.isfinite(loss.item()):
        raise UserError(f'The loss of {type(model).__name__} on drawn images is {loss.item()}.')
    loss.backward()
    without_gradient = tuple(
        f'{prefix}.{name}'
        for prefix, module in model.named_modules()
        if isinstance(module, ConvNeXt)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    )
    wrapper.optimizer.step()
    wrapper.optimizer.zero_grad()
    return loss.item(), without_gradient


def predict(model: nn.Module, cfg: Config) -> object:
    """Return the predicted boxes, masks or labelled pixels of a drawn image."""
    model.eval()
    with torch.no_grad():
        (sample,) = model.test_step(draw_for(cfg, [NUM_IMAGES]))
    if 'pred_sem_seg' in sample:
        return sample.pred_sem_seg.data.flatten()
    if 'pred_panoptic_seg' in sample:
        return sample.pred_panoptic_seg.sem_seg.flatten()
    return sample.pred_instances


def draw_for(cfg: Config, indices: Sequence[int]) -> dict:
    """Return drawings with the ground truth that a config's model learns from."""
    heads = list(run_config.walk(cfg.model, run_config.CLASS_AGNOSTIC))
    counts = [head[key] for key in ('num_things_classes', 'num_classes') for head in heads if head.get(key)]
    steps = list(run_config.walk(cfg.train_dataloader))
    batch = draw_batch(
        cfg.default_scope,
        indices,
        LARGE_SIDE if any('num_queries' in head for head in heads) else SIDE,
        num_classes=counts[0] if counts else None,
        seg_scale=next((step['scale_factor'] for step in steps if step.get('type') == 'SegRescale'), 1.0),
    )
    if not any(step.get('with_mask') or step.get('type') == 'LoadPanopticAnnotations' for step in steps):
        for sample in batch['data_samples']:
            if 'gt_instances' in sample:
                del sample.gt_instances.masks
    return batch

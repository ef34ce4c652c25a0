"""Prove that the model of a config runs: it takes a training step and predicts on drawn images."""

import contextlib
import copy
import math
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from convnext_dense.backbone import ConvNeXt
from convnext_dense.compat.errors import UserError
from convnext_dense.configs import load_config, model_scope, walk
from convnext_dense.data.samples import draw_for
from convnext_dense.swap.changes import type_name
from convnext_dense.train.config import drop_initial_weights, without_amp
from convnext_dense.train.run import device_type
from convnext_dense.train.screen import quiet

NUM_IMAGES = 2
SIDE = 128  # pixels to which a preprocessor pads the images, where it pads to a fixed size
SEED = 0
NUM_BOXES = 64  # the most boxes that a detector proposes and learns from
COUNTS = ('nms_pre', 'max_per_img')  # of boxes, in the settings of a detector's proposals
THRESHOLDS = ('score_thr', 'mask_thr', 'filter_thr')  # which no score of an untrained model would pass
UNTRIED = '. If the model needs what drawn images lack, such as sentences, --no-proof writes the config untried.'


@dataclass(frozen=True)
class Proof:
    """What a model did on drawn images.

    Attributes:
        num_params: The number of the model's parameters.
        loss: The sum of its losses.
        without_gradient: The names of the backbone's parameters that got no gradient.
        num_predictions: The number of predicted boxes, or of labelled pixels.
    """

    num_params: int
    loss: float
    without_gradient: tuple[str, ...]
    num_predictions: int

    def notes(self) -> list[str]:
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

    The initial weights are random. Fixed image sizes and the thresholds of predictions are left out, and two-stage
    detectors propose few boxes.

    Args:
        file: The config of a detector or segmentor with a ConvNeXt.
        device: 'cuda' where there is a GPU, else 'cpu'.

    Raises:
        UserError: The model cannot be built or run, or its loss or a gradient is not finite.
    """
    cfg = load_config(file)
    device = device or device_type()
    name = type_name(cfg.model)
    with model_scope(cfg), quiet():
        torch.manual_seed(SEED)
        with explain_failure(f'{name} cannot be built with this backbone'):
            model = build_model(cfg, device)
        with explain_failure(f'{name} does not run with this backbone on drawn images', UNTRIED):
            loss, without_gradient = take_step(model, cfg)
            prediction = predict(model, cfg)
        num_params = sum(parameter.numel() for parameter in model.parameters())
    return Proof(num_params, loss, without_gradient, len(prediction))


@contextlib.contextmanager
def explain_failure(failure: str, advice: str = '') -> Iterator[None]:
    """Turn any error into a :class:`UserError` that begins with ``failure``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the model may be any
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = str(error).rstrip('.') or f'{frame.line} ({Path(frame.filename).name}, line {frame.lineno})'
        raise UserError(f'{failure}: {type(error).__name__}: {what}{advice}') from error


def build_model(cfg: Config, device: str) -> nn.Module:
    """Build the model with random weights and settings that suit small drawn images."""
    model_cfg = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)  # as MMEngine's runner does
    drop_initial_weights(model_cfg)
    for node in walk(model_cfg):
        shrink(node)
    model = MODELS.build(model_cfg)
    model.init_weights()
    return revert_sync_batchnorm(model).to(device)


def shrink(node: dict) -> None:
    """Change what a part of a model's config says about dropped blocks, teachers, sizes, boxes and thresholds."""
    constants = dict(drop_path_rate=0.0, teacher_ckpt=None, **dict.fromkeys(THRESHOLDS, 0.0))  # drop path: no gradient
    node.update({key: value for key, value in constants.items() if key in node})
    if 'mean' in node and 'std' in node:  # a data preprocessor
        node.pop('batch_augments', None)
        if node.get('size'):
            node['size'] = (SIDE, SIDE)
    for key in COUNTS if 'nms_pre' in node else ('num',):
        if isinstance(node.get(key), int):
            node[key] = min(node[key], NUM_BOXES)


def take_step(model: nn.Module, cfg: Config) -> tuple[float, tuple[str, ...]]:
    """Take a step of the config's optimizer on drawn images; a config without an optimizer gets gradients only.

    Returns:
        The loss, and the names of the backbone's parameters that no gradient reached.

    Raises:
        UserError: The loss or a gradient of the backbone is not finite.
    """
    model.train()
    for name in ('epoch', 'iter'):  # for the heads that read them
        MessageHub.get_current_instance().update_info(name, 0)
    batch = model.data_preprocessor(draw_for(cfg, range(NUM_IMAGES), training=True), training=True)
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    if not math.isfinite(loss.item()):
        raise UserError(f'The loss of {type(model).__name__} on drawn images is {loss.item()}.')
    loss.backward()
    gradients = backbone_gradients(model)
    for name, gradient in gradients.items():
        if gradient is not None and not gradient.isfinite().all():
            raise UserError(f'The gradient of {name} on drawn images is not finite.')
    if cfg.get('optim_wrapper'):
        build_optim_wrapper(model, without_amp(cfg.optim_wrapper)).step()  # the gradients are in full precision
    return loss.item(), tuple(name for name, gradient in gradients.items() if gradient is None or not gradient.any())


def backbone_gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """Return the gradients of all trained parameters of a model's ConvNeXts, by the parameters' names."""
    backbones = [(prefix, module) for prefix, module in model.named_modules() if isinstance(module, ConvNeXt)]
    return {
        name: parameter.grad
        for prefix, backbone in backbones
        for name, parameter in backbone.named_parameters(prefix)
        if parameter.requires_grad
    }


def predict(model: nn.Module, cfg: Config) -> BaseDataElement | Tensor:
    """Return the predicted boxes and masks of a drawn image, or its labelled pixels."""
    model.eval()
    torch.manual_seed(SEED)  # for the heads that draw random numbers
    with torch.no_grad():
        (sample,) = model.test_step(draw_for(cfg, [NUM_IMAGES], training=False))
    if 'video_data_samples' in sample:
        return sample[-1].pred_track_instances
    if 'pred_sem_seg' in sample:
        return sample.pred_sem_seg.data.flatten()
    if 'pred_panoptic_seg' in sample:
        return sample.pred_panoptic_seg.sem_seg.flatten()
    return sample.pred_instances

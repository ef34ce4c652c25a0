"""Prove that the model of a config runs: it takes a training step and predicts on drawn images."""

import copy
import os
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import nn

from convnext_dense.backbone import StagedBackbone
from convnext_dense.compat.errors import UserError
from convnext_dense.configs import load_config, model_scope, walk
from convnext_dense.data.samples import draw_for
from convnext_dense.swap.read import explain_failure, type_name
from convnext_dense.train.config import drop_initial_weights, without_amp
from convnext_dense.train.launch import device_type
from convnext_dense.train.screen import quiet

NUM_IMAGES = 2
SIDE = 128  # pixels to which a preprocessor pads the images, where it pads to a fixed size
SEED = 0
NUM_BOXES = 64  # the most boxes that a detector proposes and learns from
COUNTS = ('nms_pre', 'max_per_img')  # of boxes, in the settings of a detector's proposals
THRESHOLDS = ('score_thr', 'mask_thr', 'filter_thr')  # which no score of an untrained model would pass
UNTRIED = 'If the model needs what drawn images lack, such as sentences, --no-proof writes the config untried.'


class Proof(NamedTuple):
    """The loss of a training step on drawn images, and the parameters of the backbone that got no gradient."""

    loss: float
    without_gradient: tuple[str, ...]


def prove(file: str | os.PathLike, device: str | None = None) -> Proof:
    """Build the model of a config, take a training step on drawn images and predict one.

    The initial weights are random. Fixed image sizes and the thresholds of predictions are left out, and two-stage
    detectors propose few boxes. Where there is a GPU, it is the ``device``.

    Raises:
        UserError: The model cannot be built or run, or its loss or a gradient is not finite.
    """
    cfg = load_config(file)
    name = type_name(cfg.model)
    with model_scope(cfg), quiet():
        torch.manual_seed(SEED)
        with explain_failure(f'{name} cannot be built with this backbone'):
            model = build_model(cfg, device or device_type())
        with explain_failure(f'{name} does not run with this backbone on drawn images', UNTRIED):
            proof = take_step(model, cfg)
            predict(model, cfg)
    return proof


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


def take_step(model: nn.Module, cfg: Config) -> Proof:
    """Take a step of the config's optimizer on drawn images; a config without an optimizer gets gradients only."""
    model.train()
    for name in ('epoch', 'iter'):  # for the heads that read them
        MessageHub.get_current_instance().update_info(name, 0)
    batch = model.data_preprocessor(draw_for(cfg, range(NUM_IMAGES), training=True), training=True)
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    if not loss.isfinite():
        raise UserError(f'The loss of {type(model).__name__} on drawn images is {loss.item()}.')
    loss.backward()
    gradients = {
        name: parameter.grad
        for prefix, module in model.named_modules()
        if isinstance(module, StagedBackbone)
        for name, parameter in module.named_parameters(prefix)
        if parameter.requires_grad
    }
    for name, gradient in gradients.items():
        if gradient is not None and not gradient.isfinite().all():
            raise UserError(f'The gradient of {name} on drawn images is not finite.')
    if cfg.get('optim_wrapper'):
        build_optim_wrapper(model, without_amp(cfg.optim_wrapper)).step()  # the gradients are in full precision
    without = tuple(name for name, gradient in gradients.items() if gradient is None or not gradient.any())
    return Proof(loss.item(), without)


def predict(model: nn.Module, cfg: Config) -> BaseDataElement:
    """Return a drawn sample with what the model predicts on it."""
    model.eval()
    torch.manual_seed(SEED)  # for the heads that draw random numbers
    with torch.no_grad():
        (sample,) = model.test_step(draw_for(cfg, [NUM_IMAGES], training=False))
    return sample

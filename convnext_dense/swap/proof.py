"""A config goes in; its model takes a training step and predicts on drawn images, or it is said why not."""

import contextlib
import copy
import math
import os
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from convnext_dense import configs
from convnext_dense.backbone import ConvNeXt
from convnext_dense.compat.errors import UserError
from convnext_dense.configs import model_scope
from convnext_dense.data.samples import SIDE, draw_for
from convnext_dense.swap.changes import kind
from convnext_dense.train import config as run_config
from convnext_dense.train import run as runs
from convnext_dense.train.screen import quiet

NUM_IMAGES = 2
SEED = 0
NUM_BOXES = 64  # that a detector proposes and learns from, at most; a proof need not last
THRESHOLDS = ('score_thr', 'mask_thr', 'filter_thr')  # an untrained model is sure of nothing
UNTRIED = '. Where the model needs what drawings have not, such as sentences, --no-proof writes the config untried.'


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


def prove(file: str | os.PathLike, device: str | None = None, reload: bool = False) -> Proof:
    """Build the model of a config, take a training step on drawn images and predict one.

    Initial weights are random; the sizes to which images are padded and the score below which a prediction is dropped
    are left out, and two-stage detectors look at few boxes.

    Args:
        file: Config of a detector or segmentor with a ConvNeXt.
        device: 'cuda' where there is one, else 'cpu'.
        reload: Save the weights too, load them into another model, and ask it for the same prediction.

    Raises:
        UserError: The model cannot be built or run, its loss or a gradient is not finite, or the loaded weights
            predict something else.
    """
    cfg = configs.load_config(file)
    device = device or runs.device_type()
    name = kind(cfg.model)
    with model_scope(cfg), quiet():
        torch.manual_seed(SEED)
        with in_words(f'{name} cannot be built with this backbone'):
            model = build_model(cfg, device)
        with in_words(f'{name} does not run with this backbone on drawn images', UNTRIED):
            loss, without_gradient = take_step(model, cfg)
            prediction = predict(model, cfg)
            if reload:
                check_same(prediction, predict(save_and_load(model, build_model(cfg, device)), cfg))
        num_params = sum(parameter.numel() for parameter in model.parameters())
    return Proof(num_params, loss, without_gradient, len(prediction))


@contextlib.contextmanager
def in_words(failure: str, advice: str = '') -> Iterator[None]:
    """Turn whatever is raised into a :class:`UserError` that begins with ``failure``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any model that there is
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = str(error).rstrip('.') or f'{frame.line} ({Path(frame.filename).name}, line {frame.lineno})'
        raise UserError(f'{failure}: {type(error).__name__}: {what}{advice}') from error


def build_model(cfg: Config, device: str) -> nn.Module:
    """Build the model with random weights."""
    model_cfg = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)  # as the runner does
    run_config.drop_initial_weights(model_cfg)
    for node in configs.walk(model_cfg):
        if 'drop_path_rate' in node:
            node['drop_path_rate'] = 0.0  # a dropped block gets no gradient
        if 'teacher_ckpt' in node:
            node['teacher_ckpt'] = None
        if 'mean' in node and 'std' in node:  # a data preprocessor
            node.pop('batch_augments', None)
            if node.get('size'):
                node['size'] = (SIDE, SIDE)
        counts = ('nms_pre', 'max_per_img') if 'nms_pre' in node else ('num',)
        node.update({key: min(node[key], NUM_BOXES) for key in counts if isinstance(node.get(key), int)})
        node.update({key: 0.0 for key in THRESHOLDS if key in node})
    model = MODELS.build(model_cfg)
    model.init_weights()
    return revert_sync_batchnorm(model).to(device)


def take_step(model: nn.Module, cfg: Config) -> tuple[float, tuple[str, ...]]:
    """Take a step of the config's optimizer on drawn images; a config without one gets no further than gradients.

    Returns:
        The loss, and the names of the backbone's parameters that no gradient reached.

    Raises:
        UserError: The loss or a gradient of the backbone is not finite.
    """
    model.train()
    for name in ('epoch', 'iter'):  # a few heads ask for them
        MessageHub.get_current_instance().update_info(name, 0)
    batch = model.data_preprocessor(draw_for(cfg, range(NUM_IMAGES), training=True), training=True)
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    if not math.isfinite(loss.item()):
        raise UserError(f'The loss of {type(model).__name__} on drawn images is {loss.item()}.')
    loss.backward()
    gradients = {
        f'{prefix}.{name}': parameter.grad
        for prefix, module in model.named_modules()
        if isinstance(module, ConvNeXt)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    for name, gradient in gradients.items():
        if gradient is not None and not gradient.isfinite().all():
            raise UserError(f'The gradient of {name} on drawn images is not finite.')
    if cfg.get('optim_wrapper'):
        # the gradients are in full precision
        build_optim_wrapper(model, run_config.without_amp(cfg.optim_wrapper)).step()
    return loss.item(), tuple(name for name, gradient in gradients.items() if gradient is None or not gradient.any())


def predict(model: nn.Module, cfg: Config) -> BaseDataElement | Tensor:
    """Return the predicted boxes and masks of a drawn image, or its labelled pixels."""
    model.eval()
    torch.manual_seed(SEED)  # a few heads draw numbers
    with torch.no_grad():
        (sample,) = model.test_step(draw_for(cfg, [NUM_IMAGES], training=False))
    if 'video_data_samples' in sample:
        return sample[-1].pred_track_instances
    if 'pred_sem_seg' in sample:
        return sample.pred_sem_seg.data.flatten()
    if 'pred_panoptic_seg' in sample:
        return sample.pred_panoptic_seg.sem_seg.flatten()
    return sample.pred_instances


def save_and_load(model: nn.Module, other: nn.Module) -> nn.Module:
    """Carry a model's weights into another one through a file, and return that."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, 'weights.pth'))
        torch.save(model.state_dict(), file)
        load_checkpoint(other, file, map_location='cpu', strict=True, logger='silent')
    return other


def check_same(prediction: BaseDataElement | Tensor, other: BaseDataElement | Tensor) -> None:
    """Compare two predictions bit by bit.

    Raises:
        UserError: They differ.
    """
    pairs = zip(tensors(prediction), tensors(other), strict=True)
    if not all(torch.equal(one, another) for one, another in pairs):
        raise UserError('The model predicts something else after its weights were saved and loaded.')


def tensors(node: object) -> Iterator[Tensor]:
    """Yield the tensors in a prediction."""
    if isinstance(node, BaseDataElement):
        node = dict(node.items())
    if isinstance(node, Tensor):
        yield node
    elif hasattr(node, 'tensor'):  # MMDetection's boxes
        yield node.tensor
    elif isinstance(node, (Mapping, list, tuple)):
        for child in node.values() if isinstance(node, Mapping) else node:
            yield from tensors(child)

"""A trained model, ready to predict: its weights, its config, and the classes that it knows."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import BaseTTAModel, revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement

from convnext_dense import configs
from convnext_dense.compat import check_exists
from convnext_dense.compat.checkpoint_configs import read_config
from convnext_dense.compat.errors import UserError, shorten
from convnext_dense.compat.warnings import ignore_listed
from convnext_dense.data import open_wrappers, read_classes
from convnext_dense.data.pictures import choose_palette
from convnext_dense.predict.exported import ExportedModel
from convnext_dense.predict.predictor import Predictor
from convnext_dense.results import LABEL_MAPS, OBJECTS, Objects, Result, encode
from convnext_dense.runtime import OPENERS
from convnext_dense.speed import keep_boxes_precise, speed_up
from convnext_dense.train import config as run_config
from convnext_dense.train.launch import device_type
from convnext_dense.train.mistakes import build_errors
from convnext_dense.train.resume import candidates
from convnext_dense.train.screen import quiet, tell
from convnext_dense.weights.meta import config_name, read_dataset, read_meta
from convnext_dense.weights.sources import fetch

READS_LABELS = ('LoadAnnotations', 'LoadPanopticAnnotations', 'LoadEmptyAnnotations')


class Model(Predictor):
    """A detector or a segmentor with its weights.

    Attributes:
        network: The model.
        config: The config of its training.
    """

    def __init__(
        self, network: torch.nn.Module, cfg: Config, dataset: Mapping[str, Any], name: str, checkpoint: str
    ) -> None:
        self.network, self.config = network, cfg
        with configs.model_scope(cfg):
            load, *steps = Compose(test_pipeline(cfg)).transforms
            self.prepare = Compose(steps)
        super().__init__(name, checkpoint, dataset['classes'], dataset['palette'], load)

    def predict(self, images: Sequence[np.ndarray]) -> list[Result]:
        """Predict a batch of images (H, W, channels), in one step where the model takes all of them in one size.

        An image of another size would be padded to that of the largest, and its prediction depend on the others.
        """
        return [self.result_of(sample) for sample in self.run(images)]

    def run(self, images: Sequence[np.ndarray]) -> list[BaseDataElement]:
        """Return the data samples that the network returns for images (H, W, channels)."""
        place = next(self.network.parameters()).device.type
        is_amp = (self.config.get('test_cfg') or {}).get('fp16', False)
        precision = torch.autocast(place, enabled=is_amp)
        with configs.model_scope(self.config), torch.inference_mode(), precision, warnings.catch_warnings():
            ignore_listed()
            given = [self.prepare(as_loaded(image)) for image in images]
            sizes = {tuple(each['inputs'].shape) for each in given if torch.is_tensor(each['inputs'])}
            batches = [given] if len(sizes) == 1 else [[each] for each in given]
            return [sample for batch in batches for sample in self.network.test_step(pseudo_collate(batch))]

    def result_of(self, sample: BaseDataElement) -> Result:
        """Return what a data sample holds in plain arrays."""
        if 'pred_instances' in sample:
            return objects_of(sample, self.classes)
        if 'pred_sem_seg' in sample:
            return self.label_map(sample.pred_sem_seg.data[0].cpu().numpy())
        raise UserError(
            f'The model {self.name} predicts {", ".join(sample.keys())}; objects and label maps can be predicted here.'
        )

    def scores(self, sample: BaseDataElement) -> np.ndarray:
        """Return what can be added up over tiles, (classes, H, W); of one class, what is positive where the class is.

        A segmentor with one channel, and test-time augmentation, give probabilities; others give logits.
        """
        given = sample.seg_logits.data
        if len(given) == 1:
            return (given - self.module.decode_head.threshold).cpu().numpy()
        return (given if self.has_tta else given.softmax(0)).cpu().numpy()

    @property
    def settings(self) -> str:
        """All that decides what it predicts, besides its file."""
        return self.config.pretty_text

    @property
    def kind(self) -> str:
        """What it predicts: ``'objects'`` or ``'label maps'``."""
        return LABEL_MAPS if hasattr(self.module, 'decode_head') else OBJECTS

    @property
    def has_tta(self) -> bool:
        """Whether it predicts with test-time augmentation."""
        return self.module is not self.network

    @property
    def module(self) -> torch.nn.Module:
        """The network without test-time augmentation around it."""
        return self.network.module if isinstance(self.network, BaseTTAModel) else self.network


def load_model(
    source: str | os.PathLike,
    config: str | os.PathLike | None = None,
    device: str | None = None,
    tta: bool = False,
    cfg_options: Mapping | None = None,
    amp: bool = False,
    fast: bool = True,
) -> Predictor:
    """Load a trained detector or segmentor.

    Args:
        source: The work dir of a run, of which the best checkpoint is taken, or else the latest; a checkpoint, as a
            file or as an address that :func:`~convnext_dense.weights.sources.fetch` takes; or an exported model, which
            has no other options than its device.
        config: The config, as a file or by its name, where it stands neither in the checkpoint nor beside it.
        device: ``'cpu'``, ``'cuda'``, ``'cuda:1'`` ...; by default a GPU where there is one.
        tta: Test-time augmentation, as the config says.
        cfg_options: Dotted keys of the config to override.
        amp: Mixed precision: fp16 on a GPU, bf16 on a CPU that has it.
        fast: Exchange layers for faster ones, as :func:`~convnext_dense.speed.speed_up` does, unless the config has
            ``speed_up = False``.

    Raises:
        UserError: There is no such model, it has no config, or its weights do not fit.
    """
    if Path(source).suffix in OPENERS:
        if config or tta or cfg_options or amp:
            raise UserError(
                f'{source} is an exported model: --config, --cfg-options, --tta and --amp came before that.'
            )
        return ExportedModel(source, device)
    checkpoint = find_checkpoint(source)
    content = fetch(checkpoint)
    cfg, name = find_own_config(checkpoint, content, config, cfg_options)
    configs.require_library(cfg.get('default_scope'))
    dataset = find_classes(cfg, content)
    if cfg.get('test_dataloader') is None:
        raise UserError(f'The config {name} has no test_dataloader, whose pipeline prepares the images.')
    fit(cfg, dataset, tta, amp)
    with configs.model_scope(cfg), build_errors(), quiet():
        network = revert_sync_batchnorm(MODELS.build(cfg.model))
        network.dataset_meta = dataset
        load_checkpoint(getattr(network, 'module', network), checkpoint, map_location='cpu', strict=True)
    check_classes(cfg, dataset['classes'], name)
    try:
        network.to(device or device_type())
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f'The model cannot run on {device} ({reason}). Give --device cpu, cuda or cuda:N.') from error
    if fast:
        keep_boxes_precise(network)
        if cfg.get('speed_up', True):
            speed_up(network)
    network.eval()  # of which a distilled model returns nothing
    return Model(network, cfg, dataset, name, checkpoint)


def fit(cfg: Config, dataset: Mapping[str, Any], tta: bool, amp: bool) -> None:
    """Change a config to the classes of a model and to the switches."""
    for _, each in open_wrappers(cfg.test_dataloader.dataset):
        each['metainfo'] = dict(classes=dataset['classes'])
    run_config.fit_classes(cfg)
    run_config.fit_bands(cfg)
    run_config.drop_initial_weights(cfg.model)
    if tta:
        run_config.enable_tta(cfg)
    if amp:
        tell(*run_config.test_in_amp(cfg))


def find_checkpoint(source: str | os.PathLike) -> str:
    """Return the file or address of a model's weights.

    Raises:
        UserError: There is none.
    """
    folder = Path(source)
    if folder.is_dir():
        best = sorted(folder.glob('best_*.pth'), key=lambda file: file.stat().st_mtime)
        checkpoint = best[-1] if best else next(iter(candidates(folder)), None)
        if checkpoint is None:
            raise UserError(
                f'The folder {folder} holds no checkpoint. Give the work dir of a run, or a checkpoint file.'
            )
        return str(checkpoint)
    if folder.suffix == '.py':
        raise UserError(
            f'{source} is a config; a model is a work dir or a checkpoint. Give the checkpoint, and --config {source} '
            'where the checkpoint does not hold its config.'
        )
    if '://' not in str(source):
        check_exists(folder)
    return str(source)


def find_own_config(
    checkpoint: str, content: Mapping, config: str | os.PathLike | None, options: Mapping | None
) -> tuple[Config, str]:
    """Return the config of a checkpoint and its name: the given one, the one beside it, or the one inside of it."""
    file = Path(checkpoint)
    beside = [file.with_suffix('.py'), *sorted(file.parent.glob('*.py'))] if file.is_file() else []
    text = read_meta(content).get('cfg')
    if config is not None:
        return configs.load_config(config, options), Path(config).stem
    if beside and beside[0].is_file():  # as publish writes it
        return configs.load_config(beside[0], options), beside[0].stem
    if text:
        cfg = Config(read_config(text, checkpoint))
        cfg.merge_from_dict(dict(options or {}))
        return cfg, config_name(read_meta(content)) or Path(checkpoint).stem
    if len(beside) == 2:  # a run's own
        return configs.load_config(beside[1], options), beside[1].stem
    raise UserError(f'{checkpoint} holds no config, and there is none beside it. Name it with --config.')


def find_classes(cfg: Config, content: Mapping) -> dict[str, Any]:
    """Return the classes and colours of a model: those of the checkpoint, of the config, or of the dataset's type."""
    dataset = read_dataset(content.get('meta'))
    loader = next(
        (cfg[f'{split}_dataloader'] for split in ('test', 'val', 'train') if cfg.get(f'{split}_dataloader')), {}
    )
    _, of_config = next(open_wrappers(loader.get('dataset')), ('', {}))
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry, quiet():
        known = getattr(registry.get(of_config.get('type') or ''), 'METAINFO', {})
    given = of_config.get('metainfo') or {}
    classes = dataset.get('classes') or read_classes(of_config) or known.get('classes')
    if not classes:
        raise UserError('Neither the checkpoint nor the config names the classes. Set metainfo = dict(classes=[...]).')
    palettes = (each.get('palette') for each in (dataset, given, known))
    return {'classes': tuple(classes), 'palette': choose_palette(len(classes), *palettes)}


def check_classes(cfg: Config, classes: Sequence[str], name: str) -> None:
    """Raise a :class:`UserError` where no head has as many classes as there are names."""
    heads = [node for node in configs.walk(cfg.model, configs.CLASS_AGNOSTIC) if not node.get('num_stuff_classes')]
    counts = {head['num_classes'] for head in heads if head.get('num_classes')}
    if counts and len(classes) not in counts:
        raise UserError(
            f'{name} has the names of {len(classes)} classes ({shorten(classes)}), and its heads have '
            f'{shorten(sorted(counts))}. Correct dataset_meta in the meta of the checkpoint, or metainfo in the config.'
        )


def test_pipeline(cfg: Config) -> list[dict]:
    """Return the steps that prepare an image for a test, without those that read what is right."""
    _, dataset = next(open_wrappers(cfg.test_dataloader.dataset))
    steps = dataset.get('pipeline') or cfg.get('test_pipeline')
    return [without_labels(step) for step in steps if step['type'].split('.')[-1] not in READS_LABELS]


def without_labels(step: Mapping) -> dict:
    """Return a step; in test-time augmentation, without the inner ones that read what is right."""
    if not isinstance(next(iter(step.get('transforms') or ()), None), (list, tuple)):
        return step
    choices = [[each for each in choice if each['type'] not in READS_LABELS] for choice in step['transforms']]
    return dict(step, transforms=[choice for choice in choices if choice])


def as_loaded(image: np.ndarray) -> dict:
    """Return an image (H, W, channels) as the first step of a pipeline leaves it."""
    shape = image.shape[:2]
    return dict(img=image, img_path='', img_id=0, img_shape=shape, ori_shape=shape)


def objects_of(sample: BaseDataElement, classes: tuple[str, ...]) -> Objects:
    """Return the objects that MMDetection found in an image, best first."""
    found = sample.pred_instances
    rles = encode(np.asarray(found.masks.cpu())) if 'masks' in found else None
    boxes, scores, labels = (found[name].cpu().numpy() for name in ('bboxes', 'scores', 'labels'))
    objects = Objects(boxes.astype(np.float32), scores, labels, tuple(sample.ori_shape[:2]), classes, rles)
    return objects.take(np.argsort(-scores, kind='stable'))

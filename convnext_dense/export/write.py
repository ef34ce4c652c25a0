"""The command ``export``: a trained model as one file that runs without the libraries of its training."""

import importlib.util
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from convnext_dense import __version__
from convnext_dense.compat.errors import UserError
from convnext_dense.compat.files import explained, replaced, write_text
from convnext_dense.export.graph import Graph, recording
from convnext_dense.export.parity import compare, pictures
from convnext_dense.export.steps import read_steps
from convnext_dense.predict.model import Model, load_model, test_pipeline
from convnext_dense.results import LABEL_MAPS
from convnext_dense.runtime import KEY, OPENERS, load, resize, resized_size
from convnext_dense.train.screen import quiet, tell
from convnext_dense.weights.inspect import inspect

OPSET = 18
LARGEST = 2**31 - 2**24  # bytes of an ONNX file
INPUTS = ('image', 'size')

Save = Callable[[Path, str], None]  # writes a recorded graph and its description into a file
Arguments = tuple[Tensor, Tensor]  # of a graph: images and the size of the original


def record_onnx(graph: Graph, arguments: Arguments) -> Save:
    """Record a graph for onnxruntime."""
    import onnx

    if sum(each.numel() * each.element_size() for each in graph.state_dict().values()) > LARGEST:
        raise UserError('The weights are larger than 2 GB, where an ONNX file ends. Export with --to torch.')
    content = io.BytesIO()
    names = graph.outputs
    axes = {'image': {1: 'height', 2: 'width'}} | {name: {0: 'objects'} for name in names}
    if len(names) == 1:  # of a segmentor
        axes = {'image': {0: 'batch', 1: 'height', 2: 'width'}, 'labels': {0: 'batch', 1: 'h', 2: 'w'}}
    options = dict(input_names=INPUTS, output_names=names, dynamic_axes=axes, opset_version=OPSET, dynamo=False)
    torch.onnx.export(graph, arguments, content, **options)
    model = onnx.load_model_from_string(content.getvalue())

    def save(file: Path, text: str) -> None:
        onnx.helper.set_model_props(model, {KEY: text})
        onnx.save_model(model, file)

    return save


def record_openvino(graph: Graph, arguments: Arguments) -> Save:
    """Record a graph for OpenVINO, which reads ONNX."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'model.onnx')
        record_onnx(graph, arguments)(file, '')
        model = openvino.convert_model(file)

    def save(file: Path, text: str) -> None:
        model.set_rt_info(text, KEY)
        openvino.save_model(model, file, compress_to_fp16=False)

    return save


def record_torch(graph: Graph, arguments: Arguments) -> Save:
    """Record a graph as a program of ``torch.export``."""
    if any(type(module).__name__ == 'MultiScaleDeformableAttention' for module in graph.modules()):
        raise UserError("PyTorch's exporter does not follow deformable attention. Export the model with --to onnx.")
    sizes = dict.fromkeys(range(3) if len(graph.outputs) == 1 else (1, 2), torch.export.Dim.DYNAMIC)
    with mock.patch.object(torch.nn.functional, 'batch_norm', fixed_norm):
        program = torch.export.export(graph, arguments, dynamic_shapes=(sizes, None), strict=False)

    def save(file: Path, text: str) -> None:
        torch.export.save(program, file, extra_files={KEY: text})

    return save


def fixed_norm(maps: Tensor, mean: Tensor, var: Tensor, weight: Any, bias: Any, *settings: Any) -> Tensor:
    """Normalise as ``F.batch_norm`` does in a test; that one asks whether there are any maps, which no graph knows."""
    _, momentum, eps = settings
    return torch._native_batch_norm_legit_no_training(maps, weight, bias, mean, var, momentum, eps)[0]


class Target(NamedTuple):
    """A format to export to."""

    suffix: str  # of its file
    record: Callable[[Graph, Arguments], Save]  # makes the graph
    packages: tuple[str, ...]  # what it needs


TARGETS = {
    'onnx': Target('.onnx', record_onnx, ('onnx', 'onnxruntime')),
    'openvino': Target('.xml', record_openvino, ('onnx', 'openvino')),
    'torch': Target('.pt2', record_torch, ()),
}


def export(
    model: str | os.PathLike,
    to: str = 'onnx',
    out: str | os.PathLike | None = None,
    *,
    images: Sequence[str | os.PathLike] = (),
    config: str | os.PathLike | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    tolerance: float = 1,
    force: bool = False,
) -> str:
    """Write a trained model as one graph, if it predicts what PyTorch predicts.

    Args:
        model: As for :func:`~convnext_dense.predict.model.load_model`, with ``config`` and ``cfg_options``.
        to: One of :data:`TARGETS`.
        out: The file to write; by default it has the name of the config. A report ``.parity.json`` is written beside.
        images: Files and folders whose predictions are compared, besides those of drawn images.
        config: The config of the model.
        cfg_options: Dotted keys of the config to override.
        tolerance: How many times the :data:`~convnext_dense.export.parity.LIMITS` a difference may be.
        force: Replace a file that exists.

    Returns:
        How the predictions differ, as a table.

    Raises:
        UserError: The model cannot be exported, or predicts something else then. In both cases no file is written.
    """
    target = check_target(to, out)
    if Path(model).suffix in OPENERS:
        raise UserError(f'{model} is an exported model. Give the checkpoint that it was made of.')
    loaded = load_model(model, config, 'cpu', cfg_options=cfg_options, fast=False)
    file = Path(out or loaded.name + target.suffix)
    if file.exists() and not force:
        raise UserError(f'{file} exists. Replace it with --force, or give another --out.')
    steps = read_steps(test_pipeline(loaded.config))
    graph = Graph(loaded.network, steps)
    samples = pictures(loaded, images)
    meta = describe(loaded, graph)
    tell(f'{loaded.name} is recorded, and its predictions are compared on {len(samples)} images')
    with recording(), quiet():
        save = target.record(graph, example(graph, meta, samples[0][1]))
    with explained(file), replaced(file) as draft:
        save(draft, json.dumps(meta))
        try:
            report = compare(loaded, load(draft, torch.get_num_threads(), 'cpu'), samples, tolerance)
        except ValueError as error:  # it does not take all of the images
            raise UserError(f'{file} was not written: {error}') from error
        report.check(file)
        meta['parity'] = report.summary()
        lines = [str(report), f'written to {file}; {describe_speed(meta["parity"])}']
        if to == 'openvino':
            meta['parity_bf16'] = compare(
                loaded, load(draft, torch.get_num_threads(), 'cpu', 'bf16'), samples
            ).summary()
            lines.append(f'with precision="bf16" {describe_loss(meta["parity_bf16"])}')
        save(draft, json.dumps(meta))
        for beside in set(draft.parent.iterdir()) - {draft}:  # OpenVINO's weights
            beside.replace(file.parent / beside.name)
    write_text(json.dumps(meta | {'images': asdict(report)['differences']}, indent=1), file.with_suffix('.parity.json'))
    if not meta['parity']['objects']:
        tell('nothing was found on any image, so that no objects were compared; name other images with --images')
    return '\n'.join(lines)


def describe_speed(found: Mapping[str, Any]) -> str:
    """Say how fast an exported model is."""
    return f'{found["speedup"]:.2f}x as fast as PyTorch with {torch.get_num_threads()} threads'


def describe_loss(found: Mapping[str, Any]) -> str:
    """Say how fast an exported model is, and what it finds otherwise."""
    return (
        f'{describe_speed(found)}; of {found["objects"]} objects {found["missing"]} appear or are lost, boxes differ '
        f'by {found["boxes"]:.2g} px, scores by {found["scores"]:.2g}, {found["pixels"]} of {found["compared"]} pixels'
    )


def check_target(to: str, out: str | os.PathLike | None) -> Target:
    """Return a format.

    Raises:
        UserError: There is no such format, its packages are missing, or the file has another suffix.
    """
    if to not in TARGETS:
        raise UserError(f'--to is {", ".join(TARGETS)}; got {to}.')
    target = TARGETS[to]
    if missing := [name for name in target.packages if importlib.util.find_spec(name) is None]:
        raise UserError(f"--to {to} needs {' and '.join(missing)}: pip install 'convnext-dense[export]'")
    if out is not None and Path(out).suffix != target.suffix:
        raise UserError(f'--to {to} writes a {target.suffix} file; got --out {out}.')
    return target


def describe(model: Model, graph: Graph) -> dict[str, Any]:
    """Return what a file says of its model, in plain values."""
    found, given = inspect(model.checkpoint), model.network.data_preprocessor
    steps = graph.steps
    thresholds = model.config.model.get('test_cfg')
    roi_cfg = getattr(getattr(model.network, 'roi_head', None), 'test_cfg', None) or {}
    return {
        'name': model.name,
        'kind': model.kind,
        'classes': list(model.classes),
        'palette': [list(colour) for colour in model.palette],
        'channels': model.channels,
        'order': 'BGR' if model.channels == 3 else 'as in the file',
        'load': test_pipeline(model.config)[0],
        'scope': model.config.get('default_scope'),
        'resize': {'scale': steps.scale, 'factor': steps.factor, 'keep_ratio': steps.keep_ratio},
        'mean': given.mean.flatten().tolist() if given._enable_normalize else None,
        'std': given.std.flatten().tolist() if given._enable_normalize else None,
        'test_cfg': thresholds.to_dict() if thresholds else None,
        'mask_threshold': roi_cfg.get('mask_thr_binary', 0.5),
        'metrics': found['metrics'],
        'licence': found['licence'],
        'convnext_dense': __version__,
        'torch': torch.__version__,
    }


def example(graph: Graph, meta: Mapping[str, Any], image: np.ndarray) -> Arguments:
    """Return an image and its size to record a graph with, and note what the graph returns.

    Its sides are odd, so that what is padded is recorded; segmentors take two images, so that any number is taken.
    """
    height, width = ((length - 1) | 1 for length in resized_size(image.shape[:2], meta['resize']))
    images = torch.from_numpy(resize(image, height, width))[None]
    arguments = images.repeat(2 if meta['kind'] == LABEL_MAPS else 1, 1, 1, 1), torch.tensor(image.shape[:2])
    graph(*arguments)
    return arguments

"""Where a model comes from: a checkpoint goes in, plain values on its training, data and metrics come out.

MMEngine, and before it mmcv, keep these beside the weights, as ``meta`` and ``message_hub``. A config is kept as text,
which is Python; here it is parsed and never run.
"""

import ast
import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mmengine.logging import HistoryBuffer
from torch import Tensor

from convnext_dense.weights import licences
from convnext_dense.weights.published import PUBLISHED
from convnext_dense.weights.reading import Part, find_state_dict

RUN_STAMP = re.compile(r'_\d{8}_\d{6}$')  # MMEngine's experiment_name is that of the config with the start of the run
COMMIT = re.compile(r'([0-9a-f]{40}|unknown)$')  # of the folder of the run, which MMEngine appends to its version
COUNTERS = ('epoch', 'iter', 'seed')
LICENCES = {each.url: each.licence for each in PUBLISHED.values()} | {
    f'convnext://{name}': each.licence for name, each in PUBLISHED.items()
}
# beginning of a source, in small letters -> licence
MAKERS = {
    'hf://facebook/dinov3': licences.DINOV3,
    'hf://facebook/eupe': licences.FAIR_NC,
    'torchvision://': licences.BSD,
}
NOT_TOLD = 'not told by the file; that of its initial weights may extend to it'
IN_TIMM = re.compile(r'(?:timm://|hf://timm/)(?P<name>[\w.-]+)')
# MMEngine's and ours that lead to the same files for everyone
PUBLIC_SCHEMES = ('convnext', 'timm', 'hf', 'torchvision', 'modelzoo', 'open-mmlab', 'openmmlab', 'mmcls')
INTERNAL_DOMAINS = ('local', 'localdomain', 'localhost', 'internal', 'intranet', 'lan', 'corp', 'home', 'arpa')


class Metrics(NamedTuple):
    """Results of a validation.

    Attributes:
        values: Name -> value.
        origin: Where they were found, and when they were measured.
    """

    values: dict[str, float]
    origin: str


def read_meta(checkpoint: Mapping) -> dict[str, Any]:
    """Return what a checkpoint says of its training, in types that JSON has too; colours are tuples.

    The keys are MMEngine's: ``epoch``, ``iter``, ``seed``, ``time``, ``experiment_name``, ``cfg``, ``dataset_meta``
    and the versions of libraries; ``initial_weights`` are read from the config. What mmcv wrote before MMEngine is
    found under the same keys.
    """
    given = checkpoint.get('meta')
    given = given if isinstance(given, Mapping) else {}
    meta = {key: int(given[key]) for key in COUNTERS if isinstance(given.get(key), Integral)}
    texts = ['time', *(key for key in given if isinstance(key, str) and key.endswith('_version'))]
    meta.update({key: COMMIT.sub('', given[key]) for key in texts if isinstance(given.get(key), str)})
    for key, older in (('experiment_name', 'exp_name'), ('cfg', 'config')):
        text = given.get(key) or given.get(older)
        if isinstance(text, str):
            meta[key] = text
    dataset = given.get('dataset_meta')
    dataset = dataset if isinstance(dataset, Mapping) else given
    dataset = {str(key).lower(): value for key, value in dataset.items()}  # capitals are mmcv's
    classes, palette = dataset.get('classes'), dataset.get('palette')
    if isinstance(classes, list | tuple) and classes:
        meta['dataset_meta'] = {'classes': tuple(map(str, classes))}
        if isinstance(palette, list | tuple):
            with contextlib.suppress(TypeError, ValueError):  # a palette may be a name
                meta['dataset_meta']['palette'] = [tuple(map(int, colour)) for colour in palette]
    noted = given.get('initial_weights')
    started = [*map(str, noted)] if isinstance(noted, list | tuple) else initial_weights(meta.get('cfg', ''))
    if started:
        meta['initial_weights'] = started
    if isinstance(given.get('metrics'), Mapping):  # this package published it
        meta['metrics'] = numbers(given['metrics'])
        meta['metrics_origin'] = str(given.get('metrics_origin', 'published with the weights'))
    return meta


def other_entries(checkpoint: Mapping) -> dict[str, Any]:
    """Return what lies beside the weights and ``meta``: the state of an optimizer, and the like."""
    state_dict = find_state_dict(checkpoint)
    return {
        str(key): value
        for key, value in checkpoint.items()
        if key != 'meta' and not isinstance(value, Tensor) and find_state_dict({key: value}) is not state_dict
    }


def config_name(meta: Mapping[str, Any]) -> str:
    """Return the name of the config that a model was trained with; empty where the checkpoint does not say.

    >>> config_name({'experiment_name': 'cascade_convnext_t_coco_20260131_093000'})
    'cascade_convnext_t_coco'
    """
    return RUN_STAMP.sub('', meta.get('experiment_name', '')).removesuffix('.py')


def initial_weights(config: str) -> list[str]:
    """Return the checkpoints with which a config, given as text, initialises its model or starts its training.

    >>> initial_weights("model = dict(init_cfg=dict(type='Pretrained', checkpoint='convnext://tiny_1k'))")
    ['convnext://tiny_1k']
    """
    tree = parse_config(config)
    settings = {
        target.id: line.value.value
        for line in tree.body
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant)
        for target in line.targets
        if isinstance(target, ast.Name)
    }
    # a resumed training notes its own checkpoint there
    found = [] if settings.get('resume') else [settings.get('load_from')]
    for node in ast.walk(tree):
        entries = {}
        if isinstance(node, ast.Call):
            entries = {word.arg: word.value for word in node.keywords}
        elif isinstance(node, ast.Dict):
            entries = {getattr(key, 'value', None): value for key, value in zip(node.keys, node.values, strict=True)}
        texts = {key: value.value for key, value in entries.items() if isinstance(value, ast.Constant)}
        # `pretrained` is what MMDetection 2 and MMSegmentation 0 call it
        source = texts.get('checkpoint') if texts.get('type') == 'Pretrained' else texts.get('pretrained')
        if isinstance(source, str):
            found.append(source)
    return list(dict.fromkeys(filter(None, found)))


def parse_config(config: str) -> ast.Module:
    """Return the syntax tree of a config's text; an empty one where it is no Python."""
    try:
        return ast.parse(config)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.parse('')


def is_public(source: str) -> bool:
    """Tell whether everyone finds the same weights there, and its name tells nothing of its owner.

    >>> [is_public(source) for source in ('timm://convnext_tiny', 'https://10.0.0.7/a.pth', '/home/me/a.pth')]
    [True, False, False]
    """
    scheme, separator, _ = source.partition('://')
    if scheme not in ('http', 'https'):
        return bool(separator) and scheme in PUBLIC_SCHEMES
    try:
        address = urlsplit(source)
        host = address.hostname or ''
    except ValueError:
        return False
    domain = host.rpartition('.')[2]
    is_internal = '.' not in host or ':' in host or domain.isdigit() or domain in INTERNAL_DOMAINS
    return not is_internal and not address.query and '@' not in address.netloc  # a query may hold a key


def public_name(source: str) -> str:
    """Return a source of weights as it can be told to everyone.

    >>> public_name('/home/me/secret/epoch_3.pth')
    'a local file'
    """
    if is_public(source):
        return source
    return 'a private address' if '://' in source and not source.startswith('file:') else 'a local file'


def licence_of(source: str) -> str:
    """Return the licence of initial weights by their source; empty where this package does not know it.

    >>> licence_of('convnext://v2_tiny_1k')
    'CC-BY-NC 4.0'
    """
    if found := IN_TIMM.match(source):
        return licence_in_timm(found['name'])
    by_makers = (licence for start, licence in MAKERS.items() if source.lower().startswith(start))
    return LICENCES.get(source) or next(by_makers, '')


def licence_in_timm(name: str) -> str:
    """Return the licence that timm registers for pretrained weights; empty where it does not, or is not installed."""
    try:
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(name)
    except (ImportError, RuntimeError):  # RuntimeError: timm has no such weights
        return ''
    return (config and config.license) or ''


def inherited_licence(sources: Iterable[str]) -> str:
    """Say from which weights of a known licence a training started; empty where there were none.

    >>> inherited_licence(['convnext://tiny_1k', '/home/me/own.pth'])
    'trained from convnext://tiny_1k (MIT)'
    """
    known = ' and '.join(f'{source} ({licence})' for source in sources if (licence := licence_of(source)))
    return known and f'trained from {known}'


def name_licence(checkpoint: Mapping, parts: Sequence[Part], is_whole: bool) -> str:
    """Say what is known of the licence of weights, in one line; empty where they are nobody's format.

    Their source may tell it, or what they were trained from. Otherwise the format tells what the weights of its makers
    have, and anyone may have trained others of the same names.

    Args:
        checkpoint: What the file holds.
        parts: The ConvNeXts in it.
        is_whole: It is a detector or a segmentor, which no maker of a format publishes.
    """
    if told := getattr(checkpoint, 'licence', ''):
        return told
    started = read_meta(checkpoint).get('initial_weights', ())
    if inherited := inherited_licence(started):
        return inherited
    if started or is_whole or not parts:
        return NOT_TOLD if parts else ''
    return parts[0].found.format.licence_note


def read_metrics(checkpoint: Mapping, file: Path | None = None) -> Metrics:
    """Return the latest known metrics of a checkpoint, without those of its training loss; -1 is COCO's for no value.

    MMEngine saves a checkpoint before it validates it, so that its own history ends one validation earlier, unless it
    was the best so far. The log of the run, which lies beside the checkpoint, has the right one.

    Args:
        checkpoint: What the file holds.
        file: The file, for the log beside it.
    """
    meta = read_meta(checkpoint)
    if 'metrics' in meta:
        return Metrics(meta['metrics'], meta['metrics_origin'])
    logged = numbers(logged_row(file, meta)) if file else {}
    if logged:
        return Metrics(logged, "validation of this checkpoint, from the run's log")
    hub = checkpoint.get('message_hub')
    scalars = hub.get('log_scalars') if isinstance(hub, Mapping) else None
    latest = {}
    for name, buffer in (scalars if isinstance(scalars, Mapping) else {}).items():
        if str(name).startswith('val/') and isinstance(buffer, HistoryBuffer):
            with contextlib.suppress(TypeError, ValueError, IndexError):  # empty, or no numbers
                latest[name.removeprefix('val/')] = float(buffer.data[0][-1])
    return Metrics(numbers(latest), 'last validation before the checkpoint was saved' if latest else '')


def numbers(values: Mapping) -> dict[str, float]:
    """Keep the finite numbers of a row of metrics, without times, counters and COCO's -1 for 'no such object'."""
    return {
        str(name): float(value)
        for name, value in values.items()
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and value != -1
        if str(name) not in ('step', 'epoch', 'iter') and not str(name).endswith('time')
    }


def logged_row(file: Path, meta: Mapping[str, Any]) -> dict:
    """Return the validation row of a checkpoint in the JSON lines that its run left in the same folder."""
    latest = {}
    for log in sorted(file.parent.glob('*/vis_data/scalars.json')):
        rows = list(read_rows(log))
        by_epoch = any('epoch' in row for row in rows if 'loss' in row)
        now = meta.get('epoch' if by_epoch else 'iter')
        latest = next((row for row in rows if 'loss' not in row and now and row.get('step') == now), latest)
    return latest


def read_rows(log: Path) -> Iterator[dict]:
    """Yield the rows of a file of JSON lines; the last one may be cut off."""
    for line in log.read_text(errors='replace').splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row

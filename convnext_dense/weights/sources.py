"""Where weights come from, and how they are fetched and read without running code.

========================  =============================================================================================
``PATH``                  a ``.pth``, ``.pt``, ``.bin`` or ``.safetensors`` file
``convnext://NAME``       a file that facebookresearch published: a row of :data:`PUBLISHED`
``timm://NAME[.TAG]``     pretrained weights of timm's registry, from the Hub or the address that it names
``hf://ORG/REPO[@REV]``   a repository of the Hugging Face Hub; ``hf://ORG/REPO[@REV]/FILE`` names the file in it
``https://...``           any address; a name that carries a hash (``NAME-1a2b3c4d.pth``) is checked against it
========================  =============================================================================================

The schemes are registered with MMEngine's ``CheckpointLoader``, so that they work wherever MMEngine takes a
checkpoint, also for other models; its own schemes (``torchvision://``, ``open-mmlab://``, ``s3://``) work here.
"""

import contextlib
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.runner.checkpoint import CheckpointLoader

from convnext_dense.compat import read_checkpoint
from convnext_dense.compat.checkpoints import (
    check_exists,
    first_on_this_machine,
    read_checkpoint_from_url,
    warn_of_old_torch,
)
from convnext_dense.compat.errors import UserError
from convnext_dense.variants import VARIANTS
from convnext_dense.weights.formats import CC_BY_NC, MIT

CONVNEXT = 'convnext://'
HOST = 'https://dl.fbaipublicfiles.com/convnext/'
# Name -> path below HOST, and the weights in units of 1e6 bytes; some files hold the state of an optimizer besides.
# Sources: the READMEs of facebookresearch/ConvNeXt and ConvNeXt-V2. `1k` and `22k` are the classes of ImageNet in the
# order of training, `_384` and `_512` the image size in pixels where it is not 224.
PUBLISHED = {
    # classifiers
    'tiny_1k': ('convnext_tiny_1k_224.pth', 114),
    'small_1k': ('convnext_small_1k_224.pth', 201),
    'base_1k': ('convnext_base_1k_224.pth', 354),
    'large_1k': ('convnext_large_1k_224.pth', 791),
    'tiny_1k_ema': ('convnext_tiny_1k_224_ema.pth', 114),
    'small_1k_ema': ('convnext_small_1k_224_ema.pth', 201),
    'base_1k_ema': ('convnext_base_1k_224_ema.pth', 354),
    'large_1k_ema': ('convnext_large_1k_224_ema.pth', 791),
    'base_1k_384': ('convnext_base_1k_384.pth', 354),
    'large_1k_384': ('convnext_large_1k_384.pth', 791),
    'tiny_22k': ('convnext_tiny_22k_224.pth', 178),
    'small_22k': ('convnext_small_22k_224.pth', 265),
    'base_22k': ('convnext_base_22k_224.pth', 440),
    'large_22k': ('convnext_large_22k_224.pth', 919),
    'xlarge_22k': ('convnext_xlarge_22k_224.pth', 1572),
    'tiny_22k_1k': ('convnext_tiny_22k_1k_224.pth', 114),
    'small_22k_1k': ('convnext_small_22k_1k_224.pth', 201),
    'base_22k_1k': ('convnext_base_22k_1k_224.pth', 354),
    'large_22k_1k': ('convnext_large_22k_1k_224.pth', 791),
    'xlarge_22k_1k': ('convnext_xlarge_22k_1k_224_ema.pth', 1401),
    'tiny_22k_1k_384': ('convnext_tiny_22k_1k_384.pth', 114),
    'small_22k_1k_384': ('convnext_small_22k_1k_384.pth', 201),
    'base_22k_1k_384': ('convnext_base_22k_1k_384.pth', 354),
    'large_22k_1k_384': ('convnext_large_22k_1k_384.pth', 791),
    'xlarge_22k_1k_384': ('convnext_xlarge_22k_1k_384_ema.pth', 1401),
    'v2_atto_fcmae': ('convnextv2/pt_only/convnextv2_atto_1k_224_fcmae.pt', 14),
    'v2_femto_fcmae': ('convnextv2/pt_only/convnextv2_femto_1k_224_fcmae.pt', 19),
    'v2_pico_fcmae': ('convnextv2/pt_only/convnextv2_pico_1k_224_fcmae.pt', 34),
    'v2_nano_fcmae': ('convnextv2/pt_only/convnextv2_nano_1k_224_fcmae.pt', 60),
    'v2_tiny_fcmae': ('convnextv2/pt_only/convnextv2_tiny_1k_224_fcmae.pt', 111),
    'v2_base_fcmae': ('convnextv2/pt_only/convnextv2_base_1k_224_fcmae.pt', 351),
    'v2_large_fcmae': ('convnextv2/pt_only/convnextv2_large_1k_224_fcmae.pt', 786),
    'v2_huge_fcmae': ('convnextv2/pt_only/convnextv2_huge_1k_224_fcmae.pt', 2630),
    'v2_atto_1k': ('convnextv2/im1k/convnextv2_atto_1k_224_ema.pt', 15),
    'v2_femto_1k': ('convnextv2/im1k/convnextv2_femto_1k_224_ema.pt', 21),
    'v2_pico_1k': ('convnextv2/im1k/convnextv2_pico_1k_224_ema.pt', 36),
    'v2_nano_1k': ('convnextv2/im1k/convnextv2_nano_1k_224_ema.pt', 62),
    'v2_tiny_1k': ('convnextv2/im1k/convnextv2_tiny_1k_224_ema.pt', 115),
    'v2_base_1k': ('convnextv2/im1k/convnextv2_base_1k_224_ema.pt', 355),
    'v2_large_1k': ('convnextv2/im1k/convnextv2_large_1k_224_ema.pt', 792),
    'v2_huge_1k': ('convnextv2/im1k/convnextv2_huge_1k_224_ema.pt', 2641),
    'v2_nano_22k_1k': ('convnextv2/im22k/convnextv2_nano_22k_224_ema.pt', 62),
    'v2_tiny_22k_1k': ('convnextv2/im22k/convnextv2_tiny_22k_224_ema.pt', 115),
    'v2_base_22k_1k': ('convnextv2/im22k/convnextv2_base_22k_224_ema.pt', 355),
    'v2_large_22k_1k': ('convnextv2/im22k/convnextv2_large_22k_224_ema.pt', 792),
    'v2_nano_22k_1k_384': ('convnextv2/im22k/convnextv2_nano_22k_384_ema.pt', 62),
    'v2_tiny_22k_1k_384': ('convnextv2/im22k/convnextv2_tiny_22k_384_ema.pt', 115),
    'v2_base_22k_1k_384': ('convnextv2/im22k/convnextv2_base_22k_384_ema.pt', 355),
    'v2_large_22k_1k_384': ('convnextv2/im22k/convnextv2_large_22k_384_ema.pt', 792),
    'v2_huge_22k_1k_384': ('convnextv2/im22k/convnextv2_huge_22k_384_ema.pt', 2641),
    'v2_huge_22k_1k_512': ('convnextv2/im22k/convnextv2_huge_22k_512_ema.pt', 2641),
    # whole detectors and segmentors
    'mask_rcnn_tiny_1k': ('coco/mask_rcnn_convnext_tiny_1k_3x.pth', 192),
    'cascade_mask_rcnn_tiny_1k': ('coco/cascade_mask_rcnn_convnext_tiny_1k_3x.pth', 344),
    'cascade_mask_rcnn_small_1k': ('coco/cascade_mask_rcnn_convnext_small_1k_3x.pth', 430),
    'cascade_mask_rcnn_base_1k': ('coco/cascade_mask_rcnn_convnext_base_1k_3x.pth', 583),
    'cascade_mask_rcnn_base_22k': ('coco/cascade_mask_rcnn_convnext_base_22k_3x.pth', 583),
    'cascade_mask_rcnn_large_22k': ('coco/cascade_mask_rcnn_convnext_large_22k_3x.pth', 1019),
    'cascade_mask_rcnn_xlarge_22k': ('coco/cascade_mask_rcnn_convnext_xlarge_22k_3x.pth', 1628),
    'upernet_tiny_1k': ('ade20k/upernet_convnext_tiny_1k_512x512.pth', 241),
    'upernet_small_1k': ('ade20k/upernet_convnext_small_1k_512x512.pth', 328),
    'upernet_base_1k': ('ade20k/upernet_convnext_base_1k_512x512.pth', 488),
    'upernet_base_22k': ('ade20k/upernet_convnext_base_22k_640x640.pth', 488),
    'upernet_large_22k': ('ade20k/upernet_convnext_large_22k_640x640.pth', 940),
    'upernet_xlarge_22k': ('ade20k/upernet_convnext_xlarge_22k_640x640.pth', 1565),
}
HUB_FILES = (  # in a repository of the Hub, best first
    'model.safetensors',
    'pytorch_model.safetensors',
    'open_clip_model.safetensors',
    'pytorch_model.bin',
    'open_clip_pytorch_model.bin',
)
HUB_SOURCE = re.compile(
    r'hf://(?P<repository>[^/@]+/[^/@]+)'
    r'(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?'  # these alone have slashes
    r'(?:/(?P<file>.+))?'
)


class Checkpoint(dict):
    """What a file holds, with where it came from.

    Attributes:
        source: As the user named it.
        licence: That of the weights, where the source tells.
    """

    def __init__(self, content: Mapping, source: str, licence: str = '') -> None:
        super().__init__(content)
        self.source = source
        self.licence = licence
        self._metadata = getattr(content, '_metadata', OrderedDict())  # PyTorch's versions of the modules

    def __reduce__(self) -> tuple:
        # saved as what it was read from, which needs no class of this package
        return OrderedDict, (), {'_metadata': self._metadata}, None, iter(self.items())


def fetch(source: str | os.PathLike, map_location: Any = 'cpu') -> Checkpoint:
    """Return what a source, one of the above, holds; ``map_location`` is as for ``torch.load``.

    Local files are mapped into memory, not read: do not write such a file in place while its tensors are in use.

    Raises:
        UserError: It does not exist, cannot be fetched, is damaged, or is not safe to read.
    """
    source = os.fspath(source)
    check_source(source)
    with explained_failures(source):
        content = CheckpointLoader.load_checkpoint(source, map_location, logger='silent')
    return as_checkpoint(content, source)


def as_checkpoint(content: Any, source: str = 'the checkpoint') -> Checkpoint:
    """Return what was read with its source, or raise a :class:`UserError` where it is no mapping."""
    if not isinstance(content, Mapping):
        raise UserError(
            f'{source} holds {type(content).__name__}, not a checkpoint. Save the state_dict() of the model.'
        )
    return content if isinstance(content, Checkpoint) else Checkpoint(content, source)


def check_source(source: str) -> None:
    """Raise a :class:`UserError` for a scheme that does not exist, a missing file, or a short name of nothing."""
    schemes = [scheme for scheme in CheckpointLoader._schemes if scheme]  # patterns, as MMEngine takes them
    if not any(re.match(scheme, source) for scheme in schemes):
        if '://' in source:
            known = ', '.join(sorted(scheme for scheme in schemes if '\\' not in scheme))
            raise UserError(f'Weights are not fetched from {source}. Give a path, or one of {known}.')
        check_exists(Path(source).expanduser())
    if source.startswith(CONVNEXT):
        find_published(source)


def find_published(source: str) -> tuple[str, int]:
    """Return the address of ``convnext://NAME`` and its size in units of 1e6 bytes.

    Raises:
        UserError: No such file was published; the message lists those of the same size, or all names.

    >>> find_published('convnext://tiny_1k')
    ('https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224.pth', 114)
    """
    name = source.removeprefix(CONVNEXT)
    if name not in PUBLISHED:
        sizes = VARIANTS.keys() & name.split('_')
        near = [known for known in PUBLISHED if sizes.intersection(known.split('_'))]
        raise UserError(f'No published weights are called {name!r}. Known: {", ".join(near or PUBLISHED)}.')
    path, megabytes = PUBLISHED[name]
    return HOST + path, megabytes


@CheckpointLoader.register_scheme(prefixes=CONVNEXT, force=True)
def load_from_convnext(source: str, map_location: Any = None) -> Checkpoint:
    """Load a file of facebookresearch's by its short name."""
    url, megabytes = find_published(source)
    licence = CC_BY_NC if 'convnextv2' in url else MIT
    named = f'{source} ({url}, {megabytes} MB)'
    with explained_failures(named), first_on_this_machine():
        # The names differ, so that the file may lie where torch.hub and facebookresearch's own code put it.
        content = read_checkpoint_from_url(url, map_location=map_location, file_name=url.rpartition('/')[2])
    return Checkpoint(content, named, licence)


@CheckpointLoader.register_scheme(prefixes='timm://', force=True)
def load_from_timm(source: str, map_location: Any = None) -> Checkpoint:
    """Load the pretrained weights of a model of timm's registry, from where timm would and into the same caches."""
    name = source.removeprefix('timm://')
    try:
        import timm
        from timm.models import get_pretrained_cfg
    except ImportError as error:
        raise UserError(f'{source} needs timm, which is not installed: pip install timm.') from error
    try:
        config = get_pretrained_cfg(name)
    except RuntimeError:  # no such model, or no such tag
        config = None
    if config is None or not (config.hf_hub_id or config.url):
        near = timm.list_pretrained(f'{name.split(".")[0]}*') or timm.list_pretrained('*convnext*')
        raise UserError(f'timm {timm.__version__} has no pretrained weights {name!r}. Known: {", ".join(near[:12])}.')
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition('@')
        content = read_from_hub(source, repository, revision or None, config.hf_hub_filename, map_location)
    else:
        with first_on_this_machine():
            content = read_checkpoint_from_url(config.url, map_location=map_location)
    return Checkpoint(content, source, config.license or '')


@CheckpointLoader.register_scheme(prefixes='hf://', force=True)
def load_from_hf(source: str, map_location: Any = None) -> Checkpoint:
    """Load a file of a Hugging Face repository: safetensors where there is one."""
    match = HUB_SOURCE.fullmatch(source)
    if not match:
        raise UserError(f'A Hub source is hf://ORG/REPO, hf://ORG/REPO@REV or hf://ORG/REPO/FILE; got {source!r}.')
    return Checkpoint(read_from_hub(source, map_location=map_location, **match.groupdict()), source)


def read_from_hub(source: str, repository: str, revision: str | None, file: str | None, map_location: Any) -> Any:
    """Return what a file of a Hugging Face repository holds: the named one, or the best of :data:`HUB_FILES`.

    Raises:
        UserError: There is no such file, it cannot be reached, or it is not safe to read.
    """
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise UserError(
            f'{source} needs huggingface_hub, which is not installed: pip install huggingface_hub.'
        ) from error
    is_reached, missing = True, None
    with first_on_this_machine(), explained_hub_errors(source, repository, revision):
        for name in [file] if file else HUB_FILES:
            try:
                path = hf_hub_download(repository, name, revision=revision, local_files_only=not is_reached)
            except errors.LocalEntryNotFoundError as error:  # after half a minute of waiting; the cache is left
                is_reached, missing = False, error
            except errors.EntryNotFoundError as error:
                missing = error
            else:
                warn_of_old_torch(path)
                return read_checkpoint(path, map_location, mmap=True)
    if not is_reached:
        raise UserError(
            f'{source} is not in the cache and the Hub cannot be reached. Download it where there is a network with '
            f'`hf download {repository}`, or give the path of a file.'
        ) from missing
    wanted = f'no file {file}' if file else f'none of {", ".join(HUB_FILES)}'
    raise UserError(f'The repository {repository} has {wanted}. Name its file: hf://{repository}/FILE.') from missing


@contextlib.contextmanager
def explained_hub_errors(source: str, repository: str, revision: str | None) -> Iterator[None]:
    """Turn what the Hub refuses into a :class:`UserError` that says what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    advice = {
        GatedRepoError: f'{source} is for those who accepted its licence. Accept it at '
        f'https://huggingface.co/{repository} and log in with `hf auth login`; or download the file there and give its '
        'path.',
        RepositoryNotFoundError: f'The Hub has no repository {repository}, or it is private. Correct the name, or log '
        'in with `hf auth login`.',
        RevisionNotFoundError: f'The repository {repository} has no branch, tag or commit {revision!r}. Correct it, or '
        'leave @REV out for the main branch.',
    }
    try:
        yield
    except tuple(advice) as error:  # the first is one of the second kind too
        raise UserError(next(text for kind, text in advice.items() if isinstance(error, kind))) from error


@contextlib.contextmanager
def explained_failures(source: str) -> Iterator[None]:
    """Turn the errors of a download into a :class:`UserError` that says what to do instead."""
    try:
        yield
    except UserError:
        raise
    except KeyError as error:  # of MMEngine's lists
        if '://' not in source:
            raise
        raise UserError(f'MMEngine knows no weights {source}. Correct the name, or give the path of a file.') from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # urllib's and huggingface_hub's are among them
        if '://' not in source:
            raise
        reason = getattr(error, 'reason', None) or str(error).strip().split('\n')[0] or type(error).__name__
        raise UserError(
            f'{source} cannot be fetched ({reason}). Download it elsewhere and give its path. For initial weights '
            'that is --cfg-options model.backbone.init_cfg.checkpoint=FILE; model.backbone.init_cfg=None starts from '
            'scratch.'
        ) from error

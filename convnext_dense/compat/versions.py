"""Which packages the stack consists of, in which versions it runs, and what is known not to work.

All of it comes from pip's metadata; no package is imported. The ranges are those of ``setup.py``; ``FORKS`` and
``UNSAID`` hold what no metadata says.
"""

from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from shlex import quote
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

OURS = 'convnext-dense'

# The forks with the same modules, and the versions with which the tests pass; setup.py cannot name alternatives
FORKS = {
    'onedl-mmengine': '>=0.10.12,<0.11',
    'onedl-mmcv': '>=2.3.6,<2.4',
    'onedl-mmdetection': '>=3.5.1,<3.6',
    'onedl-mmsegmentation': '>=1.4.2,<1.5',
}

# The modules of the stack, with the names under which pip may have installed them, the one in setup.py first
PACKAGES = {
    'torch': ('torch',),
    'torchvision': ('torchvision',),
    'numpy': ('numpy',),
    'mmengine': ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmcv': ('mmcv-lite', 'mmcv', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'pycocotools': ('pycocotools',),
    'ftfy': ('ftfy',),
    'regex': ('regex',),
    'timm': ('timm',),
    # not used here, but mmdet imports them where they are installed
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
    'transformers': ('transformers',),
}
MODULES = {name: module for module, names in PACKAGES.items() for name in names}
# The name under which pip installs a module
PIP_NAMES = {'cv2': 'opencv-python', 'PIL': 'pillow', 'yaml': 'pyyaml'} | {
    module: names[0] for module, names in PACKAGES.items()
}

# module -> name for pip -> version, usually one; {'': ''} where a module is on the path and pip does not know it
Installed = dict[str, dict[str, str]]


class Problem(NamedTuple):
    """What does not work, and what to do, each in one line."""

    what: str
    cure: str


# What a package needs although its metadata does not say so
UNSAID = {
    # both assert it when they are imported: https://github.com/open-mmlab/mmcv/issues/3096
    'mmdet<3.4': 'mmcv-lite<2.2',
    'mmsegmentation<1.3': 'mmcv-lite<2.2',
    # mmdet.models imports mmpretrain where it is installed, and that ends with a TypeError:
    # https://github.com/open-mmlab/mmpretrain/blob/v1.2.0/mmpretrain/models/multimodal/blip/language_model.py
    'mmpretrain<=1.2': 'transformers<4.56',
    # mmdet.models imports transformers where it is installed; without a PyTorch that fits, that ends with a NameError
    'transformers>=5.15': 'torch>=2.5',
    'transformers>=5.20': 'torch>=2.6',
    # these were compiled for NumPy 1: https://github.com/ppwwyyxx/cocoapi/releases
    'pycocotools<2.0.8': 'numpy<2',
}


def find_installed() -> Installed:
    """Return the modules of ``PACKAGES`` that are there."""
    found = {}
    for module, names in PACKAGES.items():
        versions = {name: version for name in names if (version := pip_version(name)) is not None}
        if versions or find_spec(module) is not None:
            found[module] = versions or {'': ''}
    return found


def pip_version(name: str) -> str | None:
    """Return a package's version, ``''`` where its metadata is damaged; None if pip does not know the package."""
    try:
        text = (metadata.metadata(name) or {}).get('Version') or ''
        Version(text)
    except metadata.PackageNotFoundError:
        return None
    except InvalidVersion:  # pip may have been stopped half-way
        return ''
    return text


def find_requirement(name: str) -> Requirement | None:
    """Return what ``FORKS`` or ``setup.py`` asks of a package; None if neither knows it.

    The other names of a module have the range of its first name.
    """
    if name in FORKS:
        return Requirement(name + FORKS[name])
    first = PIP_NAMES.get(MODULES.get(name), name)
    return next((each for each in requirements(OURS) if canonicalize_name(each.name) == first), None)


def requirements(name: str) -> Iterator[Requirement]:
    """Read what a package asks for; nothing where pip does not know it."""
    with suppress(metadata.PackageNotFoundError):
        for line in metadata.requires(name) or ():
            with suppress(InvalidRequirement):  # old packages have some
                yield Requirement(line)


def fits(asked: Requirement, version: str) -> bool:
    """Tell whether a version is asked for; a build from source, 2.14.0a0+git, counts as 2.14.0."""
    return any(asked.specifier.contains(each, prereleases=True) for each in (version, Version(version).base_version))


def is_meant(asked: Requirement, extra: str = '') -> bool:
    """Tell whether a requirement holds on this machine, with an extra of the package."""
    return asked.marker is None or asked.marker.evaluate({'extra': extra})


def install_command(module: str, installed: Installed) -> str:
    """Return how to get a version of a module that fits; torchvision has to fit the torch that stays.

    A fork stays that fork. What is there under any other name than that of ``setup.py`` has to go.
    """
    torch = installed.get('torch', {}).get('torch')
    if module == 'torchvision' and torch:
        return f'pip install torch=={Version(torch).public} torchvision'
    first = PIP_NAMES.get(module, module)
    there = next(filter(None, installed.get(module, ())), first)
    name = there if there in FORKS else first
    asked = find_requirement(name)
    return pip_command(there, name, asked.specifier if asked else '')


def pip_command(there: str, name: str, versions: SpecifierSet | str) -> str:
    """Return how to replace what is there by a package in these versions."""
    fitting = f'pip install {quote(f"{name}{versions}")}'
    return fitting if there == name else f'pip uninstall -y {there}; {fitting}'


def find_problems(installed: Installed) -> list[Problem]:
    """Return what the metadata alone shows not to work."""
    problems = []
    for module, versions in installed.items():
        if len(versions) > 1:
            what = f'{" and ".join(versions)} are both installed, and their files are mixed in the one module {module}'
            problems.append(Problem(what, f'pip uninstall -y {" ".join(versions)}, then install the one that you want'))
        for name in filter(versions.get, versions):
            if is_too_old(name, versions[name]):
                what = f'{name} {versions[name]} is too old for {OURS}, which takes {find_requirement(name).specifier}'
                problems.append(Problem(what, install_command(module, installed)))
            problems += find_unmet(name, module, installed)
    return problems


def is_too_old(name: str, version: str) -> bool:
    """Tell whether a version is below what a user needs; what the tests alone ask for is no user's."""
    asked = find_requirement(name)
    if asked is None or not is_meant(asked, extra='mm'):
        return False
    bounds = [str(bound) for bound in asked.specifier if bound.operator == '>=']
    return not fits(Requirement(name + ','.join(bounds)), version)


def find_unmet(name: str, module: str, installed: Installed) -> Iterator[Problem]:
    """Yield what a package needs of the others and misses; above all torchvision, of torch."""
    version = installed[module][name]
    for needed in filter(is_meant, (*requirements(name), *find_unsaid(name, version))):
        other = canonicalize_name(needed.name)
        for there, found in installed.get(MODULES.get(other), {}).items():
            if found and not fits(needed, found):
                what = f'{name} {version} needs {other}{needed.specifier}, and {there} {found} is installed'
                cure = pip_command(there, other, needed.specifier)
                yield Problem(what, install_command(module, installed) if module == 'torchvision' else cure)


def find_unsaid(name: str, version: str) -> list[Requirement]:
    """Return what ``UNSAID`` knows of a package."""
    rows = [(Requirement(who), Requirement(needed)) for who, needed in UNSAID.items()]
    return [needed for who, needed in rows if who.name == name and fits(who, version)]

"""Which packages the stack consists of, in which versions it runs, and what is known not to work.

All of it comes from pip's metadata; no package is imported. The ranges are those of ``setup.py``; ``FORKS`` and
``KNOWN_TO_FAIL`` hold what no metadata says.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

OURS = 'convnext-dense'
USERS_EXTRA = 'mm'  # of setup.py; the other extra is for the tests
# The names under which pip may have installed a module, the one in setup.py first
MMENGINE = ('mmengine', 'mmengine-lite', 'onedl-mmengine')
MMCV = ('mmcv-lite', 'mmcv', 'onedl-mmcv')
MMDET = ('mmdet', 'onedl-mmdetection')
MMSEG = ('mmsegmentation', 'onedl-mmsegmentation')

# The forks with the same modules, and the versions with which the tests pass; setup.py cannot name alternatives
FORKS = {
    'onedl-mmengine': '>=0.10.12,<0.11',
    'onedl-mmcv': '>=2.3.6,<2.4',
    'onedl-mmdetection': '>=3.5.1,<3.6',
    'onedl-mmsegmentation': '>=1.4.2,<1.5',
}


class Package(NamedTuple):
    """One module of the stack."""

    module: str
    names: tuple[str, ...]  # for pip
    needed_by: tuple[str, ...]  # modules that cannot be used without it; '' is convnext_dense itself
    used_for: str = ''  # what goes without it, where nothing needs it


PACKAGES = (
    Package('torch', ('torch',), ('',)),
    Package('torchvision', ('torchvision',), ('',)),
    Package('numpy', ('numpy',), ('',)),
    Package('mmengine', MMENGINE, ('',)),
    Package('mmcv', MMCV, ('mmdet', 'mmseg')),
    Package('mmdet', MMDET, (), 'detectors'),
    Package('mmseg', MMSEG, (), 'segmentors'),
    Package('pycocotools', ('pycocotools',), ('mmdet',)),
    Package('ftfy', ('ftfy',), ('mmseg',)),
    Package('regex', ('regex',), ('mmseg',)),
    Package('timm', ('timm',), (), 'weights by timm://NAME'),
    # not used here, but mmdet imports them where they are installed
    Package('mmpretrain', ('mmpretrain', 'onedl-mmpretrain'), ()),
    Package('transformers', ('transformers',), ()),
)
BY_NAME = {name: package for package in PACKAGES for name in package.names}

# module -> name for pip -> version, usually one; {'': ''} where a module is on the path and pip does not know it
Installed = dict[str, dict[str, str]]


class Problem(NamedTuple):
    """What does not work, what to do, each in one line, and the module that it concerns."""

    what: str
    cure: str
    module: str = ''


class Failing(NamedTuple):
    """Versions that were found not to work together."""

    versions: dict[str, str]  # module -> range; all of them hold
    why: str
    cure: str
    link: str


KNOWN_TO_FAIL = (
    Failing(
        {'mmdet': '<3.4', 'mmcv': '>=2.2'},
        why='mmdet asserts mmcv < 2.2 when it is imported',
        cure="pip uninstall -y mmcv mmcv-lite; pip install 'mmcv-lite>=2.1,<2.2'",
        link='https://github.com/open-mmlab/mmcv/issues/3096',
    ),
    Failing(
        {'mmseg': '<1.3', 'mmcv': '>=2.2'},
        why='mmseg asserts mmcv < 2.2 when it is imported',
        cure="pip uninstall -y mmcv mmcv-lite; pip install 'mmcv-lite>=2.1,<2.2'",
        link='https://github.com/open-mmlab/mmcv/issues/3096',
    ),
    Failing(
        {'mmpretrain': '<=1.2', 'transformers': '>=4.56'},
        why='mmdet.models imports mmpretrain where it is installed, and that ends with a TypeError',
        cure="pip uninstall -y mmpretrain, which nothing here needs; or pip install 'transformers<4.56'",
        link='https://github.com/open-mmlab/mmpretrain/blob/v1.2.0/mmpretrain/models/multimodal/blip/language_model.py',
    ),
    Failing(
        {'pycocotools': '<2.0.8', 'numpy': '>=2'},
        why='these pycocotools were compiled for NumPy 1',
        cure='pip install --upgrade pycocotools',
        link='https://github.com/ppwwyyxx/cocoapi/releases',
    ),
)


def find_installed() -> Installed:
    """Return the modules of ``PACKAGES`` that are there."""
    found = {package.module: _versions(package.names) for package in PACKAGES}
    for module, versions in found.items():
        if not versions and _is_there(module):
            versions[''] = ''
    return {module: versions for module, versions in found.items() if versions}


def judge(module: str, installed: Installed) -> str:
    """Return the verdict on an installed module: ``supported``, ``untested``, ``too old`` or ``does not work``."""
    if any(module in failing.versions for failing in _failing(installed)):
        return 'does not work'
    if any(_is_too_old(name, version) for name, version in installed[module].items()):
        return 'too old'
    known = all(_contains(supported_range(name), version) for name, version in installed[module].items())
    return 'supported' if known else 'untested'


def supported_range(name: str) -> str | None:
    """Return what ``setup.py`` or ``FORKS`` asks of a package, such as ``>=2.1,<2.2``; None if neither knows it.

    The other names of a module have the range of its first name.
    """
    if name in FORKS:
        return FORKS[name]
    return next((str(each.specifier) for each in _asked(name)), None)


def find_problems(installed: Installed) -> list[Problem]:
    """Return what the metadata alone shows not to work."""
    return [
        *_missing(installed),
        *_installed_twice(installed),
        *_too_old(installed),
        *(_describe(failing, installed) for failing in _failing(installed)),
        *_unmet_requirements(installed),
    ]


def install_command(module: str, installed: Installed) -> str:
    """Return how to get a version of the module that fits; torchvision has to fit the torch that stays.

    A fork stays that fork. What is there under any other name than that of ``setup.py`` has to go.
    """
    torch = installed.get('torch', {}).get('torch')
    if module == 'torchvision' and torch:
        return f'pip install torch=={Version(torch).public} torchvision'
    first = next(package.names[0] for package in PACKAGES if package.module == module)
    there = next(filter(None, installed.get(module, ())), first)
    name = there if there in FORKS else first
    fitting = f"pip install '{name}{supported_range(name) or ''}'"
    return fitting if there == name else f'pip uninstall -y {there}; {fitting}'


def _missing(installed: Installed) -> list[Problem]:
    return [
        Problem(_describe_gap(package, installed), install_command(package.module, installed), package.module)
        for package in PACKAGES
        if package.module not in installed and any(not each or each in installed for each in package.needed_by)
    ]


def _describe_gap(package: Package, installed: Installed) -> str:
    modules = ' and '.join(module for module in package.needed_by if module in installed)
    return f'{package.names[0]} is not installed' + (f', which {modules} cannot be imported without' if modules else '')


def _installed_twice(installed: Installed) -> list[Problem]:
    return [
        Problem(
            f'{" and ".join(versions)} are both installed, and their files are mixed in the one module {module}',
            f'pip uninstall -y {" ".join(versions)}, then pip install the one that you want',
            module,
        )
        for module, versions in installed.items()
        if len(versions) > 1
    ]


def _too_old(installed: Installed) -> list[Problem]:
    return [
        Problem(
            f'{name} {version} is too old for {OURS}, which takes {supported_range(name)}',
            install_command(module, installed),
            module,
        )
        for module, versions in installed.items()
        for name, version in versions.items()
        if _is_too_old(name, version)
    ]


def _is_too_old(name: str, version: str) -> bool:
    """Tell whether a version is below the range that ``setup.py`` or ``FORKS`` asks of a user.

    What the tests alone need is no user's: an older version of it is untested.
    """
    bounds = [bound for bound in SpecifierSet(supported_range(name) or '') if bound.operator == '>=']
    with contextlib.suppress(InvalidVersion):
        is_below = any(Version(Version(version).base_version) < Version(bound.version) for bound in bounds)
        return is_below and any(_applies(each, USERS_EXTRA) for each in _asked(name))
    return False


def _failing(installed: Installed) -> list[Failing]:
    def all_hold(ranges: dict[str, str]) -> bool:
        return all(
            any(version and _contains(versions, version) for version in installed.get(module, {}).values())
            for module, versions in ranges.items()
        )

    return [failing for failing in KNOWN_TO_FAIL if all_hold(failing.versions)]


def _describe(failing: Failing, installed: Installed) -> Problem:
    there = ' and '.join(
        f'{name} {version}' for module in failing.versions for name, version in installed[module].items()
    )
    return Problem(f'{there} do not work together: {failing.why}', failing.cure)


def _unmet_requirements(installed: Installed) -> Iterator[Problem]:
    """Compare what each package needs of the others, in its own words; above all torchvision, of torch."""
    for module, versions in installed.items():
        for name in filter(versions.get, versions):
            for needed in _requirements(metadata.requires(name)):
                other = canonicalize_name(needed.name)
                there = _installed_version(other, installed)
                if not there or not _applies(needed) or _contains(str(needed.specifier), there):
                    continue
                what = f'{name} {versions[name]} needs {other}{needed.specifier}, and {other} {there} is installed'
                fitting = f"pip install '{other}{needed.specifier}'"
                cure = install_command(module, installed) if module == 'torchvision' else fitting
                yield Problem(what, cure, module)


def _installed_version(name: str, installed: Installed) -> str | None:
    return installed.get(BY_NAME[name].module, {}).get(name) if name in BY_NAME else None


def _applies(requirement: Requirement, extra: str = '') -> bool:
    return requirement.marker is None or requirement.marker.evaluate({'extra': extra})


def _contains(versions: str | None, version: str) -> bool:
    """Tell whether a range has a version, for which a build from source, 2.14.0a0+git, counts as 2.14.0."""
    with contextlib.suppress(InvalidVersion):
        either = (version, Version(version).base_version)
        return versions is not None and any(SpecifierSet(versions).contains(each, prereleases=True) for each in either)
    return False


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            # where pip was stopped half-way there may be no metadata, or no version in it
            found[name] = (metadata.metadata(name) or {}).get('Version') or ''
    return found


def _is_there(module: str) -> bool:
    return sys.modules.get(module) is not None or find_spec(module) is not None


def _requirements(lines: Sequence[str] | None) -> Iterator[Requirement]:
    for line in lines or ():
        with contextlib.suppress(InvalidRequirement):  # old packages have some
            yield Requirement(line)


def _asked(name: str) -> list[Requirement]:
    """Return what ``setup.py`` asks of a package; under any name of its module, what it asks of the first."""
    first = BY_NAME[name].names[0] if name in BY_NAME else name
    return [each for each in _requirements(_our_requirements()) if canonicalize_name(each.name) == first]


def _our_requirements() -> list[str]:
    try:
        return metadata.requires(OURS) or []  # wherever setuptools put them: its old versions have a file of their own
    except metadata.PackageNotFoundError:  # the package is on the path alone
        return []

"""Package metadata: the one place for dependencies; the version stands in ``convnext_dense/__init__.py``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+?)'", (ROOT / 'convnext_dense/__init__.py').read_text())[1]

PYTHONS = ('3.10', '3.11', '3.12', '3.13')  # with which the tests are run; docs/versions.md

# The OpenMMLab libraries stand in an extra: a user's own (compiled) mmcv, mmdet or mmsegmentation is left alone.
OPENMMLAB = [
    'mmcv-lite>=2.1,<2.2',
    'mmdet>=3.3,<3.4',
    'mmsegmentation>=1.2.2,<1.3',
    'mmengine>=0.10.7',
    'pycocotools',
    'ftfy',
    'regex',
]
DEVELOPMENT = ['timm>=1.0.28', 'transformers>=5', 'pytest>=8', 'pytest-xdist', 'ruff', 'pre-commit']

setup(
    name='convnext-dense',
    version=VERSION,
    description='ConvNeXt backbones for detection and segmentation with MMDetection and MMSegmentation',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['convnext_dense', 'convnext_dense.*']),
    python_requires='>=3.10',
    classifiers=[f'Programming Language :: Python :: {version}' for version in PYTHONS],
    install_requires=[
        'torch>=2.4',
        'torchvision>=0.19',
        'mmengine>=0.10.7',
        'numpy>=1.26',
        'matplotlib',
        'packaging',
        'pillow',
        'safetensors',
        'tqdm',
    ],
    extras_require={'mm': OPENMMLAB, 'dev': DEVELOPMENT},
)

"""Package metadata: the one place for dependencies; the version stands in ``convnext_dense/__init__.py``."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

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
DOCUMENTATION = ['mkdocs-material', 'mkdocstrings[python]']
DATA = ['tifffile', 'imagehash']
EXPORT = ['onnx', 'onnxscript', 'onnxruntime', 'openvino']
PREDICT = ['supervision', 'rasterio', 'faster-coco-eval']  # pictures, windows of large TIFF files, AP
DEVELOPMENT = [
    'timm>=1.0.28', 'transformers>=5', 'pytest>=8', 'pytest-xdist', 'hypothesis', 'ruff', 'pre-commit', 'import-linter',
    'lvis', *DATA, *PREDICT, *EXPORT,
]  # fmt: skip


class BuildWithConfigs(build_py):
    """Copy configs, tools and the model index to ``convnext_dense/.mim``, where MMDetection has its own.

    The copy is made in a wheel only. Links in the source tree would do the same for a clone, which needs neither, but
    an archive or a checkout on Windows does not keep them. ``convnext_dense.configs.config_folder`` knows both places.
    """

    def run(self) -> None:
        """Build the package, then add the copies, unless the package stays where it is (an editable installation)."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, 'convnext_dense/.mim')
        shutil.rmtree(target, ignore_errors=True)
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(ROOT / 'model-index.yml', target)


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
    extras_require={
        'mm': OPENMMLAB,
        'data': DATA,
        'predict': PREDICT,
        'export': EXPORT,
        'dev': DEVELOPMENT,
        'docs': DOCUMENTATION,
    },
    entry_points={'console_scripts': ['convnext-dense=convnext_dense.cli:main']},
    cmdclass={'build_py': BuildWithConfigs},
)

"""Time the training data of a recipe in one process: images a second, stock and with each of our switches.

    make bench-data                                   # drawn photos of 640x480
    make bench-data ARGS='--config det/CONFIG --cfg-options train_dataloader.dataset.data_root=data/coco/'

All ways take turns. ``steps`` are the milliseconds of each step of a way.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.registry import DATASETS, TRANSFORMS

from convnext_dense.cli import Options
from convnext_dense.configs import load_config, model_scope
from convnext_dense.train.screen import quiet
from convnext_dense.train.stats import format_markdown
from convnext_dense.train.switches import apply_switches

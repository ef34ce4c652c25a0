"""An exported model, in the place of one with its checkpoint."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose

from convnext_dense import configs
from convnext_dense.compat import check_exists
from convnext_dense.compat.errors import UserError
from convnext_dense.predict.predictor import Predictor
from convnext_dense.results import LABEL_MAPS, Result
from convnext_dense.runtime import load


class ExportedModel(Predictor):
    """A model that ``export`` wrote, on the device ``'cpu'``, or by default a GPU where onnxruntime has one.

    Raises:
        UserError: It is no such file, or what runs it is missing.
    """

    def __init__(self, file: str | os.PathLike, device: str | None = None) -> None:
        check_exists(Path(file))
        try:
            self.exported = load(file, device=device)
        except ImportError as error:
            raise UserError(f"{error.name} runs {file}: pip install 'convnext-dense[export]'") from error
        except Exception as error:  # of whatever library, on a damaged file
            raise UserError(f'{file} is no model that convnext-dense export wrote ({error}).') from error
        meta = self.exported.meta
        self.kind = meta['kind']
        with configs.model_scope(Config(dict(default_scope=meta['scope']))):
            reader = Compose([meta['load']])
        super().__init__(meta['name'], os.fspath(file), meta['classes'], meta['palette'], reader.transforms[0])

    def predict(self, images: Sequence[np.ndarray]) -> list[Result]:
        """Predict images (H, W, channels), one after the other."""
        return [self.exported(image) for image in images]

    run = predict

    def result_of(self, result: Result) -> Result:
        """Return a result."""
        return result

    def check_tiling(self) -> None:
        """Raise a :class:`UserError` for a segmentor: it gives classes of pixels, and tiles are blended by scores."""
        if self.kind == LABEL_MAPS:
            raise UserError(
                f'{self.checkpoint} gives the classes of pixels without scores, by which tiles are blended. Leave out '
                '--tile, or give the checkpoint.'
            )

"""The command ``report``: a test whose outcome is a page."""

from __future__ import annotations

import os
from typing import Any

from convnext_dense.train.run import test


def report(config: str | os.PathLike, checkpoint: str, **options: Any) -> dict:
    """Evaluate a checkpoint as the config says, write ``report.html`` and ``report.json``, and return the metrics.

    Args:
        config: Config file of a detector or a segmentor.
        checkpoint: File with the weights of the whole model.
        **options: Of :func:`~convnext_dense.train.run.test`; ``against`` is another report, or the folder of one.

    Raises:
        UserError: A mistake of the user.
    """
    return test(config, checkpoint, report=True, **options)

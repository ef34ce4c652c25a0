"""Keep the config inside of a checkpoint from being run.

MMEngine saves a config as text, which is Python. Its inferencers run that text where they are given no config, and its
runners run an older entry of it to resume. In: their modules. Out: the same modules, which refuse to, unless the user
trusts the checkpoint by name.
"""

import functools
from types import ModuleType
from typing import Any

from .checkpoints import TRUST_ADVICE, checkpoints_are_trusted
from .errors import UserError

NOT_RUN = 'which is Python and can run any code on your machine; it is not run'


def ask_for_config(module: ModuleType) -> None:
    """Mend ``mmengine.infer.infer``: an inferencer takes no config out of a checkpoint."""
    upstream_init_model = module.BaseInferencer._init_model

    @functools.wraps(upstream_init_model)
    def init_model(self: Any, cfg: Any, weights: str | None, device: str = 'cpu') -> Any:
        if not cfg and not checkpoints_are_trusted():
            name = type(self).__name__
            raise UserError(
                f'{name} got no config, and would take the one inside of {weights}, {NOT_RUN}. Give the config too: '
                f"{name}(model=CONFIG, weights='{weights}'). {TRUST_ADVICE}"
            )
        return upstream_init_model(self, cfg, weights, device)

    module.BaseInferencer._init_model = init_model


def resume_without_config(module: ModuleType) -> None:
    """Mend ``mmengine.runner.runner`` and its flexible sibling, whose ``resume`` reads the config in a checkpoint."""
    module.mmengine = _MMEngineThatRunsNoText()


class _MMEngineThatRunsNoText:
    """The package ``mmengine`` as one module sees it: ``Config.fromstring`` refuses what is not trusted."""

    class Config:
        """Stands in for ``mmengine.Config``."""

        @staticmethod
        def fromstring(text: str, file_format: str) -> Any:
            """Return the config, as upstream does, where the user trusts it; otherwise raise a ``UserError``."""
            import mmengine

            if not checkpoints_are_trusted():
                raise UserError(
                    f"The checkpoint to resume holds a config as meta['config'], {NOT_RUN}. MMEngine's own checkpoints "
                    f'have no such entry. {TRUST_ADVICE}'
                )
            return mmengine.Config.fromstring(text, file_format)

    def __getattr__(self, name: str) -> Any:
        import mmengine

        return getattr(mmengine, name)

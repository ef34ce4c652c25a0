"""A module as one other module sees it, so that a patch changes what one caller gets and nobody else."""

from types import ModuleType
from typing import Any


class ModuleView:
    """Stands in for a module, or for another view of it: the given attributes replace the module's own."""

    def __init__(self, module: ModuleType, **replaced: Any) -> None:
        self.__dict__.update(replaced, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

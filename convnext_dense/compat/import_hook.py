"""Act on a module as soon as it is imported, so that patching a module does not mean importing it."""

import importlib.abc
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


def on_import(module_name: str, action: Action) -> None:
    """Run the action on a module now if it is loaded, and after each later execution of its code."""
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)
    FINDER.actions.setdefault(module_name, []).append(action)
    if module_name in sys.modules:
        action(sys.modules[module_name])


class ActingFinder(importlib.abc.MetaPathFinder):
    """Let the other finders find a module, and add the actions to the end of its execution."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of the other finders; None for modules without actions."""
        if fullname not in self.actions:
            return None
        specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            # Only this one loader object changes: its type stays, and inspect finds the source as before.
            spec.loader.exec_module = self._exec_and_act(spec.loader.exec_module, fullname)
        return spec

    def _exec_and_act(self, exec_module: Action, fullname: str) -> Action:
        def exec_and_act(module: ModuleType) -> None:
            exec_module(module)
            if module.__name__ == fullname:  # one loader may serve all modules of a zip archive
                for action in self.actions[fullname]:
                    action(module)

        return exec_and_act


FINDER = ActingFinder()

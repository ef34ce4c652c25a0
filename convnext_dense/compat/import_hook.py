"""Act on a module as soon as it is imported, so that patching a module does not mean importing it.

An action runs now if the module is loaded, and right after the module's own code whenever that is executed.
"""

import importlib.abc
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType

Action = Callable[[ModuleType], None]
Context = Callable[[], AbstractContextManager]


def on_import(module_name: str, action: Action, during: Context = nullcontext) -> None:
    """Run ``action`` on the module now if it is loaded, and after each later execution of its code.

    Args:
        module_name: Full name.
        action: Called with the module.
        during: Makes a context manager in which the module's code is executed.
    """
    _finder().actions.setdefault(module_name, []).append((action, during))
    if module_name in sys.modules:
        action(sys.modules[module_name])


class _ActingFinder(importlib.abc.MetaPathFinder):
    """Let the other finders find a module, and add the actions to the end of its execution."""

    def __init__(self) -> None:
        self.actions: dict[str, list[tuple[Action, Context]]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the other finders; None for modules without actions."""
        if fullname not in self.actions:
            return None
        spec = self._ask_others(fullname, path, target)
        if spec is not None and spec.loader is not None:
            # Only this one loader object changes: its type stays, and inspect finds the source as before.
            spec.loader.exec_module = self._exec_and_act(spec.loader.exec_module, fullname)
        return spec

    def _ask_others(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        return next((spec for spec in specs if spec is not None), None)

    def _exec_and_act(self, exec_module: Action, fullname: str) -> Action:
        def exec_and_act(module: ModuleType) -> None:
            if module.__name__ != fullname:  # one loader may serve all modules of a zip archive
                exec_module(module)
                return
            with ExitStack() as contexts:
                for _, during in self.actions[fullname]:
                    contexts.enter_context(during())
                exec_module(module)
            for action, _ in self.actions[fullname]:
                action(module)

        return exec_and_act


def _finder() -> _ActingFinder:
    for finder in sys.meta_path:
        if isinstance(finder, _ActingFinder):
            return finder
    finder = _ActingFinder()
    sys.meta_path.insert(0, finder)
    return finder

"""Read the config inside of a checkpoint as data.

MMEngine saves a config as text, which is Python, and runs that text when an inferencer gets no config and when a run
resumes from an older checkpoint. Here the text is parsed instead. Nothing in it is executed.
"""

import ast
import functools
from types import ModuleType, SimpleNamespace
from typing import Any

from .errors import UserError
from .module_view import ModuleView
from .unpickling import TRUST_ADVICE, checkpoints_are_trusted


def read_config(text: str, name: str = 'the checkpoint') -> dict:
    """Return the settings in a config as MMEngine saves it: assignments of literals and of ``dict(...)``.

    Raises:
        UserError: The text is not Python, or needs code to run, such as an import or a call; it names the checkpoint.

    >>> read_config("model = dict(type='ConvNeXt', depths=[3, -1], test_cfg=dict({'a-b': None}))")
    {'model': {'type': 'ConvNeXt', 'depths': [3, -1], 'test_cfg': {'a-b': None}}}
    """
    try:
        return dict(map(read_assignment, ast.parse(text).body))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0].partition(': <ast.')[0]
        raise UserError(
            f'The config inside of {name} is not read: {problem}. Only assignments of plain values and of dict(...) '
            "are, as in MMEngine's own checkpoints; anything else can run code on your machine. Give the config as a "
            f'file: DetInferencer(model=CONFIG, weights=CHECKPOINT). {TRUST_ADVICE}'
        ) from None


def read_assignment(statement: ast.stmt) -> tuple[str, Any]:
    """Return the name and the value of an assignment."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name != '_base_':
            return name, ast.literal_eval(Literals().visit(value))
    raise ValueError(f'line {statement.lineno} is {ast.unparse(statement)[:60]!r}')


class Literals(ast.NodeTransformer):
    """Write ``dict(...)``, ``inf`` and ``nan``, as MMEngine writes them, as nodes that ``ast.literal_eval`` takes."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """Write ``dict(a=1)`` and ``dict({'a': 1})`` as ``{'a': 1}``."""
        match node:
            case ast.Call(func=ast.Name(id='dict'), args=[], keywords=named) if all(each.arg for each in named):
                node = ast.Dict([ast.Constant(each.arg) for each in named], [each.value for each in named])
            case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as given], keywords=[]):
                node = given
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Write ``inf`` and ``nan`` as numbers."""
        return ast.Constant(float(node.id)) if node.id in ('inf', 'nan') else node


def infer_without_running_configs(module: ModuleType) -> None:
    """Mend ``mmengine.infer.infer``: an inferencer that gets no config reads the one in the checkpoint as data."""
    upstream_init_model = module.BaseInferencer._init_model

    @functools.wraps(upstream_init_model)
    def init_model(self: Any, cfg: Any, weights: str | None, device: str = 'cpu') -> Any:
        if not cfg and not checkpoints_are_trusted():
            text = find_config(module._load_checkpoint(weights, map_location='cpu'))
            settings = read_config(text, weights) if text else {}
            if not settings:  # with an empty one upstream would look for a config of its own
                name = type(self).__name__
                raise UserError(f'{weights} holds no config. Give it too: {name}(model=CONFIG, weights={weights!r}).')
            cfg.update(module.Config(settings)._cfg_dict)
        return upstream_init_model(self, cfg, weights, device)

    module.BaseInferencer._init_model = init_model


def find_config(checkpoint: dict) -> str | None:
    """Return the text of a checkpoint's config from the two places where MMEngine saves it; None if there is none."""
    for place in (('message_hub', 'runtime_info', 'cfg'), ('meta', 'cfg')):
        found: Any = checkpoint
        for key in place:
            found = found.get(key) if isinstance(found, dict) else None
        if found and isinstance(found, str):
            return found
    return None


def resume_without_running_configs(module: ModuleType) -> None:
    """Mend ``mmengine.runner.runner`` and its flexible sibling, whose ``resume`` looks for ``gpu_ids`` in a config."""
    mmengine = module.mmengine

    def fromstring(text: str, file_format: str) -> Any:
        if checkpoints_are_trusted():
            return mmengine.Config.fromstring(text, file_format)
        return mmengine.Config(read_config(text))

    module.mmengine = ModuleView(mmengine, Config=SimpleNamespace(fromstring=fromstring))

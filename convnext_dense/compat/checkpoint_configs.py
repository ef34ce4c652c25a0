"""Read the config inside of a checkpoint as data.

MMEngine saves a config as text, which is Python, and runs that text when an inferencer gets no config and when a run
resumes from an older checkpoint. Here the text is parsed instead. Nothing in it is executed.
"""

import ast
import functools
import math
from types import ModuleType, SimpleNamespace
from typing import Any

from .errors import UserError
from .module_view import ModuleView
from .unpickling import TRUST_ADVICE, checkpoints_are_trusted


def read_config(text: str, name: str = 'the checkpoint') -> dict:
    """Return the settings in a config as MMEngine saves it: assignments of literals and of ``dict(...)``.

    Args:
        text: The config.
        name: Of the checkpoint, for the message.

    Raises:
        UserError: The text is not Python, or needs code to run, such as an import or a call.

    >>> read_config("model = dict(type='ConvNeXt', depths=[3, -1], test_cfg=dict({'a-b': None}))")
    {'model': {'type': 'ConvNeXt', 'depths': [3, -1], 'test_cfg': {'a-b': None}}}
    """
    try:
        return dict(map(read_assignment, ast.parse(text).body))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f'The config inside of {name} is not read: {problem}. Only assignments of plain values and of dict(...) '
            "are, as in MMEngine's own checkpoints; anything else can run code on your machine. Give the config as a "
            f'file: DetInferencer(model=CONFIG, weights=CHECKPOINT). {TRUST_ADVICE}'
        ) from None


def read_assignment(statement: ast.stmt) -> tuple[str, Any]:
    """Return the name and the value of an assignment."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name != '_base_':
            return name, read_value(value)
    raise refusal(statement)


def read_value(node: ast.expr) -> Any:
    """Return a value as MMEngine writes it."""
    match node:
        case ast.List(elts=items):
            return [read_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(read_value(item) for item in items)
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return dict(zip(map(read_value, keys), map(read_value, values), strict=True))
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=named) if all(each.arg for each in named):
            return {each.arg: read_value(each.value) for each in named}
        case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as given], keywords=[]):
            return read_value(given)
    return read_literal(node)


def read_literal(node: ast.expr) -> Any:
    """Return the value of a literal, or of ``inf`` and ``nan``."""
    match node:
        case ast.Name(id='inf' | 'nan' as name):
            return float(name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id='inf')):
            return -math.inf
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise refusal(node) from None


def refusal(node: ast.stmt | ast.expr) -> ValueError:
    """Return the error for code that does more than name a value."""
    return ValueError(f'line {node.lineno} has {ast.unparse(node)[:60]!r}')


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
    messages = checkpoint.get('message_hub', {}).get('runtime_info', {})
    return messages.get('cfg') or checkpoint.get('meta', {}).get('cfg')


def resume_without_running_configs(module: ModuleType) -> None:
    """Mend ``mmengine.runner.runner`` and its flexible sibling, whose ``resume`` looks for ``gpu_ids`` in a config."""
    mmengine = module.mmengine

    def fromstring(text: str, file_format: str) -> Any:
        if checkpoints_are_trusted():
            return mmengine.Config.fromstring(text, file_format)
        return mmengine.Config(read_config(text))

    module.mmengine = ModuleView(mmengine, Config=SimpleNamespace(fromstring=fromstring))

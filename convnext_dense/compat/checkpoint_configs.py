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

NUMBERS = {'inf': math.inf, 'nan': math.nan}  # as MMEngine writes them


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
        return dict(_assigned(statement) for statement in ast.parse(text).body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f'The config inside of {name} is not read: {problem}. Only assignments of plain values and of dict(...) '
            "are, as in MMEngine's own checkpoints; anything else can run code on your machine. Give the config as a "
            f'file: DetInferencer(model=CONFIG, weights=CHECKPOINT). {TRUST_ADVICE}'
        ) from None


def _assigned(statement: ast.stmt) -> tuple[str, Any]:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name != '_base_':
            return name, _value(value)
    raise ValueError(f'line {statement.lineno} is {ast.unparse(statement)[:60]!r}')


def _value(node: ast.expr) -> Any:
    match node:
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return dict(zip(map(_value, keys), map(_value, values), strict=True))
        case ast.Call(func=ast.Name(id='dict'), args=[] | [ast.Dict()] as given, keywords=named):
            return {**(_value(given[0]) if given else {}), **dict(map(_named, named))}
        case ast.Name(id='inf' | 'nan' as name):
            return NUMBERS[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id='inf')):
            return -math.inf
    return _literal(node)


def _named(keyword: ast.keyword) -> tuple[str, Any]:
    if keyword.arg is None:
        raise ValueError(f'line {keyword.value.lineno} has **')
    return keyword.arg, _value(keyword.value)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f'line {node.lineno} has {ast.unparse(node)[:60]!r}') from None


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

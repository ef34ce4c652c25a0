"""Configs: how they are found and read, and how a config that changes another one is written."""

from convnext_dense.configs.files import (
    CLASS_AGNOSTIC,
    LIBRARIES,
    PACKAGE,
    SPLITS,
    TASKS,
    config_folder,
    dicts,
    find_config,
    load_config,
    model_scope,
    package_name,
    require_library,
    walk,
)
from convnext_dense.configs.text import Changes, Path, Source, apply, at, config_text, dotted, nest

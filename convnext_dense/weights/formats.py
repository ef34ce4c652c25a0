"""Foreign parameter names <-> ours: one literal table per format, read in either direction.

``{s}`` stands for a stage 0..3, ``{b}`` for a block and ``{i}`` for an entry of a Sequential. A row renames what its
left side begins with; what follows (``weight``, ``bias``) is kept.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A naming scheme: theirs -> ours.

    Attributes:
        name: What the report calls it.
        prefixes: What may stand before every key of the file; the one that occurs is taken off.
        rows: (their beginning, our beginning) of a key.
        left_out: Beginnings of keys (after the prefix) that a backbone does not have: classifier heads and the norm
            before them.
    """

    name: str
    prefixes: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...]

    def to_ours(self, key: str) -> str | None:
        """Return our name of a key without prefix; None where the table has no row for it."""
        return rename(key, self.rows)

    def to_theirs(self, key: str) -> str | None:
        """Return their name of our key; None where the table has no row for it."""
        return rename(key, tuple((ours, theirs) for theirs, ours in self.rows))


FB = Format(
    'facebookresearch ConvNeXt',
    prefixes=('', 'module.', 'backbone.'),
    rows=tuple((same, same) for same in ('downsample_layers.{s}.', 'stages.{s}.{b}.', 'norm{s}.')),
    left_out=('norm.', 'head.'),
)

TIMM = Format(
    'timm',
    prefixes=('', 'model.'),
    rows=(
        ('stem.{i}.', 'downsample_layers.0.{i}.'),
        ('stem_{i}.', 'downsample_layers.0.{i}.'),  # features_only models flatten the names
        ('stages.{s}.downsample.{i}.', 'downsample_layers.{s}.{i}.'),
        ('stages_{s}.downsample.{i}.', 'downsample_layers.{s}.{i}.'),
        *(
            (f'stages{dot}{{s}}.blocks.{{b}}.{theirs}', f'stages.{{s}}.{{b}}.{ours}')
            for dot in '._'
            for theirs, ours in (
                ('conv_dw.', 'dwconv.'),
                ('norm.', 'norm.'),
                ('mlp.fc1.', 'pwconv1.'),
                ('mlp.grn.weight', 'grn.gamma'),
                ('mlp.grn.bias', 'grn.beta'),
                ('mlp.fc2.', 'pwconv2.'),
                ('gamma', 'gamma'),
            )
        ),
    ),
    left_out=('head.', 'norm_pre.'),
)

FORMATS = (FB, TIMM)


def rename(key: str, rows: Iterable[tuple[str, str]]) -> str | None:
    """Return the key renamed by the first row that fits, or None.

    >>> rename('stem.0.weight', [('stem.{i}.', 'downsample_layers.0.{i}.')])
    'downsample_layers.0.0.weight'
    """
    for source, target in rows:
        pattern = re.sub(r'\\{(\w)\\}', r'(?P<\1>\\d+)', re.escape(source))
        match = re.match(pattern, key)
        if match:
            return target.format(**match.groupdict()) + key[match.end() :]
    return None


def detect_format(keys: Iterable[str]) -> tuple[Format, str] | None:
    """Return the format and the prefix under which it knows the most keys; None where none knows a stem.

    >>> detect_format(['backbone.downsample_layers.0.0.weight'])[0].name
    'facebookresearch ConvNeXt'
    """
    keys = list(keys)
    candidates = [
        (sum(key.startswith(prefix) and fmt.to_ours(key[len(prefix) :]) is not None for key in keys), fmt, prefix)
        for fmt in FORMATS
        for prefix in fmt.prefixes
    ]
    known, fmt, prefix = max(candidates, key=lambda candidate: candidate[0])
    return (fmt, prefix) if known else None


def to_backbone(state_dict: Mapping, fmt: Format, prefix: str) -> tuple[dict, list[str], list[str]]:
    """Rename a file's entries for the backbone.

    Returns:
        The entries under our names; the keys left out on purpose; the keys that no rule knows.
    """
    ours, left_out, unknown = {}, [], []
    for key, value in state_dict.items():
        bare = key.removeprefix(prefix)
        renamed = fmt.to_ours(bare) if key.startswith(prefix) else None
        if renamed is not None:
            ours[renamed] = value
        elif bare.startswith(fmt.left_out) or (prefix and not key.startswith(prefix)):
            left_out.append(key)
        else:
            unknown.append(key)
    return ours, left_out, unknown

"""The leaf configs go in, ``docs/model_zoo.md`` comes out: a row for each, and nothing that stands anywhere else.

Settings come from the resolved config, published figures from its header, parameters and GFLOPs from counting. Beside
it ``docs/model_stats.md`` splits the counts; ``python tools/model_stats.py --out docs/model_stats.md`` writes the same.
"""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from convnext_dense import configs
from convnext_dense.train.config_header import Header, read_header
from convnext_dense.train.model_tables import format_markdown, table_rows
from convnext_dense.train.stats import CONFIGS, ModelStats, count_config, leaf_configs

FOLDER = CONFIGS.parent / 'docs'
SECTIONS = {
    'det': 'Detection and instance segmentation on COCO',
    'seg': 'Semantic segmentation on ADE20K',
    'modern': "Modern heads: detectors on COCO, Mask2Former's segmentor on ADE20K",
    'drawn': 'Drawn data',
}
OF_THE_PAPERS = ('Cascade Mask R-CNN', 'Mask R-CNN', 'UperNet', 'Linear probe')  # of ConvNeXt, V2 and DINOv3
DECAYS = {'ConvNeXtLayerDecay': 'by layer', 'ConvNeXtStageDecay': 'by stage'}
ANY_WEIGHT = 'backbone.stages.0.0.pwconv1.weight'
HEAD = """# Model zoo

Made from the configs by `python tools/model_zoo.py`; `--check` tells whether it is up to date. Results on COCO and
ADE20K are those of the papers and repositories in the second column: **none of these rows was trained here**.
Parameters (millions) and GFLOPs (multiply-adds) are counted here, the published counts stand in brackets. A method's
rows are in order of parameters.
"""
COUNTING = """## How parameters and GFLOPs are counted

One image in inference, at the size in the table. A GFLOP is 10^9 multiply-adds of convolutions, linear layers and
matrix products, attention's among them. A two-stage detector counts its RPN on all maps, each box head on 1000 RoIs
and each mask head on 100, whatever the image; a segmentor counts without its auxiliary head, whose parameters count.
Counting runs on tensors without values. The heads of DINO and Mask2Former read sizes and offsets out of tensors, so
that their GFLOPs are unknown here (-).

The published figures come from MMDetection 2's and MMSegmentation 0's `get_flops.py`, where hooks look at modules of
known types:

| | published | here |
|---|---|---|
| convolutions, linear layers | yes | yes |
| attention's matrix products | yes in Swin's figures (Cascade Swin-T without them: 742 instead of 745) | yes |
| biases of convolutions, ReLU, pooling, batch norm, Swin's LayerNorm | yes: 0.2 to 1.4 GFLOPs | no |
| ConvNeXt's LayerNorm, GELU, GRN, layer scale, residual sums, interpolation, RoIAlign, NMS | no | no |
| auxiliary head of a segmentor | no (it would add 0.3 to 0.5 %) | no |
| box heads on 1000 RoIs, mask heads on 100, once for each stage of a cascade | yes | yes |

So the counts here stay within 0.2 % of the published ones. [model_stats.md](model_stats.md) splits them into backbone,
neck and heads, as `python tools/model_stats.py CONFIG` does for any config; with `--measure` it also runs the whole
test of an image, NMS and sliding windows included, for time and memory, with `--train` a training step of the images of
one GPU, and with `--amp` both in mixed precision.
"""


def write_pages() -> list[Path]:
    """Write both pages and return their files.

    Raises:
        UserError: A config or its header is wrong.
    """
    pages = describe_pages()
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages.items():
        file.write_text(text)
    return list(pages)


def outdated_pages() -> list[Path]:
    """Return the pages that do not say what the configs say."""
    return [file for file, text in describe_pages().items() if not file.is_file() or file.read_text() != text]


def describe_pages() -> dict[Path, str]:
    """Return the texts of both pages by their files."""
    counted = [count_config(file) for file in leaf_configs()]
    rows = [row for stats in counted for row in table_rows(stats)]
    return {FOLDER / 'model_zoo.md': describe_zoo(counted), FOLDER / 'model_stats.md': format_markdown(rows)}


def describe_zoo(counted: Sequence[ModelStats]) -> str:
    """Return the text of the page of models."""
    tables = {section: [] for section in SECTIONS}
    for stats in counted:
        header = read_header(stats.config)
        method = header.title.split(',')[0]
        row = describe_row(header, stats)
        tables[section_of(method, stats)].append(((method, stats.total.params, stats.config.stem), row))
    blocks = [HEAD]
    for section, keyed in tables.items():
        rows = [row for _, row in sorted(keyed, key=itemgetter(0))]
        if rows:
            blocks.append(f'## {SECTIONS[section]}\n\n{format_rows(rows)}')
    return '\n'.join([*blocks, COUNTING])


def section_of(method: str, stats: ModelStats) -> str:
    """Return the section of a config: that of drawn data, of other heads than the papers', or of its folder."""
    types = [str(node.get('type')) for node in configs.walk(stats.cfg.get('test_dataloader') or {})]
    if any(name.startswith('Shapes') for name in types):
        return 'drawn'
    return stats.config.parent.name if method in OF_THE_PAPERS else 'modern'


def describe_row(header: Header, stats: ModelStats) -> dict[str, str]:
    """Return the cells of a config's row by their column."""
    wrapper = stats.cfg.get('optim_wrapper') or {}
    drop_path = stats.cfg.model.backbone.get('drop_path_rate')
    name, macs = stats.config.stem, stats.total.macs
    return {
        'config': f'[{name}](../configs/{stats.config.parent.name}/{name}.py)',
        'model': header.title,
        'result': describe_result(header),
        'input': '{}x{}'.format(*stats.size),
        'params': with_published(f'{stats.total.params / 1e6:.1f}', header.params),
        'GFLOPs': with_published('-' if macs is None else f'{macs / 1e9:.1f}', header.gflops),
        'lr': short_rate(wrapper['optimizer']['lr']),
        'decay': describe_decay(wrapper),
        'drop path': '-' if drop_path is None else f'{drop_path:g}',
        'AMP': 'yes' if wrapper.get('type') == 'AmpOptimWrapper' else 'no',
        'command': f'`{header.command}`',
        'initial weights': describe_weights(header.weights),
        'licence': header.licence or '-',
        'note': header.note.removesuffix('.'),
    }


def describe_decay(wrapper: Mapping) -> str:
    """Return how the learning rates of a backbone differ from those of the heads.

    >>> describe_decay(dict(constructor='ConvNeXtLayerDecay', paramwise_cfg=dict(decay_rate=0.8)))
    '0.8 by layer'
    >>> describe_decay(dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))))
    '0.1 for all'
    """
    paramwise = wrapper.get('paramwise_cfg') or {}
    decay = DECAYS.get(wrapper.get('constructor'))
    if decay:
        rate = paramwise.get('decay_rate', 1.0)
    else:
        keys, decay = paramwise.get('custom_keys') or {}, 'for all'
        key = max((key for key in keys if key in ANY_WEIGHT), key=len, default=None)
        rate = keys[key].get('lr_mult', 1.0) if key else 1.0
    return f'{rate:g} {decay}' if rate != 1 else '-'


def describe_result(header: Header) -> str:
    """Return the figures of merit with where they come from."""
    measured = ', '.join(map(str, header.measured))
    published = ', '.join(str(metric) for metric in header.metrics if not metric.is_bound)
    if not measured:
        return f'{published} (published; not trained here)' if published else 'not published; not trained here'
    return f'{measured} (trained here)' + (f'; {published} (published)' if published else '')


def describe_weights(weights: str) -> str:
    """Return where training starts; a link shows the name of its file.

    >>> describe_weights('https://example.org/a/b.pth')
    '[b.pth](https://example.org/a/b.pth)'
    """
    if weights.startswith('https://'):
        return f'[{weights.rsplit("/", 1)[-1]}]({weights})'
    return f'`{weights}`' if weights else 'random'


def with_published(count: str, published: object) -> str:
    """Return a count with the published one in brackets, if there is one."""
    return count if published is None else f'{count} ({published})'


def short_rate(lr: float) -> str:
    """Return a learning rate in scientific notation without padding.

    >>> short_rate(0.00016)
    '1.6e-4'
    """
    mantissa, exponent = f'{lr:e}'.split('e')
    return f'{float(mantissa):g}e{int(exponent)}'


def format_rows(rows: Sequence[dict[str, str]]) -> str:
    """Return a Markdown table of rows with the same columns."""
    lines = [list(rows[0]), ['---'] * len(rows[0]), *(list(row.values()) for row in rows)]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)

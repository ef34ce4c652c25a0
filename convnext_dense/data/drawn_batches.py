"""A config goes in, drawings with what its model learns from or predicts come out."""

from collections.abc import Mapping, Sequence

from mmengine.config import Config

from convnext_dense import configs
from convnext_dense.data.samples import add_proposals, draw_batch, make_clips, split_into_branches

SIDE = 128  # pixels of the drawn images
LARGE_SIDE = 224  # where as many places as queries are needed


def draw_for(cfg: Config, indices: Sequence[int], training: bool, side: int | None = None) -> dict:
    """Return a batch for ``model.train_step`` or ``model.test_step``.

    Args:
        cfg: Of a detector or segmentor; its pipeline tells whether there are masks.
        indices: Of the drawings.
        training: What semi-supervised models learn from differs from what they predict.
        side: Height and width in pixels; small by default.
    """
    heads = list(configs.walk(cfg.model, configs.CLASS_AGNOSTIC))
    counts = [head[key] for key in ('num_things_classes', 'num_classes') for head in heads if head.get(key)]
    steps = list(configs.walk(cfg.get('train_dataloader')))
    batch = draw_batch(
        cfg.default_scope,
        indices,
        side or smallest_side(heads),
        num_classes=counts[0] if counts else None,
        seg_scale=next((step['scale_factor'] for step in steps if step.get('type') == 'SegRescale'), 1.0),
    )
    if not any(step.get('with_mask') or step.get('type') == 'LoadPanopticAnnotations' for step in steps):
        for sample in batch['data_samples']:
            if 'gt_instances' in sample:
                del sample.gt_instances.masks
    if 'roi_head' in cfg.model and 'rpn_head' not in cfg.model:
        batch = add_proposals(batch)
    preprocessor = (cfg.model.get('data_preprocessor') or {}).get('type')
    if preprocessor == 'MultiBranchDataPreprocessor' and training:
        return split_into_branches(batch)
    return make_clips(batch) if preprocessor == 'TrackDataPreprocessor' else batch


def smallest_side(heads: Sequence[Mapping]) -> int:
    """Return the side of a small drawing in pixels, which is larger where a head needs so many places or that size."""
    sizes = [head['input_size'] for head in heads if isinstance(head.get('input_size'), int)]
    return max([SIDE, *sizes, *(LARGE_SIDE for head in heads if 'num_queries' in head)])

"""Masks of objects, pasted into images by two products."""

from collections.abc import Iterator

import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import BYTES_PER_FLOAT, GPU_MEM_LIMIT, FCNMaskHead
from torch import Tensor


class ProductMaskHead(FCNMaskHead):
    """MMDetection's mask head, which enlarges masks by a product with the weights of the rows and one of the columns.

    Bilinear interpolation to an upright box is linear in each direction alone, so that both orders agree.
    """

    def _predict_by_feat_single(
        self,
        mask_preds: Tensor,
        bboxes: Tensor,
        labels: Tensor,
        img_meta: dict,
        rcnn_test_cfg: dict,
        rescale: bool = False,
        activate_map: bool = False,
    ) -> Tensor:
        """Return masks (N, height, width) of an image, given those of its boxes (N, 4); boxes are rescaled in place."""
        scale_factor = bboxes.new_tensor(img_meta['scale_factor']).repeat(1, 2)
        height, width = img_meta['ori_shape'][:2]
        if rescale:
            bboxes /= scale_factor
        else:
            height, width = round(height * scale_factor[0, 1].item()), round(width * scale_factor[0, 0].item())
        masks = mask_preds if activate_map else mask_preds.sigmoid()  # TTA and cascades average before
        chosen = 0 if self.class_agnostic else labels
        masks = masks[torch.arange(len(masks), device=masks.device), chosen].float()
        threshold = rcnn_test_cfg.mask_thr_binary
        image = masks.new_zeros(len(masks), height, width, dtype=torch.bool if threshold >= 0 else torch.uint8)
        with torch.autocast(masks.device.type, enabled=False):
            rows = weights(bboxes[:, 1::2], height, masks.shape[1])
            wide = masks @ weights(bboxes[:, 0::2], width, masks.shape[2]).mT
            for some, ys, xs in pieces(bboxes, height, width):
                pasted = rows[some, ys] @ wide[some, :, xs]
                image[some, ys, xs] = pasted >= threshold if threshold >= 0 else pasted * 255
        return image


def weights(sides: Tensor, size: int, count: int) -> Tensor:
    """Return how much each of ``count`` pixels of a mask adds to each of ``size`` pixels of an image: (N, size, count).

    Pixels of the image more than one away from the box get nothing. A box without a width has the middle of its mask on
    either side, as in MMDetection.

    Args:
        sides: Low and high side of the boxes (N, 2).
        size: Pixels of the image in this direction.
        count: Pixels of the mask in this direction.
    """
    low, high = sides.float()[:, None].unbind(-1)
    centers = torch.arange(size, device=sides.device) + 0.5
    places = ((centers - low) / (high - low)).masked_fill(high == low, 0.5) * count - 0.5
    is_near = (centers > low.floor() - 1) & (centers < high.ceil() + 1)
    distances = (places[..., None] - torch.arange(count, device=sides.device)).abs()
    return (1 - distances).clamp(min=0) * is_near[..., None]


def pieces(boxes: Tensor, height: int, width: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield which masks to paste at once, and the rows and columns: the box of each on the CPU, many on a GPU."""
    if boxes.is_cpu:
        corners = torch.cat([boxes[:, :2].floor() - 1, boxes[:, 2:].ceil() + 1], dim=1).clamp(min=0).long()
        for i, (x1, y1, x2, y2) in enumerate(corners.tolist()):
            yield slice(i, i + 1), slice(y1, y2), slice(x1, x2)
    else:
        some = max(1, GPU_MEM_LIMIT // (height * width * BYTES_PER_FLOAT))
        for i in range(0, len(boxes), some):
            yield slice(i, i + some), slice(None), slice(None)

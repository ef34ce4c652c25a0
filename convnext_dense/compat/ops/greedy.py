"""Greedy suppression: take the best box that is left, drop what it hits, repeat; many boxes at a time.

In: how many boxes there are, best first, and which of them hit which. Out: who suppresses whom.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .arguments import numbers_at_once

BLOCK = 256


def find_owners(count: int, hits: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> Tensor:
    """Return for each box the one that suppresses it, itself if it is kept ``(N,)``.

    Boxes are taken in blocks. Inside of a block all pairs are known, and who is kept follows from a few passes over
    them; the kept ones then hit all boxes that are still waiting.

    Args:
        count: ``N``.
        hits: Given indices ``(R,)`` and ``(C,)``, says ``(R, C)`` whether the first would suppress the second.
        device: Where the indices are.

    >>> find_owners(4, lambda rows, columns: (columns[None] - rows[:, None]).abs() == 1, torch.device('cpu'))
    tensor([0, 0, 2, 2])
    """
    owners = torch.arange(count, device=device)
    waiting = owners.clone()
    while len(waiting):
        block, waiting = waiting[:BLOCK], waiting[BLOCK:]
        inner = hits(block, block).triu(1)
        kept = _first_of_chains(inner)
        leaders = block[kept]
        owners[block] = torch.where(kept, block, leaders[_first_true(inner[kept])])
        parts = []
        for columns in waiting.split(max(1, numbers_at_once(device) // len(leaders))):
            hit = hits(leaders, columns)
            taken = hit.any(dim=0)
            owners[columns[taken]] = leaders[_first_true(hit[:, taken])]
            parts.append(columns[~taken])
        waiting = torch.cat(parts)
    return owners


def _first_of_chains(hits: Tensor) -> Tensor:
    """Return which boxes are kept ``(N,)``, given hits ``(N, N)`` of later boxes by earlier ones.

    Once the first ``n`` are right, the next pass makes the next one right, and it ends when nothing changes.
    """
    kept = torch.ones(len(hits), dtype=torch.bool, device=hits.device)
    while True:
        again = ~hits[kept].any(dim=0)
        if torch.equal(again, kept):
            return kept
        kept = again


def _first_true(flags: Tensor) -> Tensor:
    return flags.byte().argmax(dim=0)

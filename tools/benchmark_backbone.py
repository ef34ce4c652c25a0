"""Time the backbone beside timm's (and mmpretrain's, where installed) with the same weights, in one run.

Forward and forward+backward, in fp32 and bf16 autocast; the contestants take turns, and the medians and their ratios
are printed. Outputs and gradients are compared first.
"""

import argparse
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from convnext_dense import ConvNeXt
from convnext_dense.weights import load_weights
from convnext_dense.weights.formats import MMPRETRAIN

MODES = ('forward', 'forward+backward')
PRECISIONS = ('fp32', 'bf16')


def parse_args() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='tiny', help='size of the models')
    parser.add_argument('--v2', action='store_true', help='ConvNeXt V2 blocks')
    parser.add_argument(
        '--size', type=int, nargs='+', default=[512], metavar='PX', help='height and width of the image'
    )
    parser.add_argument('--batch', type=int, default=1, help='images in a batch')
    parser.add_argument('--rounds', type=int, default=15, help='counted turns of each contestant')
    parser.add_argument('--warmup', type=int, default=3, help='turns that do not count')
    parser.add_argument('--threads', type=int, help='CPU threads (default: all)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args()


def build_contestants(arch: str, v2: bool) -> dict[str, nn.Module]:
    """Return name -> model that maps an image to four plain stage outputs; all share one set of weights."""
    import timm

    theirs = timm.create_model(f'convnext{"v2" if v2 else ""}_{arch}', features_only=True)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 1.0, 0.1) if parameter.ndim == 1 else nn.init.normal_(parameter, 0.0, 0.02)
    ours = ConvNeXt(arch, grn=v2, out_norm=False)
    load_weights(ours, theirs.state_dict())
    contestants = {'convnext_dense': ours, 'timm': theirs}
    if importlib.util.find_spec('mmpretrain'):
        contestants['mmpretrain'] = build_mmpretrain(arch, v2, ours)
    return contestants


def build_mmpretrain(arch: str, v2: bool, ours: nn.Module) -> nn.Module:
    """Return mmpretrain's backbone with our weights."""
    from mmpretrain.models import ConvNeXt as MMPretrainConvNeXt

    theirs = MMPretrainConvNeXt(
        arch,
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
        use_grn=v2,
        layer_scale_init_value=0.0 if v2 else 1.0,
    )
    for i in range(4):
        setattr(theirs, f'norm{i}', nn.Identity())
    theirs.load_state_dict(dict(MMPRETRAIN.write(key, value) for key, value in ours.state_dict().items()))
    return theirs


def step(model: nn.Module, image: torch.Tensor, mode: str, precision: str) -> list[torch.Tensor]:
    """Run one turn; return the maps of a forward pass, or the parameters' gradients."""
    is_training = mode != 'forward'
    with (
        torch.set_grad_enabled(is_training),
        torch.autocast(image.device.type, torch.bfloat16, enabled=precision == 'bf16'),
    ):
        maps = model(image)
        if not is_training:
            return list(maps)
        loss = sum(m.float().square().mean() for m in maps)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def timed(call: Callable[[], object], device: str) -> float:
    """Return the seconds that a call takes."""
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def check_equal(contestants: dict[str, nn.Module], image: torch.Tensor) -> None:
    """Stop unless maps and gradient norms agree in fp32."""
    reference = contestants['timm']
    for name, model in contestants.items():
        for mode in MODES:
            ours, theirs = (step(m, image, mode, 'fp32') for m in (model, reference))
            sizes = [sorted(float(t.norm()) for t in tensors) for tensors in (ours, theirs)]
            error = max(abs(a - b) / (b + 1e-12) for a, b in zip(*sizes, strict=True))
            if error > 1e-3:
                raise SystemExit(f'error: {name} does not compute what timm computes: {mode} differs by {error:.1e}')


def main() -> None:
    """Compare, time and print."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    height, width = (args.size * 2)[:2]
    image = torch.randn(args.batch, 3, height, width, device=args.device)
    contestants = {name: model.to(args.device) for name, model in build_contestants(args.arch, args.v2).items()}
    check_equal(contestants, image)
    print(
        f'ConvNeXt{" V2" if args.v2 else ""} {args.arch}, {args.batch} x 3 x {height} x {width}, {args.device}, '
        f'{torch.get_num_threads()} threads, torch {torch.__version__}, median of {args.rounds}'
    )
    print(f'{"":5} {"":17}' + ''.join(f'{name:>16}' for name in contestants) + f'{"timm / ours":>13}')
    for precision in PRECISIONS:
        for mode in MODES:
            seconds = {name: [] for name in contestants}
            for _ in range(args.warmup + args.rounds):
                for name, model in contestants.items():
                    gc.collect()
                    seconds[name].append(timed(partial(step, model, image, mode, precision), args.device))
            medians = {name: statistics.median(values[args.warmup :]) for name, values in seconds.items()}
            row = ''.join(f'{1000 * median:13.1f} ms' for median in medians.values())
            print(f'{precision:5} {mode:17}{row}{medians["timm"] / medians["convnext_dense"]:13.2f}', flush=True)


if __name__ == '__main__':
    main()

"""Count parameters and GFLOPs of configs: ``python tools/model_stats.py --help``; the same as ``convnext-dense stats``."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('stats')

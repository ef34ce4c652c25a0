"""Train a detector or a segmentor: ``python tools/train.py --help``; the same as ``convnext-dense train``."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('train')

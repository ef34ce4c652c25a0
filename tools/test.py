"""Evaluate a detector or a segmentor: ``python tools/test.py --help``; the same as ``convnext-dense test``."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('test')

"""Write a checkpoint under other names: ``python tools/convert_checkpoint.py --help``; the same as ``convnext-dense convert``."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('convert')

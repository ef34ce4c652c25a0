"""Say what a checkpoint file is: ``python tools/inspect_checkpoint.py --help``; the same as ``convnext-dense inspect``."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('inspect')

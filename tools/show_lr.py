"""Print the rates of a config's parameter groups: ``python tools/show_lr.py --help``; the same as ``convnext-dense show-lr``."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('show-lr')

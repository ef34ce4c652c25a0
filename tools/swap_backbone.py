"""Write a config with a ConvNeXt for its backbone: ``python tools/swap_backbone.py --help``; the same as ``convnext-dense swap``."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('swap')

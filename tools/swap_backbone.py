"""The command ``convnext-dense swap``: write a config with a ConvNeXt for its backbone."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('swap')

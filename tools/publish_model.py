"""The command ``convnext-dense publish``: write trained weights for others."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('publish')

"""The command ``convnext-dense show-lr``: print the rates of a config."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('show-lr')

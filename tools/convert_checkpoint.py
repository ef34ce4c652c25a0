"""The command ``convnext-dense convert``: write a checkpoint under the names of another library."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('convert')

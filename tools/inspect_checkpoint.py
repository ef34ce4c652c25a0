"""The command ``convnext-dense inspect``: say what a checkpoint file is."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('inspect')

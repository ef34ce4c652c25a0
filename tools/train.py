"""The command ``convnext-dense train``: train a detector or a segmentor."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('train')

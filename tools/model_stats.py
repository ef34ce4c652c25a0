"""The command ``convnext-dense stats``: count parameters and GFLOPs of configs."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('stats')

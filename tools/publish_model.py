"""Write trained weights for others: ``python tools/publish_model.py --help``; the same as ``convnext-dense publish``."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('publish')

"""The command ``convnext-dense ladder``: the steps from ResNet-50 to ConvNeXt as a table and a picture."""

from convnext_dense.cli import main

if __name__ == '__main__':
    main('ladder')

"""Write a checkpoint under the names of another library: ``python tools/convert_checkpoint.py IN OUT --to timm``."""

import argparse

from convnext_dense.cli import add_trust_option, call
from convnext_dense.weights.conversion import convert
from convnext_dense.weights.formats import TARGETS

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', metavar='IN', help='checkpoint file, address, or convnext://, timm:// or hf:// name')
    parser.add_argument('out', metavar='OUT', help='file to write: .safetensors or .pth')
    parser.add_argument('--to', required=True, choices=[*TARGETS], help='whose names')
    parser.add_argument('--backbone-only', action='store_true', help='leave out everything but the backbone')
    parser.add_argument('--prefix', help='the backbone alone, and which one of several: what stands before its keys')
    parser.add_argument('--force', action='store_true', help='replace OUT where it exists')
    add_trust_option(parser)
    print(call(convert, parser))

"""Say what a checkpoint file is, without a config: ``python tools/inspect_checkpoint.py FILE``."""

import argparse

from convnext_dense.cli import add_trust_option, call
from convnext_dense.weights.inspection import describe

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'source', metavar='FILE', help='checkpoint file, address, or convnext://, timm:// or hf:// name'
    )
    parser.add_argument('--keys', action='store_true', help='list the names and shapes of all tensors too')
    parser.add_argument('--json', action='store_true', dest='as_json', help='print everything as JSON')
    add_trust_option(parser)
    print(call(describe, parser))

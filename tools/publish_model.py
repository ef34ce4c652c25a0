"""Write trained weights for others, with config and card: ``python tools/publish_model.py CHECKPOINT OUT``."""

import argparse

from convnext_dense.cli import Options, add_trust_option, call
from convnext_dense.weights.publishing import FORMATS, publish

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint file of a training')
    parser.add_argument(
        'out', metavar='OUT', help='folder (ends in /), or folder and name; a hash is added to the name'
    )
    parser.add_argument('--config', help='config file, where the checkpoint does not hold the config')
    parser.add_argument(
        '--format', dest='file_format', choices=FORMATS, default=FORMATS[0], help='default: %(default)s'
    )
    parser.add_argument('--half', action='store_true', help='store matrices and kernels in float16')
    parser.add_argument('--metrics', nargs='+', action=Options, metavar='NAME=NUMBER', help='what the card shall say')
    parser.add_argument('--force', action='store_true', help='replace a card or a config that was edited')
    add_trust_option(parser)
    print(call(publish, parser))

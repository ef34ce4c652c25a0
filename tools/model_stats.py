"""Print parameters, GFLOPs and activations of configs beside the published figures; with --measure, time and memory."""

import argparse

from convnext_dense.cli import user_errors
from convnext_dense.compat.errors import UserError
from convnext_dense.train.stats import describe_models

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help="config files (default: all of this package's)")
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('W', 'H'),
        help='image in pixels (default: that of the published count, or of the test)',
    )
    parser.add_argument('--measure', action='store_true', help='run one image for time and peak memory, on CUDA or CPU')
    parser.add_argument(
        '--train',
        action='store_true',
        help='take a training step likewise, with as many images as a GPU gets, of the size to which the model crops '
        'or else of as many pixels as --size',
    )
    parser.add_argument('--amp', action='store_true', help='--measure and --train in mixed precision')
    parser.add_argument('--out', metavar='FILE', help='write the table to a .md, .csv or .json file too')
    with user_errors():
        table, failures = describe_models(**vars(parser.parse_args()))
        print(table)
        if failures:
            raise UserError('\n'.join(failures))

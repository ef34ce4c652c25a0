"""Train a detector or a segmentor: ``python tools/train.py CONFIG``."""

from convnext_dense.cli import add_run_options, add_trust_option, call, config_parser
from convnext_dense.train.run import train

if __name__ == '__main__':
    parser = config_parser(__doc__)
    add_run_options(parser)
    add_trust_option(parser)
    parser.add_argument('--amp', action='store_true', help='mixed precision, where the config does not ask for it')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='continue from the latest checkpoint of the work dir, or from CKPT',
    )
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the lr with the batch size')
    call(train, parser)

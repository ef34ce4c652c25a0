"""Evaluate a detector or a segmentor: ``python tools/test.py CONFIG CHECKPOINT``."""

from convnext_dense.cli import add_run_options, add_trust_option, call, config_parser
from convnext_dense.train.run import test

if __name__ == '__main__':
    parser = config_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file of the whole model')
    add_run_options(parser)
    add_trust_option(parser)
    parser.add_argument('--out', help='write predictions: a .pkl file for detectors, a folder for segmentors')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='save pictures of the predictions in this folder, below that of the log')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds for which a window stays')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    call(test, parser)

"""Write a config that inherits another one of MMDetection or MMSegmentation, with a ConvNeXt for its backbone."""

import argparse

from convnext_dense.cli import call
from convnext_dense.swap import write_swap

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config file, or mmdet::FOLDER/NAME.py or mmseg::FOLDER/NAME.py')
    parser.add_argument('--arch', default='t', help='size: t, s, b, l, xl, h, or atto, femto, pico, nano (default: t)')
    parser.add_argument('--v2', action='store_true', help='ConvNeXt V2')
    parser.add_argument('--in22k', action='store_true', help='start from ImageNet-22k weights')
    parser.add_argument('--weights', help="initial weights instead of the published ones; '' for none")
    parser.add_argument('-o', '--out', help='file to write (default: print the config)')
    parser.add_argument('--no-proof', dest='proof', action='store_false', help='write it without trying it')
    call(write_swap, parser)

"""Print the learning rate and weight decay of every parameter group of a config, without data or training."""

import argparse

from mmengine.config import DictAction

from convnext_dense.runs import describe_rates, user_errors


def parse_args() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override the config')
    return parser.parse_args()


if __name__ == '__main__':
    with user_errors():
        print(describe_rates(**vars(parse_args())))

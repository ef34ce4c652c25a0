"""Print the learning rate and weight decay of every parameter group of a config, without data or training."""

from convnext_dense.cli import config_parser, user_errors
from convnext_dense.train.run import describe_rates

if __name__ == '__main__':
    with user_errors():
        print(describe_rates(**vars(config_parser(__doc__).parse_args())))

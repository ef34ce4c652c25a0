"""Write docs/model_zoo.md from the configs; with --check only tell whether it is up to date."""

import argparse
import sys

from convnext_dense.command_line import user_errors
from convnext_dense.model_zoo import FILE, is_current, write_zoo

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 where the page is out of date')
    with user_errors():
        if not parser.parse_args().check:
            print(f'written: {write_zoo()}')
        elif not is_current():
            sys.exit(f'{FILE} is out of date: run python tools/model_zoo.py')

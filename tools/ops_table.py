"""Write docs/ops.md from the table of the ops; with --check only tell whether it is up to date."""

import argparse
import sys

from convnext_dense.compat.ops.coverage import FILE, is_current, write_page

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 where the page is out of date')
    if not parser.parse_args().check:
        print(f'written: {write_page()}')
    elif not is_current():
        sys.exit(f'{FILE} is out of date: run python tools/ops_table.py')

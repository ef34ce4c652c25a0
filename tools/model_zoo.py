"""Write docs/model_zoo.md and docs/model_stats.md from the configs; with --check only tell whether they are current."""

import argparse
import sys

from convnext_dense.cli import user_errors
from convnext_dense.train.model_zoo import outdated_pages, write_pages

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 where a page is out of date')
    with user_errors():
        if not parser.parse_args().check:
            print('\n'.join(f'written: {file}' for file in write_pages()))
        elif files := outdated_pages():
            sys.exit(f'out of date: {", ".join(map(str, files))}. Run python tools/model_zoo.py')

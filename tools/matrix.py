"""Run the tests in each environment of the matrix and write the outcome to docs/versions.md."""

import argparse
import sys
from pathlib import Path

from convnext_dense.compat.matrix import ENVIRONMENTS, FOLDER, run_matrix

if __name__ == '__main__':
    names = [environment.name for environment in ENVIRONMENTS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', choices=[*names, []], metavar='NAME', help=f'default: {" ".join(names)}')
    parser.add_argument('--folder', type=Path, default=FOLDER, help='for virtual environments and logs')
    parser.add_argument('--keep', action='store_true', help='keep the virtual environments, several GB each')
    parser.add_argument('--pytest', nargs=argparse.REMAINDER, default=[], help='all that follows is for pytest')
    options = parser.parse_args()
    sys.exit(not run_matrix(options.names or names, options.folder.resolve(), options.keep, options.pytest))

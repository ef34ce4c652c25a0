"""Write docs/pipelines.md from the table of pipelines; or check it, try its rows, or look at all configs."""

import argparse
import sys

from convnext_dense.cli import user_errors
from convnext_dense.swap import pipelines, pipelines_page
from convnext_dense.swap.survey import survey

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--check', action='store_true', help='write nothing; exit with 1 where the page is out of date')
    group.add_argument('--run', nargs='*', metavar='CONFIG', help='try these rows, or all (minutes)')
    group.add_argument('--survey', action='store_true', help='compute the changes of all configs (minutes)')
    options = parser.parse_args()
    if options.survey:
        print(survey())
    elif options.run is not None:
        with user_errors():
            sys.exit(not pipelines.check_table(options.run))
    elif not options.check:
        print(f'written: {pipelines_page.write_page()}')
    elif not pipelines_page.is_current():
        sys.exit(f'{pipelines_page.FILE} is out of date: run python tools/pipelines_table.py')

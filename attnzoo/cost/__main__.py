"""`python -m attnzoo.cost SWEEP_DIR`: measures the variants of a sweep and writes its costs.json."""

import argparse
import sys

from attnzoo.cost import cli
from attnzoo.run import report_errors

if __name__ == "__main__":
    arguments = cli.add_arguments(argparse.ArgumentParser("python -m attnzoo.cost")).parse_args()
    sys.exit(report_errors(lambda: cli.main(arguments)))

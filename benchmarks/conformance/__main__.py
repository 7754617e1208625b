"""``python -m benchmarks.conformance``: run and write the page; with ``page``, the page alone, from the results."""

from __future__ import annotations

import argparse

import torch

from benchmarks.conformance.page import write_page
from benchmarks.conformance.results import run, write


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "page"), default="run")
    command = parser.parse_args().command
    torch.set_num_threads(1)
    if command == "run":
        write(run())
    write_page()


if __name__ == "__main__":
    main()

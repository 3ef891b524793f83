"""`fedshare doctor`: what stands in the way of a deployment, a line each."""

import argparse


def examine(options: argparse.Namespace) -> int:
    raise NotImplementedError

"""`python train.py CONFIG [--field value ...]`: what `pefx train` does."""

import sys

from pefx.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

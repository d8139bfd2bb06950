"""`python serve.py CONFIG --requests IN.jsonl --out OUT.jsonl [--field value ...]`: what `pefx serve` does."""

import sys

from pefx.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))

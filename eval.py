"""Evaluate: `python eval.py {perplexity,sample,compare} ...`."""

import sys

from harmonic_gpt.__main__ import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])

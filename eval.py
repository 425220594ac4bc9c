"""Evaluate: `python eval.py VERB ...` is `python -m harmonic_gpt eval VERB ...`; `--help` lists the verbs."""

import sys

from harmonic_gpt.__main__ import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])

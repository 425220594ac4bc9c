"""Train: `python train.py --config configs/quickstart_harmonic.yaml`, or the same after `accelerate launch`."""

import sys

from harmonic_gpt.__main__ import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])

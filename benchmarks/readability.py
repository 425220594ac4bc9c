"""Time and peak memory of `eval.py geometry` on a random model of GPT-2 small's size.

python benchmarks/readability.py --tokenizer gpt2                              # the embedding matrices alone
python benchmarks/readability.py --tokenizer gpt2 --data FOLDER --tokens 32768  # with layers, on that folder's tokens
"""

import argparse
import os
import resource
import tempfile
import time

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from harmonic_gpt.cli.geometry import run_geometry

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="GPT-2's: folder or hub name")
    parser.add_argument("--data", help="token folder")
    parser.add_argument("--tokens", type=int, default=0, help="forward tokens")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
        AutoTokenizer.from_pretrained(arguments.tokenizer).save_pretrained(folder)
        wall, cpu = time.monotonic(), time.process_time()
        run_geometry(folder, None, None, "both", arguments.data, arguments.tokens, None, None, "cpu")
    used = resource.getrusage(resource.RUSAGE_SELF)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    print(f"{arguments.tokens} tokens, {torch.get_num_threads()} threads of {os.cpu_count()} cores:", end=" ")
    print(f"{wall:.1f} s, {cpu:.1f} CPU s, peak {used.ru_maxrss / 2**20:.2f} GiB")

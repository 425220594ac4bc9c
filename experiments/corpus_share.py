"""A smaller corpus with the same validation text: all validation documents of a .jsonl, and a share of the others.

    python experiments/corpus_share.py prose.jsonl 16 prose-16.jsonl     # one training document in 16
    harmonic-gpt prepare --source prose-16.jsonl --tokenizer data/prose8k/tokenizer --out data/prose8k-16

Documents are chosen by content hash, so that a smaller share is part of a larger one.
"""

import argparse
import json
from pathlib import Path

from harmonic_gpt.data.request import VALIDATION_SHARE
from harmonic_gpt.data.split import content_hash, is_validation


def keeps(text: str, fraction: int) -> bool:
    digest = content_hash(text)
    # Other bytes than those that decide the split
    return is_validation(digest, VALIDATION_SHARE) or int.from_bytes(digest[8:], "big") < 2**64 // fraction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("fraction", type=int, help="keep one training document in this many")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    with args.corpus.open(encoding="utf-8") as source, args.out.open("x", encoding="utf-8") as out:
        out.writelines(line for line in source if keeps(json.loads(line)["text"], args.fraction))


if __name__ == "__main__":
    main()

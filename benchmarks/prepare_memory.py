"""Peak resident memory of `prepare`, and of reading an epoch of what it wrote, on a corpus that is generated here.

    python benchmarks/prepare_memory.py --tokenizer FOLDER [--gigabytes 1.2] [--workers 2] [--format parquet]

The corpus is the embedded one, repeated; each repetition swaps words, so that no document is a duplicate. Parquet is
written with one row group: decoded at once, as it is by default, it would all be in memory.
"""

import argparse
import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path

from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.data.sampler import Sampler
from harmonic_gpt.data.sources import documents
from harmonic_gpt.data.tokens import open_token_folder


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def generate(path: Path, size: float, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    base = [text[i : i + 4_900].split(" ") for text in documents("pydocs") for i in range(0, len(text), 4_900)]
    rng = random.Random(0)
    written, schema = 0, pa.schema([("text", pa.string())])
    texts: list[str] = []
    with path.open("w") if kind == "jsonl" else pq.ParquetWriter(path, schema) as file:
        while written < size:
            words = list(rng.choice(base))
            for _ in range(1 + len(words) // 8):
                words[rng.randrange(len(words))] = rng.choice(rng.choice(base))
            text = f"{rng.getrandbits(60)} " + " ".join(words)
            written += len(text.encode())
            if kind == "jsonl":
                file.write(json.dumps({"text": text}) + "\n")
            else:
                texts.append(text)
        if kind == "parquet":
            file.write_table(pa.table({"text": texts}), row_group_size=len(texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--gigabytes", type=float, default=1.2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--format", choices=("parquet", "jsonl"), default="parquet")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        corpus = Path(temporary) / f"corpus.{args.format}"
        if (child := os.fork()) == 0:  # generating takes memory of its own
            generate(corpus, args.gigabytes * 1e9, args.format)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(
            f"corpus: {args.gigabytes} GB of text as {args.format}; resident before: {resident_mb():.0f} MB", flush=True
        )
        start = time.perf_counter()
        out = prepare(str(corpus), Path(temporary) / "out", tokenizer=args.tokenizer, num_workers=args.workers)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        folder = open_token_folder(out)
        train = folder.manifest["splits"]["train"]
        text = sum(split["text_bytes"] for split in folder.manifest["splits"].values())
        print(f"prepare: {text / 1e9:.2f} GB, {train['tokens']:,} training tokens in {len(train['files'])} files")
        print(f"         {seconds:.0f} s, {text / 1e6 / seconds:.2f} MB/s; peak resident {peak:.0f} MB", flush=True)
        start = time.perf_counter()
        tokens = folder.tokens("train")
        seconds, size = time.perf_counter() - start, sum(path.stat().st_size for path in tokens.files) / 1e9
        print(
            f"check:   {size:.2f} GB of token files hashed, their ids checked: {seconds / size:.1f} s a GB", flush=True
        )
        sampler = Sampler(tokens, 1024, 480, seed=0)
        before, steps = resident_mb(), sampler.blocks_per_epoch // 480
        start = time.perf_counter()
        for step in range(steps):
            sampler.batch(step)
        per_batch = (time.perf_counter() - start) / steps
        resident = f"resident {before:.0f} -> {resident_mb():.0f} MB"
        print(f"epoch:   {steps} batches of 480 x 1,025; {per_batch * 1e3:.1f} ms each; {resident}")


if __name__ == "__main__":
    main()

"""Speed of tokenization: this project's way beside the fastest known ones, interleaved in one run.

    python benchmarks/tokenization.py --source FILES --tokenizer FOLDER [--workers 2] [--megabytes 20] [--rounds 5]

The text is cut into documents of about OpenWebText's mean length. Every contender ends with the ids of all documents in
this process. `prepare` is the whole way: parquet file, hashes, duplicates, ids, token files, checksums, fsync.

It is not called tokenize.py: Python puts this folder first on its path, and every program here would import it for the
standard library's module of that name.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harmonic_gpt.data.encoding import document_encoder, encoder_spec, tiktoken_encoding
from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.data.sources import documents
from harmonic_gpt.data.tokenizer import load_tokenizer, ordinary_encoder
from harmonic_gpt.data.tokens import open_token_folder
from harmonic_gpt.data.workers import Encoders

OPENWEBTEXT = {"documents": 8_013_769, "tokens": 9_035_582_198 + 4_434_897}
DOCUMENT_CHARACTERS = 4_900  # OpenWebText: about 1,128 tokens a document, 4.35 bytes a token
CHUNK = 200  # documents of one call


def corpus(source: str, megabytes: float) -> list[str]:
    texts, size = [], 0
    for text in documents(source):
        for start in range(0, len(text), DOCUMENT_CHARACTERS):
            texts.append(text[start : start + DOCUMENT_CHARACTERS])
            size += len(texts[-1].encode())
            if size >= megabytes * 1e6:
                return texts
    return texts


def tokenizers_chunk(texts: list[str]) -> list[np.ndarray]:
    return [np.array(e.ids, np.uint16) for e in BACKEND.encode_batch_fast(texts, add_special_tokens=False)]


def tiktoken_chunk(texts: list[str]) -> list[np.ndarray]:
    return [np.array(ids, np.uint16) for ids in map(ENCODING.encode_ordinary, texts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="append the results to this .jsonl")
    args = parser.parse_args()

    global BACKEND, ENCODING
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # in as many processes instead
    tokenizer = load_tokenizer(args.tokenizer)
    spec = encoder_spec(tokenizer)
    BACKEND, ENCODING = ordinary_encoder(tokenizer), tiktoken_encoding(spec)
    encode = document_encoder(spec)
    texts = corpus(args.source, args.megabytes)
    chunks = [texts[i : i + CHUNK] for i in range(0, len(texts), CHUNK)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    folder = Path(tempfile.mkdtemp())
    pq.write_table(pa.table({"text": texts}), folder / "corpus.parquet", row_group_size=1000)
    threads = ThreadPoolExecutor(args.workers)
    processes = multiprocessing.get_context("fork").Pool(args.workers)  # forked before any of the threads is started

    def whole_way() -> int:
        shutil.rmtree(folder / "out", ignore_errors=True)
        out = prepare(
            str(folder / "corpus.parquet"),
            folder / "out",
            tokenizer=args.tokenizer,
            num_workers=args.workers,
            drop_duplicates=False,
        )
        return sum(split["tokens"] for split in open_token_folder(out).manifest["splits"].values()) - len(texts)

    encoders = Encoders(spec, np.dtype("<u2"), args.workers, processes_from=0)

    def own_processes() -> int:
        encoded = [encoders.submit({"train": chunk}) for chunk in chunks]
        return sum(len(batch.result()["train"][0]) for batch in encoded) - len(texts)

    contenders = {
        "prepare, the whole way": whole_way,
        "its encoder alone, in processes": own_processes,
        "its encoder alone, in threads": lambda: sum(map(len, threads.map(encode, chunks))) - len(texts),
        "tiktoken encode_ordinary_batch": lambda: sum(
            map(len, ENCODING.encode_ordinary_batch(texts, num_threads=args.workers))
        ),
        "tiktoken encode_ordinary in processes": lambda: sum(
            len(ids) for part in processes.imap(tiktoken_chunk, chunks) for ids in part
        ),
        "tokenizers encode_batch_fast in processes": lambda: sum(
            len(i) for part in processes.imap(tokenizers_chunk, chunks) for i in part
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    counts = {}
    for round_ in range(args.rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            counts[name] = run()
            if round_:  # the first warms up
                times[name].append(time.perf_counter() - start)
    processes.terminate()
    encoders.close()
    shutil.rmtree(folder)
    assert len(set(counts.values())) == 1, counts  # the same ids, or at least as many
    tokens = counts["prepare, the whole way"]
    size = f"{len(texts):,} documents, {megabytes:.1f} MB, {tokens:,} tokens"
    print(f"{size}, {args.workers} workers, median of {args.rounds} rounds\n")
    fastest = min(statistics.median(t) for name, t in times.items() if not name.startswith(("prepare", "its")))
    full = OPENWEBTEXT["tokens"] / tokens
    print(f"{'':<44}{'MB/s':>8}{'Mtokens/s':>11}{'to fastest other':>18}")
    rows = []
    for name, seconds in times.items():
        median = statistics.median(seconds)
        rows.append(
            {
                "contender": name,
                "mb_per_s": megabytes / median,
                "tokens_per_s": tokens / median,
                "ratio": fastest / median,
            }
        )
        print(f"{name:<44}{megabytes / median:>8.2f}{tokens / median / 1e6:>11.2f}{fastest / median:>18.2f}")
    seconds = statistics.median(times["prepare, the whole way"])
    print("\nOpenWebText (9.04 B tokens), if speed grew with the cores:")
    for cores in (args.workers, 8, 16, 64):
        print(f"{cores:>4} cores: {full * seconds * args.workers / cores / 60:7.0f} min")
    if args.out:
        with Path(args.out).open("a") as file:
            file.write(
                json.dumps({"workers": args.workers, "megabytes": megabytes, "tokens": tokens, "results": rows}) + "\n"
            )


if __name__ == "__main__":
    main()

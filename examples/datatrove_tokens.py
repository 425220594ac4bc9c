"""datatrove tokenizes a corpus that one machine cannot, into files that training opens as they are.

pip install 'datatrove[io]' transformers
python examples/datatrove_tokens.py CORPUS TOKENIZER OUT --tasks 4 --workers 2     # local processes
python examples/datatrove_tokens.py CORPUS TOKENIZER OUT --tasks 1000 --slurm PARTITION   # a Slurm array each split
harmonic-gpt inspect OUT, then: harmonic-gpt train ... --data.dir OUT

CORPUS is a folder of .jsonl(.gz, .zst) or .parquet files, or any that fsspec reads (s3://...); a task takes whole
files. A task that is killed is run again by the same command, the others are not.
"""

import argparse
from functools import partial
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import JsonlReader, ParquetReader
from datatrove.pipeline.tokens import DocumentTokenizer
from transformers import AutoTokenizer


class OrdinaryTokenizer(DocumentTokenizer):
    """A literal <|endoftext|> inside a document stays ordinary text, so that the token ends documents alone."""

    @property
    def tokenizer(self):
        tokenizer = super().tokenizer  # loaded once
        tokenizer.encode_special_tokens = True
        return tokenizer


def belongs(split: str, share: float, document) -> bool:
    """Whether `prepare` gives the document this split; empty ones have none."""
    from harmonic_gpt.data.split import content_hash, is_validation  # here: Slurm's tasks get this function alone

    return bool(document.text) and is_validation(content_hash(document.text), share) == (split == "val")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("tokenizer", help="a fast tokenizer with an end-of-text token: folder or hub name")
    parser.add_argument("out", type=Path)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--validation-share", type=float, default=0.05)
    parser.add_argument("--tasks", type=int, default=1, help="parts of the corpus; at most as many as it has files")
    parser.add_argument("--workers", type=int, default=1, help="local processes; with --slurm: tasks at a time")
    parser.add_argument("--slurm", metavar="PARTITION")
    parser.add_argument("--time", default="12:00:00", help="Slurm's limit for a task")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    tokenizer.save_pretrained(args.out / "tokenizer")  # where harmonic-gpt looks for it
    for split in ("train", "val"):
        options = {"text_key": args.text_column, "recursive": True}
        parquet = args.corpus.endswith(".parquet") or any(Path(args.corpus).glob("**/*.parquet"))
        reader = ParquetReader(args.corpus, **options) if parquet else JsonlReader(args.corpus, **options)
        pipeline = [
            reader,
            # here, or in a pipeline before this one: datatrove's filters and its MinHash deduplication
            LambdaFilter(partial(belongs, split, args.validation_share)),
            OrdinaryTokenizer(
                str(args.out / split),
                str(args.out / "tokenizer" / "tokenizer.json"),
                eos_token=tokenizer.eos_token,
                shuffle_documents=False,  # training visits blocks in random order anyway
            ),
        ]
        logs = str(args.out / "logs" / split)
        if args.slurm:
            SlurmPipelineExecutor(
                pipeline,
                tasks=args.tasks,
                time=args.time,
                partition=args.slurm,
                workers=args.workers if args.workers > 1 else -1,
                cpus_per_task=2,
                job_name=f"tokens-{split}",
                logging_dir=logs,
            ).run()
        else:
            LocalPipelineExecutor(pipeline, tasks=args.tasks, workers=args.workers, logging_dir=logs).run()


if __name__ == "__main__":
    main()

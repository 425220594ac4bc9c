"""prepare, join, inspect."""

from typing import Annotated, Literal

import typer

from harmonic_gpt.cli.options import SHARE
from harmonic_gpt.data.request import DEFAULT_VOCAB_SIZE, MIN_VOCAB_SIZE, SHARD_TOKENS, VALIDATION_SHARE
from harmonic_gpt.errors import InputError


def prepare(
    source: Annotated[
        list[str],
        typer.Option(
            help='"pydocs", files or globs (.txt .jsonl .parquet, .gz .zst), or a hub dataset such as openwebtext; '
            "PLACE[,name=..][,config=..][,split=..][,column=..][,revision=..]; may be given several times"
        ),
    ],
    out: Annotated[str, typer.Option(help="token folder to create; a killed preparation of it is continued")],
    tokenizer: Annotated[str | None, typer.Option(help="tokenizer folder or hub name; default: train a BPE")] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(help=f"size of the BPE to train ({DEFAULT_VOCAB_SIZE})", min=MIN_VOCAB_SIZE, max=2**20),
    ] = None,
    validation: Annotated[
        Literal["content", "nanogpt"],
        typer.Option(help="content: chosen by content hash; nanogpt: the documents that nanoGPT takes"),
    ] = "content",
    validation_share: Annotated[
        float | None, typer.Option(help=f"share of documents for validation ({VALIDATION_SHARE})", **SHARE)
    ] = None,
    text_column: Annotated[str, typer.Option(help="column that holds the text")] = "text",
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="keep documents that are equal to an earlier one")
    ] = False,
    shard_tokens: Annotated[int, typer.Option(help="tokens of a file", min=1)] = SHARD_TOKENS,
    num_workers: Annotated[
        int | None, typer.Option(help="threads or processes that tokenize; default: the cores", min=1)
    ] = None,
) -> None:
    """Turn documents into token files for training."""
    from harmonic_gpt.data import prepare as module
    from harmonic_gpt.data.manifest import read_manifest

    path = module.prepare(
        source,
        out,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        validation=validation,
        validation_share=validation_share,
        text_column=text_column,
        drop_duplicates=not keep_duplicates,
        shard_tokens=shard_tokens,
        num_workers=num_workers,
    )
    manifest = read_manifest(path).values
    for name, split in manifest["splits"].items():
        tokens, per_byte = split["tokens"], split["tokens"] / split["text_bytes"]
        print(f"{path}/{name}: {split['documents']:,} documents, {tokens:,} tokens, {per_byte:.3f} tokens per byte")
    for note in manifest.get("notes", []):
        print(f"note: {note}")
    print(f"vocabulary {manifest['vocab_size']:,}, {manifest['duplicates']:,} duplicates dropped")


def join(
    folders: Annotated[
        list[str], typer.Argument(help="token folders of one tokenizer: prepare's, datatrove's, join's")
    ],
    out: Annotated[str, typer.Option(help="token folder to create")],
    count_duplicates: Annotated[
        bool, typer.Option(help="count the documents that they share, which reads every token once")
    ] = True,
) -> None:
    """Make one token folder of several: a manifest over linked files, nothing is written again."""
    from harmonic_gpt.data import join as module
    from harmonic_gpt.data.manifest import read_manifest

    path = module.join(folders, out, count_duplicates=count_duplicates)
    manifest = read_manifest(path).values
    for name, split in manifest["splits"].items():
        files = f"{len(split['files']):,} linked files"
        print(f"{path}/{name}: {split['documents']:,} documents, {split['tokens']:,} tokens in {files}")
    for note in manifest["notes"]:
        print(f"note: {note}")
    if (shared := manifest["shared_documents"]) is not None:
        print(f"{shared['documents_of_an_earlier_folder']:,} documents are in an earlier folder too, and stay")


def inspect(
    folder: Annotated[str, typer.Argument(help="token folder")],
    samples: Annotated[int, typer.Option(help="documents of each split to show the start of", min=0)] = 3,
    tokenizer: Annotated[str | None, typer.Option(help="to decode with; default: the one in the folder")] = None,
) -> None:
    """What a token folder holds; verifies its checksums."""
    from harmonic_gpt.data.inspect import describe, inspect_folder

    inspection = inspect_folder(folder, samples, tokenizer)
    describe(inspection)
    if inspection.problems:
        raise InputError("the files are not as they were written:\n  " + "\n  ".join(inspection.problems))

"""What the compiler makes of the Triton kernel, without a GPU: registers, stack, instructions, widths of accesses.

    python benchmarks/kernels.py                                             # all heads and passes on sm_90
    python benchmarks/kernels.py --grid all --out docs/results/gpu_compile.jsonl

Needs `pip install triton`, which ships ptxas, cuobjdump and nvdisasm; torch may be the CPU build. An element is one
entry of the (tokens, classes) matrix of dot products; its instructions are those that one thread executes for it in a
loop, counted in the machine code.
"""

import argparse
import importlib.util
import itertools
import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

SOURCE = Path(__file__).parents[1] / "harmonic_gpt" / "model" / "harmonic_kernels.py"
HEADS = (("euclidean", "harmax"), ("euclidean", "softmax"), ("dot", "harmax"), ("dot", "softmax"))
PASSES = ("loss", "float32 gradient", "bfloat16 gradient")
ARCHITECTURES = (80, 90, 100)
CLASSES = (50257, 50304, 4096, 65)


FLAGS = ("lorentz", "bias", "smoothing", "z_loss", "learned")
# What heads and options ask of the kernel beyond the four plain heads: each by itself, and together
FLAGGED = (("lorentz",), ("bias",), ("smoothing",), ("z_loss",), ("learned",), FLAGS[1:], FLAGS)


class Variant(NamedTuple):
    """One compilation: head, pass of PASSES, compute capability x 10, number of classes, of FLAGS those that are on."""

    similarity: str
    normalization: str
    kind: str
    architecture: int
    classes: int
    flags: tuple[str, ...] = ()


GRIDS = {
    "sm_90": [Variant(*head, kind, 90, 50257) for head, kind in itertools.product(HEADS, PASSES)],
    "all": [
        Variant(*head, kind, architecture, classes)
        for head, kind, architecture, classes in itertools.product(HEADS, PASSES, ARCHITECTURES, CLASSES)
    ],
}
# All heads and passes on one device; elsewhere, and for other V, the two heads that are trained
GRIDS["fast"] = GRIDS["sm_90"] + [
    Variant(*head, PASSES[2], architecture, classes)
    for head in (HEADS[0], HEADS[3])
    for architecture, classes in ((80, 50257), (100, 50257), (90, 50304), (90, 65))
]
_BF16 = (PASSES[2], 90, 50257)
GRIDS["fast"] += [Variant(*HEADS[0], *_BF16, FLAGS), Variant(*HEADS[3], *_BF16, FLAGS[1:])]
GRIDS["flags"] = [
    Variant(*head, *_BF16, flags) for head in HEADS for flags in FLAGGED if "lorentz" not in flags or head == HEADS[0]
]
GRIDS["all"] += [variant for variant in GRIDS["flags"] if variant not in GRIDS["fast"]]
GRIDS["one"] = [Variant(*HEADS[0], PASSES[2], 90, 50257)]
GRIDS["rest"] = [variant for variant in GRIDS["all"] if variant not in GRIDS["fast"]]
GRIDS["all"] += [variant for variant in GRIDS["fast"] if variant not in GRIDS["all"]]


def load_kernels(source: Path):
    """`harmonic_kernels` of a file. Triton must not have been imported with TRITON_INTERPRET=1 in this process."""
    spec = importlib.util.spec_from_file_location("harmonic_kernels_for_the_compiler", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_variant(kernels, variant: Variant):
    """As `harmonic_kernels.element_pass` launches it: rows of u and g padded to a multiple of 64."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = kernels._element_kernel
    names = kernel.arg_names
    constants = {
        "EUCLIDEAN": variant.similarity == "euclidean",
        "HARMAX": variant.normalization == "harmax",
        **{flag.upper(): flag in variant.flags for flag in FLAGS},
        "GRADIENT": variant.kind != "loss",
        "BLOCK": kernels.block_size(variant.classes),
        "FAST": True,
    }
    g_type = "*bf16" if variant.kind == "bfloat16 gradient" else "*fp32"
    types = {"g_ptr": g_type, "labels_ptr": "*i64", "n_classes": "i32", "u_stride": "i32", "g_stride": "i32"}
    types = dict.fromkeys(names, "fp32") | {n: "*fp32" for n in names if n.endswith("_ptr")} | types
    types |= dict.fromkeys(constants, "constexpr")
    # What the launcher finds out by itself: torch's memory and the strides are multiples of 16
    aligned = [n for n in names if n.endswith(("_ptr", "_stride")) or (n == "n_classes" and variant.classes % 16 == 0)]
    source = ASTSource(
        kernel,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    target = GPUTarget("cuda", variant.architecture, 32)
    return triton.compile(source, target=target, options={"num_warps": kernels.NUM_WARPS})


def examine(kernels, variant: Variant) -> dict:
    """Compiles one variant. Loops come in the order of the code. Raises what Triton and ptxas raise."""
    import triton

    binaries = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    cubin = compile_variant(kernels, variant).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([binaries / tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c"))
        )
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert match is not None, usage
    elements = kernels.block_size(variant.classes) / (32 * kernels.NUM_WARPS)
    loops = [
        {
            "instructions_per_element": round(len(body) / elements, 1),
            # of global memory (the suffix is the width in bits, none: 32) and of local memory, where spills go
            "accesses": Counter(name for name in body if name.startswith(("LDG", "STG", "LDL", "STL"))),
        }
        for body in _loops(code)
    ]
    return {"registers": int(match[1]), "stack_bytes": int(match[2]), "loops": loops}


def _loops(code: str) -> Iterator[list[str]]:
    """Instructions between a label and a branch back to it, without the one-instruction trap at a kernel's end."""
    names: list[str] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := re.match(r"^(\.L_x_\d+):", line):
            labels[label[1]] = len(names)
        elif instruction := re.match(r"^\s+/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)", line):
            names.append(instruction[1])
            target = re.search(r"(\.L_x_\d+)", instruction[2])
            if instruction[1].startswith("BRA") and target and len(names) - labels.get(target[1], len(names)) > 1:
                yield names[labels[target[1]] :]


def rows(variants: list[Variant], source: Path) -> Iterator[dict]:
    """One row a variant; `error` in place of the numbers where it does not compile."""
    import triton

    kernels = load_kernels(source)
    versions = {"warps": kernels.NUM_WARPS, "torch": torch.__version__, "triton": triton.__version__}
    for variant in variants:
        try:
            report = examine(kernels, variant)
        except (triton.TritonError, RuntimeError, subprocess.CalledProcessError) as error:
            report = {"error": f"{type(error).__name__}: {error}"}
        yield variant._asdict() | report | versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=GRIDS, default="sm_90")
    parser.add_argument("--source", type=Path, default=SOURCE, help="another file of kernels")
    parser.add_argument("--out", type=Path, help="write JSON lines, replacing the file")
    args = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported
    found = []
    for row in rows(GRIDS[args.grid], args.source):
        found.append(row)
        if "error" in row:
            text = row["error"]
        else:
            loops = ", ".join(f"{loop['instructions_per_element']:g} {dict(loop['accesses'])}" for loop in row["loops"])
            text = f"{row['registers']} registers, {row['stack_bytes']} B of stack; per element: {loops}"
        name = f"sm_{row['architecture']} {row['classes']} {row['similarity']} + {row['normalization']} {row['kind']}"
        name += "".join(f" +{flag}" for flag in row["flags"])
        print(f"{name}: {text}", flush=True)
    if args.out:
        args.out.write_text("".join(json.dumps(row) + "\n" for row in found))
    if any("error" in row for row in found):
        raise SystemExit("not every variant compiles")


if __name__ == "__main__":
    main()

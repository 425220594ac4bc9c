"""The loss head beside its rivals: time and transient memory of forward + backward, interleaved in one process.

    python benchmarks/head.py                                   # 2,048 tokens x 768 x 50,257, float32
    python benchmarks/head.py --tokens 1024,4096 --classes 8192,50257 --dim 256 --rounds 7 --out docs/results/head.jsonl
    python benchmarks/head.py --split --tokens 512              # products and element passes apart (CPU)
    python benchmarks/head.py --heads                           # every head and option beside harmonic
    python benchmarks/head.py --device cuda --dtype bfloat16 --tokens 65536

(a) three bare matrix products, on CUDA with the classes padded to a multiple of 64 (an odd number slows them down);
(b) F.linear + F.cross_entropy; (c) F.linear_cross_entropy, on the CPU in chunks of 512 tokens (its automatic choice was
1.5 to 10 times slower there), on CUDA in those of CHUNKS that are fastest; (d) harmonic through materialised logits and
autograd; (d') the same as the authors' code computes it; (e) ours, harmonic; (e') ours, standard.

--heads: ratios to harmonic in the same round, of wall time and of the process's CPU time; medians with quartiles.

Every round runs each contender once, in a shuffled order; a time is the median of the rounds, its spread the quartiles.
Memory is the peak beyond the inputs, beyond grad_x and grad_w too in the last column; on the CPU each contender's is
read in a process of its own.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor
from torch.nn import functional as F

from harmonic_gpt.model.harmonic_elements import Asked, Formula, Sides, element_pass
from harmonic_gpt.model.harmonic_logits import head_logits, squared_norms
from harmonic_gpt.model.harmonic_loss import harmonic_cross_entropy, head_cross_entropy
from harmonic_gpt.model.heads import HEADS, LOG2_E

# Tokens of a chunk of F.linear_cross_entropy on CUDA; None: its own heuristic
CHUNKS = (None, 1024, 2048, 4096, 8192, 16384)
ALIGNMENT = 64


def bare_products(x: Tensor, w: Tensor, _y: Tensor, _n: float) -> None:
    with torch.no_grad():
        logits = x @ w.T
        x.grad, w.grad = logits @ w, logits.T @ x


def centers_of(name: str, w: Tensor) -> Tensor:
    """w, for the bare products on CUDA with rows of zeros up to a multiple of ALIGNMENT."""
    if CONTENDERS[name] is not bare_products or not w.is_cuda or len(w) % ALIGNMENT == 0:
        return w
    return F.pad(w.detach(), (0, 0, 0, -len(w) % ALIGNMENT)).requires_grad_()


def linear_cross_entropy(x, w, y, _n):
    F.cross_entropy(F.linear(x, w), y).backward()


def linear_cross_entropy_in_chunks(x, w, y, chunk):
    # The heuristic and a size exclude each other
    choice = {"chunking_method": "auto"} if chunk is None else {"chunking_method": None, "batch_chunk_size": chunk}
    F.linear_cross_entropy(x, w, y, options=torch.nn.LinearCrossEntropyOptions(**choice)).backward()


best_chunk: dict[tuple, int | None] = {}  # by shapes and dtype


def chunked_linear_cross_entropy(x, w, y, _n):
    key = (x.shape, w.shape, x.dtype)
    if key not in best_chunk:
        best_chunk[key] = fastest_chunk(x, w, y) if x.is_cuda else 512
    linear_cross_entropy_in_chunks(x, w, y, best_chunk[key])


def fastest_chunk(x: Tensor, w: Tensor, y: Tensor) -> int | None:
    """Of CHUNKS, each once after a warm-up. Called in the round that warms up."""

    def seconds(chunk: int | None) -> float:
        for _ in range(2):
            x.grad = w.grad = None
            torch.cuda.synchronize()
            start = time.perf_counter()
            linear_cross_entropy_in_chunks(x, w, y, chunk)
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return min((chunk for chunk in CHUNKS if chunk is None or chunk <= len(x)), key=seconds)


def naive_harmonic(x, w, y, n):
    F.cross_entropy(head_logits(x, w, exponent=n), y).backward()


def published_harmonic(x, w, y, n):
    """The order of operations of the paper's published code: normalised by the row minimum, smoothed, then the log."""
    d2 = (x.square().sum(1, keepdim=True) + w.square().sum(1) - 2 * (x @ w.T)) / x.shape[1]
    d2 = d2 / d2.min(1, keepdim=True).values
    p = d2 ** (-n / 2)
    p = p / p.sum(1, keepdim=True)
    F.nll_loss((p + 0.01 / w.shape[0]).log(), y).backward()


def ours_harmonic(x, w, y, n):
    harmonic_cross_entropy(x, w, y, exponent=n).backward()


def ours_standard(x, w, y, n):
    harmonic_cross_entropy(x, w, y, exponent=n, similarity="dot", normalization="softmax").backward()


def head_of_the_family(name: str, learn: tuple[str, ...] = (), **options):
    """A contender: a head with its weights learned, numbers of `learn` too ("prior" and "hidden_scale" among them)."""

    def contender(x, w, y, n):
        def leaf(value: Tensor) -> Tensor:
            return value.to(x.device).requires_grad_()

        width = x.shape[1]
        starts = {key: constant.default(width) for key, constant in HEADS[name].constants.items()}
        values = {key: leaf(weight.start(width, starts)) for key, weight in HEADS[name].weights.items()}
        if "exponent" in starts:
            values["exponent"] = leaf(torch.tensor([n])) if "exponent" in learn else n
        if "temperature" in learn:
            values["temperature"] = leaf(torch.tensor([starts["temperature"]]))
        if "hidden_scale" in learn:
            x = x * leaf(torch.ones(1))
        if "prior" in learn or "prior" in options:
            prior = torch.linspace(-9, 0, len(w), device=x.device).roll(7)
            values["log_prior"] = leaf(prior) if "prior" in learn else prior
        given = {key: value for key, value in options.items() if key != "prior"}
        head_cross_entropy(x, w, y, head=name, **values, **given).backward()

    return contender


FAMILY = {
    "harmonic": head_of_the_family("harmonic"),
    "harmonic, again": head_of_the_family("harmonic"),  # how much is noise
    **{name: head_of_the_family(name) for name, head in HEADS.items() if head.form and name != "harmonic"},
    "harmonic, learned exponent": head_of_the_family("harmonic", ("exponent",)),
    "harmonic, learned exponent and scale": head_of_the_family("harmonic", ("exponent", "hidden_scale")),
    "harmonic, prior": head_of_the_family("harmonic", prior=True),
    "harmonic, learned prior": head_of_the_family("harmonic", ("prior",)),
    "harmonic, label smoothing": head_of_the_family("harmonic", label_smoothing=0.1),
    "harmonic, z-loss": head_of_the_family("harmonic", z_loss=1e-4),
}


def compare_family(shape: tuple[int, int, int], dtype: str, device: str, rounds: int, only: list[str]) -> list[dict]:
    """Rows with the ratio of each head's time to harmonic's in the same round."""
    x, w, y = inputs(*shape, getattr(torch, dtype), device)
    names = [name for name in FAMILY if not only or name in ("harmonic", *only)]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for i in range(rounds + 1):
        order = list(names)
        random.Random(i).shuffle(order)
        for name in order:
            x.grad = w.grad = None
            if x.is_cuda:
                torch.cuda.synchronize()
            started = time.perf_counter(), time.process_time()
            FAMILY[name](x, w, y, x.shape[1] ** 0.5)
            if x.is_cuda:
                torch.cuda.synchronize()
            if i:  # the first round warms up
                times[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    rows = []
    for name in names:
        row: dict = {"head": name, "tokens": shape[0], "dim": shape[1], "classes": shape[2], "dtype": dtype}
        row |= {"device": device, "seconds": median(wall for wall, _ in times[name])}
        for k, kind in enumerate(("wall", "cpu")):
            ratios = [a[k] / b[k] for a, b in zip(times[name], times["harmonic"], strict=True)]
            low, middle, high = quantiles(ratios, n=4, method="inclusive") if rounds > 1 else ratios * 3
            row |= {f"{kind}_ratio": middle, f"{kind}_quartiles": [low, high]}
        rows.append(row)
    return rows


CONTENDERS = {
    "a three bare products": bare_products,
    "b linear + cross_entropy": linear_cross_entropy,
    "c linear_cross_entropy, chunked": chunked_linear_cross_entropy,
    "d harmonic, materialised": naive_harmonic,
    "d' harmonic, as published": published_harmonic,
    "e harmonic, ours": ours_harmonic,
    "e' standard, ours": ours_standard,
}


def inputs(tokens: int, dim: int, classes: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, D), w (V, D) of norms about 1, as a matched model has; y (N,)."""
    generator = torch.Generator(device).manual_seed(0)
    x, w = (torch.randn(k, dim, generator=generator, device=device) / dim**0.5 for k in (tokens, classes))
    y = torch.randint(classes, (tokens,), generator=generator, device=device)
    return x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), y


def once(name: str, x: Tensor, w: Tensor, y: Tensor) -> float:
    """Seconds of one forward + backward. Fresh gradients, as after zero_grad(set_to_none=True)."""
    x.grad = w.grad = None
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    CONTENDERS[name](x, w, y, x.shape[1] ** 0.5)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(name: str, shape: tuple[int, int, int], dtype: str, device: str) -> int:
    """Bytes at the peak beyond the inputs. The peak of resident memory never falls: on the CPU in a fresh process."""
    if device == "cpu":
        arguments = [sys.executable, __file__, "--peak", name, *map(str, shape), dtype]
        return int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    x, w, y = inputs(*shape, getattr(torch, dtype), device)
    w = centers_of(name, w)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    once(name, x, w, y)
    return torch.cuda.max_memory_allocated() - before


def print_peak(name: str, *shape: str) -> None:
    """Run in a fresh process: peak resident memory of one call beyond what was resident before (Linux)."""
    *sizes, dtype = shape
    once(name, *inputs(64, 64, 128, getattr(torch, dtype), "cpu"))  # lets the libraries allocate what they keep
    x, w, y = inputs(*map(int, sizes), getattr(torch, dtype), "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _resident("VmRSS")
    once(name, x, w, y)
    print(_resident("VmHWM") - before)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def measure(
    shape: tuple[int, int, int], dtype: str, device: str, rounds: int, names: list[str], memory: bool
) -> list[dict]:
    tokens, dim, classes = shape
    x, w, y = inputs(*shape, getattr(torch, dtype), device)
    centers = {name: centers_of(name, w) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    order = list(names)
    for i in range(rounds + 1):
        random.Random(i).shuffle(order)
        for name in order:
            seconds = once(name, x, centers[name], y)
            if i:  # the first round warms up
                times[name].append(seconds)
    gradients = (tokens + classes) * dim * getattr(torch, dtype).itemsize
    rows = []
    for name in names:
        low, _, high = quantiles(times[name], n=4, method="inclusive")
        row = {"head": name, "tokens": tokens, "dim": dim, "classes": classes, "dtype": dtype, "device": device}
        row |= {
            "seconds": median(times[name]),
            "quartiles": [low, high],
            "gflops": 6 * tokens * dim * classes / median(times[name]) / 1e9,
        }
        if CONTENDERS[name] is chunked_linear_cross_entropy:
            row["chunk"] = best_chunk[x.shape, w.shape, x.dtype]
        if memory:
            row["peak_bytes"] = peak_memory(name, shape, dtype, device)
            row["transient_bytes"] = row["peak_bytes"] - gradients
        rows.append(row)
    return rows


def split(shape: tuple[int, int, int], rounds: int) -> None:
    """Milliseconds of the products of one chunk and of the element passes between them, interleaved; medians."""
    x, w, y = inputs(*shape, torch.float32, "cpu")
    x, w = x.detach(), w.detach()
    x2, w2, weight = squared_norms(x), squared_norms(w), torch.full((shape[0],), 1 / shape[0])
    dots, sides = x @ w.T, Sides(x2, w2, x2, w2)
    formulas = {"harmonic": Formula("squared_distance", "log", -12.0), "standard": Formula("dot", "linear", LOG2_E)}
    buffer, times = torch.empty_like(dots), {"three products": []}
    times |= {f"element passes, {name}": [] for name in formulas}
    for _ in range(rounds + 1):
        start = time.perf_counter()
        torch.mm(x, w.T, out=buffer)
        buffer @ w, buffer.T @ x
        times["three products"].append(time.perf_counter() - start)
        for name, formula in formulas.items():
            buffer.copy_(dots)
            asked = Asked(column_sums=torch.zeros(shape[2]) if formula.euclidean else None)
            start = time.perf_counter()
            element_pass(buffer, sides, y, weight, formula, torch.float32, asked)
            times[f"element passes, {name}"].append(time.perf_counter() - start)
    for name, seconds in times.items():
        print(f"{name:<28}{median(seconds[1:]) * 1e3:>9.1f} ms")


# Blue: harmonic, orange: standard, gray: linear heads of others. Thick: what this package runs
PLOTTED = {
    "b linear + cross_entropy": ("0.55", "-", "linear + cross_entropy"),
    "c linear_cross_entropy, chunked": ("0.55", "--", "linear + cross entropy in chunks"),
    "d' harmonic, as published": ("tab:blue", ":", "harmonic, as published"),
    "e harmonic, ours": ("tab:blue", "-", "harmonic, here"),
    "e' standard, ours": ("tab:orange", "-", "standard, here"),
}


def plot(results: Path, image: Path) -> None:
    """Time and transient memory against tokens, and against classes, from the JSON lines of --out."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in results.read_text().splitlines()]
    figure = Figure(figsize=(7, 6.2), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    for column, varied in enumerate(("tokens", "classes")):
        other = "classes" if varied == "tokens" else "tokens"
        # the series with most points: one value of the other size
        fixed = max({row[other] for row in rows}, key=lambda v: (len({r[varied] for r in rows if r[other] == v}), v))
        for name, (color, style, label) in PLOTTED.items():
            line = sorted((r for r in rows if r["head"] == name and r[other] == fixed), key=lambda r: r[varied])
            xs = [row[varied] for row in line]
            for axis, ys in (
                (axes[0][column], [row["seconds"] for row in line]),
                (axes[1][column], [row["transient_bytes"] / 2**20 for row in line if "transient_bytes" in row]),
            ):
                if len(ys) == len(xs) > 1:
                    axis.plot(
                        xs, ys, style, color=color, marker="o", ms=4, lw=2.5 if name[0] == "e" else 1.5, label=label
                    )
        for axis in (axes[0][column], axes[1][column]):
            axis.set(xscale="log", yscale="log", xlabel=f"{varied} ({fixed:,} {other})")
            axis.set_xticks(xs, [f"{x // 1024}k" for x in xs])
            axis.minorticks_off()
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("seconds, forward + backward")
    axes[1][0].set_ylabel("memory beyond inputs\nand gradients, MiB")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(image, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="2048")
    parser.add_argument("--dim", default="768")
    parser.add_argument("--classes", default="50257")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="contenders by first letters, as in a,b,e")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out", type=Path, help="append JSON lines")
    parser.add_argument(
        "--heads", action="store_true", help="heads and options beside harmonic; --only takes names with ; between"
    )
    parser.add_argument("--split", action="store_true", help="time products and element passes apart, and nothing else")
    parser.add_argument("--plot", type=Path, metavar="IMAGE", help="draw what --out holds, and measure nothing")
    args = parser.parse_args()
    if args.plot:
        plot(args.out, args.plot)
        return
    wanted = args.only.split(";") if args.only else []  # names of --heads hold commas
    names = [name for name in CONTENDERS if not args.only or name.split()[0] in args.only.split(",")]
    for dim in map(int, args.dim.split(",")):
        for classes in map(int, args.classes.split(",")):
            for tokens in map(int, args.tokens.split(",")):
                if args.heads:
                    rows = compare_family((tokens, dim, classes), args.dtype, args.device, args.rounds, wanted)
                    print(f"{tokens:,} tokens x {dim} x {classes:,} classes, {torch.get_num_threads()} threads")
                    print(f"{'':<38}{'seconds':>9}{'wall':>8}{'quartiles':>15}{'CPU':>8}{'quartiles':>15}")
                    for row in rows:
                        print(f"{row['head']:<38}{row['seconds']:>9.3f}", end="")
                        for kind in ("wall", "cpu"):
                            low, high = row[f"{kind}_quartiles"]
                            print(f"{row[f'{kind}_ratio']:>8.3f}{f'{low:.3f}-{high:.3f}':>15}", end="")
                        print(flush=True)
                    if args.out:
                        with args.out.open("a") as out:
                            out.writelines(json.dumps(row) + "\n" for row in rows)
                    continue
                if args.split:
                    split((tokens, dim, classes), args.rounds)
                    continue
                rows = measure((tokens, dim, classes), args.dtype, args.device, args.rounds, names, not args.no_memory)
                fastest = (
                    min(row["seconds"] for row in rows if row["head"][:2] in ("a ", "b ", "c "))
                    if len(names) > 2
                    else rows[0]["seconds"]
                )
                title = f"{tokens:,} tokens x {dim} x {classes:,} classes"
                print(f"\n{title}, {args.dtype}, {args.device}, {torch.get_num_threads()} threads")
                print(
                    f"{'':<34}{'seconds':>9}{'quartiles':>17}{'ratio':>7}{'GFLOPS':>8}{'peak MiB':>10}{'transient':>10}"
                )
                for row in rows:
                    low, high = row["quartiles"]
                    ratio = row["seconds"] / fastest
                    sizes = [row[key] / 2**20 for key in ("peak_bytes", "transient_bytes") if key in row]
                    print(
                        f"{row['head']:<34}{row['seconds']:>9.3f}{f'{low:.3f}-{high:.3f}':>17}{ratio:>7.2f}"
                        f"{row['gflops']:>8.0f}" + "".join(f"{size:>10.0f}" for size in sizes)
                    )
                if args.out:
                    args.out.parent.mkdir(parents=True, exist_ok=True)
                    with args.out.open("a") as out:
                        out.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print_peak(*sys.argv[2:])
    else:
        main()

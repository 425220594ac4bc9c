"""The goals for one H100, judged from the rows of a device."""

import math
from typing import NamedTuple

from benchmarks.gpu import head, step

MAX_HEAD_TO_FLOOR = 1.2  # three bare products at an aligned number of classes
MIN_TOKENS_PER_SECOND = 390_000  # GPT-2 small, 124 M parameters
MIN_HARMONIC_TO_STANDARD = 0.97
MAX_WARM_START_SECONDS = 60


class Goal(NamedTuple):
    """value: None where it was not measured. high: the value is to be at least the bound, else at most."""

    name: str
    value: float | None
    bound: float
    high: bool
    unit: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None or math.isnan(self.value):
            return None
        return self.value >= self.bound if self.high else self.value <= self.bound

    def __str__(self) -> str:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[self.met]
        value = "" if self.met is None else f"{self.value:,.6g}{self.unit}, "
        return f"{verdict:<13}{self.name}: {value}goal {'>=' if self.high else '<='} {self.bound:,g}{self.unit}"


def goals(rows: list[dict]) -> list[Goal]:
    """rows: of one device and code, without those that hold an error."""

    def value(key: str, **wanted) -> float | None:
        return next((row[key] for row in rows if key in row and all(row.get(k) == v for k, v in wanted.items())), None)

    def ratio(a: float | None, b: float | None) -> float | None:
        return a / b if a is not None and b else None

    bf16 = {"stage": "head", "dtype": "bfloat16"}
    ours = value("ms", **bf16, contender=head.HARMONIC)
    rivals = [
        row["ms"]
        for row in rows
        if "ms" in row
        and bf16.items() <= row.items()
        and row["contender"] not in (head.FLOOR, head.HARMONIC, head.STANDARD)
    ]
    speed = {name: value("tokens_per_second", stage="step", contender=name) for name in (step.HARMONIC, step.STANDARD)}
    nanogpt = next(
        (s for n in (step.NANOGPT, step.NANOGPT_LIKE) if (s := value("tokens_per_second", contender=n)) is not None),
        None,
    )
    harmonic = speed[step.HARMONIC]
    return [
        Goal("tests that failed", value("n_failed", stage="tests"), 0, high=False),
        Goal("attention runs flash kernels, eager", value("flash", stage="products", compiled=False), 1, high=True),
        Goal("attention runs flash kernels, compiled", value("flash", stage="products", compiled=True), 1, high=True),
        Goal("harmonic head / three bare products", ratio(ours, value("ms", **bf16, contender=head.FLOOR)),
             MAX_HEAD_TO_FLOOR, high=False),
        Goal("harmonic head / fastest head of others", ratio(ours, min(rivals, default=None)), 1, high=False),
        Goal("step, harmonic, tokens per second", harmonic, MIN_TOKENS_PER_SECOND, high=True),
        Goal("step, harmonic / compiled nanoGPT", ratio(harmonic, nanogpt), 1, high=True),
        Goal("step, harmonic / standard", ratio(harmonic, speed[step.STANDARD]), MIN_HARMONIC_TO_STANDARD, high=True),
        Goal("start to first step, warm cache", value("seconds_to_first_step", cache="warm"), MAX_WARM_START_SECONDS,
             high=False, unit=" s"),
    ]  # fmt: skip

"""Search for a best setting, and its certificate: both neighbors of it are worse on every ladder.

A pure function of the losses that are there, so a stopped queue goes on where it was. PROTOCOL.md has the rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

NOISE = 0.02  # nats per token: about what two seeds of one setting differ by
Point = tuple[int, ...]  # an index on each ladder


@dataclass
class Search:
    """Where a search stands. asked: every (point, seed) that it looked at; the last one is to be trained, unless it is
    certified with all of its seeds. certified: with how many seeds the center is better than all its neighbors."""

    center: Point
    asked: list[tuple[Point, int]]
    certified: int = 0


class _MissingError(Exception):
    """A loss that is needed is not there yet."""


def search(ladders: list[int], start: Point, seeds: list[int], loss: Callable[[Point, int], float | None]) -> Search:
    """Coordinate descent from `start`, to be called again with every new loss.

    With the first seed alone, then with the first two, and so on: a neighbor that differs by less than NOISE on the
    first seed is judged by the mean over as many. No setting becomes the center twice with the same number of seeds, so
    the search ends.

    Args:
        ladders: number of values on each ladder. loss: nats per token of a (point, seed), None: not trained yet.
    """
    state = Search(start, [])

    def ask(point: Point, seed: int) -> float:
        if (point, seed) not in state.asked:
            state.asked.append((point, seed))
        value = loss(point, seed)
        if value is None:
            raise _MissingError
        return value

    def is_better(point: Point, count: int) -> bool:
        gaps = [-ask(state.center, seeds[0]) + ask(point, seeds[0])]
        if abs(gaps[0]) < NOISE:
            gaps += [-ask(state.center, seed) + ask(point, seed) for seed in seeds[1:count]]
        return mean(gaps) < 0

    def descend(count: int) -> None:
        been, still = {state.center}, 0  # still: ladders in a row without a move
        axis = 0
        while still < len(ladders):
            before = state.center
            for step in (-1, 1):
                while 0 <= state.center[axis] + step < ladders[axis]:
                    index = state.center[axis] + step
                    point = (*state.center[:axis], index, *state.center[axis + 1 :])
                    if not is_better(point, count) or point in been:
                        break
                    state.center = point
                    been.add(point)
                if state.center != before:
                    break  # the other neighbor is the former center
            still = still + 1 if state.center == before else 0
            axis = (axis + 1) % len(ladders)

    try:
        for count in range(1, len(seeds) + 1):
            descend(count)
            state.certified = count
    except _MissingError:
        pass
    return state

"""Warn when the loss jumps: often the first sign of a learning rate that is too high, or of bad data."""

import math
from collections import deque


class SpikeDetector:
    """Compares each loss with those of the last `window` steps, spikes left out.

    A spike is more than `deviations` standard deviations above their mean, and at least `least` nats.
    """

    def __init__(self, window: int = 100, deviations: float = 6.0, least: float = 0.2):
        self.recent: deque[float] = deque(maxlen=window)
        self.deviations, self.least = deviations, least

    def is_spike(self, loss: float) -> bool:
        """Take note of a step's loss in nats a token."""
        count = len(self.recent)
        if count >= self.recent.maxlen // 2:
            mean = sum(self.recent) / count
            deviation = math.sqrt(sum((x - mean) ** 2 for x in self.recent) / count)
            if loss - mean > max(self.least, self.deviations * deviation):
                return True
        self.recent.append(loss)
        return False

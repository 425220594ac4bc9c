import pytest

from harmonic_gpt.model import harmonic_elements, harmonic_loss_cpu
from tests.model.loss_cases import V


@pytest.fixture
def small_chunks(monkeypatch):
    """Several chunks, several blocks a chunk, a ragged end, at test sizes."""
    monkeypatch.setattr(harmonic_loss_cpu, "CHUNK_BYTES", 20 * V * 4)
    monkeypatch.setattr(harmonic_elements, "BLOCK_BYTES", 6 * V * 4)

"""Word pairs: the built-in ones, and folders of the user's."""

import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.evaluation.tasks.word_pairs import BUILT_IN, load_tasks


def test_built_in_tasks_and_foreign_folders(tmp_path):
    tasks = load_tasks()
    assert len(tasks) >= 10
    assert all(30 <= len(found) <= 200 for found in tasks.values())
    assert load_tasks(BUILT_IN) == tasks
    (tmp_path / "bad.json").write_text('[{"in": "a"}]')
    with pytest.raises(InputError, match=r"bad\.json: expected a list"):
        load_tasks(tmp_path)
    with pytest.raises(InputError, match="no word pairs"):
        load_tasks(tmp_path / "nowhere")

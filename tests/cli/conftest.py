from pathlib import Path

import pytest

from anomalib_med import FittedModel


@pytest.fixture(scope="session")
def saved_model(small_model: FittedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, saved once for tests that only read it."""
    return small_model.save(tmp_path_factory.mktemp("saved") / "model")

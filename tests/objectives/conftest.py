import pytest

from trainings import Trainings


@pytest.fixture
def trainings(tmp_path):
    """Begins tiny trainings in folders of their own."""
    with Trainings(tmp_path) as trainings:
        yield trainings

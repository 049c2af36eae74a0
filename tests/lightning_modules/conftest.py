import pytest

from tests.lightning_modules.harvests import make_questions, write_harvest


@pytest.fixture(scope="session")
def harvest(tmp_path_factory):
    """A harvest of 120 questions that can be learned from."""
    return write_harvest(tmp_path_factory.mktemp("stores") / "harvest", make_questions(120))

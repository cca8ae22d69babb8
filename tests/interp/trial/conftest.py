import pytest

from tests.helpers.trial_cases import planted


@pytest.fixture(scope="session")
def ground(tmp_path_factory):
    """Planted units, which no test changes."""
    return planted(tmp_path_factory.mktemp("planted"))

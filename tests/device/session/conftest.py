import pytest

from pocketrank.device.ranking.ranker import Ranker
from tests.device.worlds import make_bundle


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    return Ranker.open(make_bundle(tmp_path_factory.mktemp("bundle")))

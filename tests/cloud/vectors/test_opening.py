import msgspec
import numpy as np
import pytest

from pocketrank.cloud.vectors.exact import ExactIndex
from pocketrank.cloud.vectors.index import Attributes, IndexConfigError
from pocketrank.cloud.vectors.ivf import IvfIndex
from pocketrank.cloud.vectors.opening import IndexConfig, open_index
from pocketrank.cloud.vectors.qdrant import QdrantIndex


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (IndexConfig(), IvfIndex),
        (IndexConfig(kind="exact"), ExactIndex),
        (IndexConfig(kind="ivf"), IvfIndex),
        (IndexConfig(kind="qdrant", url=":memory:"), QdrantIndex),
    ],
)
def test_the_index_is_of_the_kind_that_was_asked_for(config: IndexConfig, kind: type) -> None:
    index = open_index(config, name="items-1")
    assert type(index) is kind
    index.upsert(np.arange(3), np.eye(3), Attributes.unknown(3))
    assert index.search(np.array([0, 1, 0], np.float32), 1).ids.tolist() == [1]
    index.close()


def test_lists_are_built_from_a_size_on_or_at_any_by_kind() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 8))
    for kind, built in (("auto", False), ("ivf", True)):
        index = open_index(msgspec.convert({"kind": kind}, IndexConfig))
        assert isinstance(index, IvfIndex)
        index.upsert(np.arange(500), rows, Attributes.unknown(500))
        index.wait()
        assert (index.report is not None) is built
        index.close()


def test_the_configuration_is_read_from_toml_and_names_what_is_wrong() -> None:
    read = msgspec.toml.decode(b'kind = "ivf"\nrecall_min = 0.9', type=IndexConfig)
    assert read == IndexConfig(kind="ivf", recall_min=0.9)
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'faiss' - at"):
        msgspec.toml.decode(b'kind = "faiss"', type=IndexConfig)
    with pytest.raises(msgspec.ValidationError, match="unknown field `recal_min`"):
        msgspec.toml.decode(b"recal_min = 0.9", type=IndexConfig)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (IndexConfig(recall_min=1.5), "recall_min in 0..1"),
        (IndexConfig(exact_share=-1), "exact_share in 0..1"),
        (IndexConfig(kind="qdrant"), "the address of Qdrant, got none"),
        (IndexConfig(kind="qdrant", url=":memory:", timeout_s=0), "timeout_s and retry_s > 0"),
        (IndexConfig(kind="qdrant", url=":memory:", api_key_env="POCKETRANK_NO_SUCH_KEY"), "a variable that is set"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(config: IndexConfig, said: str) -> None:
    with pytest.raises(IndexConfigError, match=said):
        open_index(config)

"""What a function opens of a release: complete, exact, verified, and light to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from erless.dlrm.queries import QueryFile
from erless.dlrm.reference import Monolith
from erless.dlrm.tower import load_tower_file
from erless.serve.files import Source, open_gateway, open_shard, open_tower
from tests.conftest import ROOT
from tests.releases import Made
from tests.sharded import sharded_pool


def test_a_release_predicts_what_its_bundle_does(packed_release: Made) -> None:
    source = Source(packed_release.store)
    monolith = Monolith.load(packed_release.bundle)
    with open_tower(source, packed_release.release.digest) as opened:
        tower = load_tower_file(opened.path, opened.model)
        for query in QueryFile(packed_release.queries):
            pooled = sharded_pool(source, packed_release.release, query)
            found = tower(torch.from_numpy(query.dense), list(torch.from_numpy(pooled).unbind(1)))
            np.testing.assert_allclose(found, monolith.predict(query), rtol=1e-5)


def test_the_gateway_holds_residents_and_a_default_per_slice(packed_release: Made) -> None:
    release = packed_release.release
    with open_gateway(Source(packed_release.store), release.digest) as opened:
        assert [release.shards[number].name for number in opened.resident] == ["resident"]
        for number, shard in enumerate(release.shards):
            assert len(opened.defaults[number]) == len(shard.tables)
            assert all(np.isfinite(each).all() for each in opened.defaults[number])


def test_opening_twice_shares_pages_and_outlives_the_first(packed_release: Made) -> None:
    digest = packed_release.release.shards[1].digest
    source = Source(packed_release.store)
    with open_shard(source, digest) as first, open_shard(source, digest) as second:
        rows = first.shard.slices[0].rows.copy()
    np.testing.assert_array_equal(second.shard.slices[0].rows, rows)


def test_a_sparse_function_imports_nothing_heavy() -> None:
    program = (
        "import sys, erless.serve.files\n"
        "heavy = {'torch', 'boto3', 'botocore', 'pyarrow', 'scipy', 'typer', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("which", [1, 2])
def test_a_digest_that_is_not_there_is_told(packed_release: Made, which: int) -> None:
    from erless.errors import ArtifactError

    opener = open_shard if which == 1 else open_gateway
    with pytest.raises(ArtifactError, match="does not exist"):
        opener(Source(packed_release.store), "0" * 64)
    with pytest.raises(ArtifactError, match="is not a digest"):
        opener(Source(packed_release.store), "../../etc/passwd")


def test_a_store_that_is_not_there_is_told(tmp_path: Path) -> None:
    from erless.errors import StoreError

    with pytest.raises(StoreError, match="no such directory"):
        open_shard(Source(str(tmp_path / "nope")), "0" * 64)

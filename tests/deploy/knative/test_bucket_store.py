"""A release store in a bucket, as the verbs of a cluster and the conformance run use it."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from erless.deploy.desired_release import load_desired
from tests.buckets import S3
from tests.conformance.cluster import _copy_to_bucket
from tests.conftest import Cli
from tests.deploy.desired import IMAGES
from tests.releases import Made


def test_the_conformance_run_finds_its_release_in_a_bucket(s3: S3, packed_release: Made) -> None:
    """A folder store's list("") did not go into its folders, so nothing was copied."""
    for _ in range(2):  # a second run finds the files
        _copy_to_bucket(packed_release.store, s3.url, s3.endpoint_url)
    digest = packed_release.release.digest
    assert load_desired(s3.url, digest, s3.endpoint_url).release == packed_release.release


def test_the_configured_endpoint_is_used_by_the_verbs_own_reads(
    s3: S3, packed_release: Made, tmp_path: Path, cli: Cli
) -> None:
    """`targets.knative.endpoint_url` was for pods alone: `render` asked AWS, for a minute."""
    _copy_to_bucket(packed_release.store, s3.url, s3.endpoint_url)
    knative = {"endpoint_url": s3.endpoint_url, "images": IMAGES}
    config = {"store": s3.url, "targets": {"knative": knative}}
    (tmp_path / "erless.yaml").write_text(json.dumps(config))
    done = cli("render", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    environment = {
        variable["name"]: variable.get("value")
        for document in yaml.safe_load_all(done.stdout)
        if document["kind"] == "Service"
        for variable in document["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert environment["ERLESS_ENDPOINT_URL"] == s3.endpoint_url


def test_a_bucket_that_does_not_answer_is_no_full_disk(tmp_path: Path, cli: Cli) -> None:
    """The hint is chosen by what failed: nothing here is mended by freeing space."""
    knative = {"endpoint_url": "http://127.0.0.1:9", "images": IMAGES}
    config = {"store": "s3://recs/releases", "targets": {"knative": knative}}
    (tmp_path / "erless.yaml").write_text(json.dumps(config))
    done = cli("render", cwd=tmp_path)
    assert done.returncode == 1
    assert "endpoint_url" in done.stderr
    assert "free space" not in done.stderr

"""How the API server is reached: proxies, credentials, certificate authorities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from erless.deploy.kubernetes.api import connect
from erless.errors import ConfigError, DeployError, ErlessError
from erless.outbound import CA_VARIABLES, open_pool
from erless.storage.s3.bucket import S3Bucket
from tests.authority import private_authority
from tests.deploy.fake_cluster import FakeCluster
from tests.proxies import ProxyServer, proxy_server

NAMED = "api.cluster.invalid"  # known to no resolver: only a proxy leads there


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    yield fake
    fake.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxyServer]:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with proxy_server() as server:
        yield server


def kubeconfig(folder: Path, cluster: FakeCluster, **more: str) -> Path:
    port = cluster.url.rpartition(":")[2]
    return cluster.kubeconfig(folder, f"http://{NAMED}:{port}", **more)


def test_the_password_in_a_proxys_url_is_sent(
    cluster: FakeCluster, proxy: ProxyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    assert "gitVersion" in connect(kubeconfig(tmp_path, cluster)).call("GET", "/version")
    assert proxy.refused == []
    assert len(proxy.seen) == 1


def test_a_kubeconfigs_proxy_holds_whatever_no_proxy_says(
    cluster: FakeCluster, proxy: ProxyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    path = kubeconfig(tmp_path, cluster, **{"proxy-url": proxy.url})
    assert "gitVersion" in connect(path).call("GET", "/version")
    assert len(proxy.seen) == 1


def test_no_proxy_holds_for_the_environments_proxy(
    cluster: FakeCluster, proxy: ProxyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    path = kubeconfig(tmp_path, cluster)
    path.write_text(path.read_text().replace(NAMED, "127.0.0.1"))
    assert "gitVersion" in connect(path).call("GET", "/version")


def test_a_socks_proxy_is_refused_by_name_and_without_its_password(
    cluster: FakeCluster, proxy: ProxyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socks = "socks5://me:secret@127.0.0.1:1080"
    with pytest.raises(
        ConfigError, match="proxy-url is socks5://127.0.0.1:1080: only http"
    ) as caught:
        connect(kubeconfig(tmp_path, cluster, **{"proxy-url": socks}))
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("all_proxy", socks)
    with pytest.raises(ConfigError, match="environment's proxy is socks5://"):
        connect(kubeconfig(tmp_path, cluster))


@pytest.mark.parametrize("variable", CA_VARIABLES)
def test_a_private_authority_is_one_variable_for_every_client(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for other in CA_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    authority = private_authority(tmp_path)
    cluster.encrypt(authority.context())
    path = kubeconfig(tmp_path, cluster)
    path.write_text(path.read_text().replace("http:", "https:").replace(NAMED, "127.0.0.1"))
    with pytest.raises(DeployError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(path).call("GET", "/version", retry_s=0)
    monkeypatch.setenv(variable, str(authority.certificate))
    assert "gitVersion" in connect(path).call("GET", "/version")
    url = f"https://127.0.0.1:{cluster.url.rpartition(':')[2]}"
    assert open_pool(url, 5).request("GET", f"{url}/version").status == 200
    bucket = S3Bucket("s3://recs/releases", url, attempts=1)
    with pytest.raises(ErlessError) as refused, bucket.errors("list"):
        bucket.client.list_objects_v2(Bucket="recs")
    assert "SSL" not in str(refused.value)  # it answered, and is no S3
    monkeypatch.setenv(variable, str(tmp_path / "absent.pem"))
    with pytest.raises(ConfigError, match=rf"{variable} is .*absent\.pem"):
        connect(path)

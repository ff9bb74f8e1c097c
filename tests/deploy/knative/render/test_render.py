"""The objects: golden files that people review, and the rules behind them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from erless.deploy.infra import read_infra
from erless.deploy.knative.render import Rendered, render
from erless.deploy.knative.render.scaling import scaling_annotations
from erless.deploy.knative.schema import check_objects, findings
from erless.deploy.kubernetes.cluster_settings import ClusterSettings, resolve_settings
from erless.deploy.kubernetes.names import DISK, GATEWAY, SIZING, Scope
from erless.deploy.kubernetes.pod_sizing import PodSizing
from erless.deploy.kubernetes.render.functions import DEADLINE_S
from erless.errors import ConfigError, DeployError, PlanError
from erless.specs.config import Config, FreshnessConfig, GatewayConfig
from erless.specs.functions import FunctionKind
from erless.specs.plan import Scaling, Tier
from tests.deploy.desired import IMAGES, cluster_settings, desired, digest_of, with_status
from tests.deploy.infra_outputs import write_outputs

SCOPE = Scope("erless")
GOLDEN = Path(__file__).with_name("golden")


def full_settings(tmp_path: Path) -> ClusterSettings:
    """Everything switched on, on what Terraform made."""
    config = Config.model_validate(
        {
            "gateway": {"visibility": "public", "hedge": True, "grpc": True},
            "targets": {
                "knative": {
                    "images": IMAGES,
                    "pod_monitor": True,
                    "token_secret": "gateway-token",
                    "image_pull_secrets": ["registry"],
                    "cpu_limits": True,
                }
            },
        }
    )
    return resolve_settings(config, read_infra(write_outputs(tmp_path / "outputs.json")))


def scenario(name: str, tmp_path: Path) -> Rendered:
    if name == "folder":  # a folder store on a small cluster, keys from a Secret
        options = {"cpu_overcommit": 4, "credentials_secret": "store-keys", "min_window_s": 10}
        return render(desired(store="/srv/releases"), cluster_settings(**options))
    return render(desired(dense=True), full_settings(tmp_path))


@pytest.mark.parametrize("name", ["folder", "cloud"])
def test_objects_are_the_reviewed_ones(name: str, tmp_path: Path) -> None:
    """Write the file anew by deleting it, and read the difference before committing it."""
    objects = scenario(name, tmp_path).objects
    path = GOLDEN / f"{name}.yaml"
    for each in objects:
        each["metadata"]["labels"]["app.kubernetes.io/version"] = "VERSION"
    text = yaml.safe_dump_all(objects, sort_keys=False, width=1000)
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path} was absent and is written: review it")
    assert text == path.read_text()


@pytest.mark.parametrize("name", ["folder", "cloud"])
def test_objects_are_valid_and_stable(name: str, tmp_path: Path) -> None:
    first, second = scenario(name, tmp_path), scenario(name, tmp_path)
    check_objects(first.objects)
    assert json.dumps(first.objects) == json.dumps(second.objects)
    digest = desired(dense=name == "cloud").release.digest
    for each in first.objects:
        assert each["metadata"]["annotations"]["erless.dev/release"] == digest
        assert each["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "erless"


def empty_lists(value: Any, path: str = "") -> Iterator[str]:
    if value == []:
        yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from empty_lists(item, f"{path}.{key}")


@pytest.mark.parametrize("name", ["folder", "cloud"])
def test_no_list_is_empty(name: str, tmp_path: Path) -> None:
    """A real API server stores none, so that each apply of one was a change of its own."""
    assert [found for each in scenario(name, tmp_path).objects for found in empty_lists(each)] == []


def revision_annotations(rendered: Rendered, name: str) -> dict[str, str]:
    service = next(each for each in rendered.functions if each["metadata"]["name"] == name)
    found: dict[str, str] = service["spec"]["template"]["metadata"]["annotations"]
    return found


def test_cold_and_frozen_shards_may_reach_zero_and_all_start_once() -> None:
    rendered = render(desired(), cluster_settings())
    lowest = {}
    for tier in (Tier.HOT, Tier.COLD, Tier.FROZEN):
        version = "1"
        found = revision_annotations(rendered, SCOPE.shard(digest_of(f"{tier.value}-{version}")))
        lowest[tier.value] = found["autoscaling.knative.dev/min-scale"]
        assert int(found["autoscaling.knative.dev/initial-scale"]) >= 1
        assert found["autoscaling.knative.dev/metric"] == "rps"
    assert lowest == {"hot": "2", "cold": "0", "frozen": "0"}


def test_next_release_shares_unchanged_functions_and_nothing_of_the_gateway() -> None:
    """An unchanged shard's template is equal, byte for byte, so Knative makes no new revision."""
    old, new = render(desired("1"), cluster_settings()), render(desired("2"), cluster_settings())
    before = {each["metadata"]["name"]: each["spec"] for each in old.functions}
    after = {each["metadata"]["name"]: each["spec"] for each in new.functions}
    shared = before.keys() & after.keys()
    assert len(shared) == 2  # hot and frozen; cold differs
    assert all(before[name] == after[name] for name in shared)
    assert old.revision != new.revision
    assert old.gateway["spec"]["traffic"] == [
        {"revisionName": old.revision, "percent": 100, "latestRevision": False}
    ]


def test_revision_is_named_for_its_release_and_settings() -> None:
    first = render(desired(), cluster_settings())
    assert desired().release.digest[:16] in first.revision
    again = render(desired(), cluster_settings(cpu_overcommit=2))
    assert first.revision != again.revision  # Knative refuses another template under a used name
    assert first.revision == render(desired(), cluster_settings()).revision


def test_gateway_calls_exactly_its_releases_shards() -> None:
    wanted = desired()
    container = render(wanted, cluster_settings()).gateway["spec"]["template"]["spec"][
        "containers"
    ][0]
    environment = {each["name"]: each["value"] for each in container["env"]}
    urls = json.loads(environment["ERLESS_SHARD_URLS"])
    assert urls == {
        each.digest: f"http://{Scope('erless').shard(each.digest)}.erless.svc.cluster.local"
        for each in wanted.release.remote
    }
    assert environment["ERLESS_RELEASE"] == wanted.release.digest


def test_memory_is_rows_and_code_and_a_margin() -> None:
    rendered = render(desired(), cluster_settings())
    for service in rendered.functions:
        container = service["spec"]["template"]["spec"]["containers"][0]
        amount = container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"]["memory"] == amount
        digest = service["metadata"]["annotations"]["erless.dev/digest"]
        wanted = desired()
        shard = next(each for each in wanted.release.remote if each.digest == digest)
        plan = next(each for each in wanted.plan.shards if each.name == shard.name)
        assert int(amount.removesuffix("Mi")) * 2**20 >= 1.1 * plan.memory_bytes


def spec_of(rendered: Rendered, tier: Tier) -> dict[str, Any]:
    """The revision's spec of the shard of `tier`."""
    name = SCOPE.shard(digest_of(f"{tier.value}-1"))
    service = next(each for each in rendered.functions if each["metadata"]["name"] == name)
    found: dict[str, Any] = service["spec"]["template"]["spec"]
    return found


def test_large_shards_at_zero_get_longer_timeouts_and_deadlines() -> None:
    slow = render(desired(), cluster_settings(load_mb_per_s=0.5))
    assert spec_of(slow, Tier.FROZEN)["timeoutSeconds"] > 200
    environment = {
        each["name"]: each.get("value")
        for each in slow.gateway["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    gateway_s = slow.gateway["spec"]["template"]["spec"]["timeoutSeconds"]
    assert 200 < int(environment["ERLESS_DEADLINE_MS"]) / 1000 < gateway_s
    deadlines = [
        each["spec"]["template"]["metadata"]["annotations"]["serving.knative.dev/progress-deadline"]
        for each in slow.functions
    ]
    assert max(int(each.removesuffix("s")) for each in deadlines) > 600


def test_a_hung_process_is_found_within_10_s_and_gone_before_queries_give_up() -> None:
    """Knative sets the pod's termination grace to the revision's timeout (deploy.go)."""
    slow = render(desired(), cluster_settings(load_mb_per_s=0.5))
    for tier in (Tier.HOT, Tier.COLD):
        spec = spec_of(slow, tier)
        container = spec["containers"][0]
        probe = container["livenessProbe"]
        worst_s = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
        assert worst_s <= 10
        assert probe["initialDelaySeconds"] >= 30  # a slow start up to listening is no hang
        drain_s = next(
            float(each["value"]) for each in container["env"] if each["name"] == "ERLESS_DRAIN_S"
        )
        assert spec["timeoutSeconds"] > drain_s
    # it always runs, so no query of it waits for a cold start, however long that would be; and one
    # that waits on a hung replica is answered by the next: found, killed, started again
    assert worst_s + spec_of(slow, Tier.HOT)["timeoutSeconds"] + 5 <= DEADLINE_S
    patient = render(desired(), replace(cluster_settings(), sla_ms=2_500.0))
    assert spec_of(patient, Tier.HOT)["timeoutSeconds"] == 25


def test_a_hung_replica_gets_no_new_queries_after_5_s() -> None:
    """Without a period Knative's are the kubelet's: every 10 s, the third failure counts."""
    rendered = render(desired(dense=True), cluster_settings())
    for service in (*rendered.functions, rendered.gateway):
        probe = service["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]
        asks_s = probe["failureThreshold"] * max(probe["timeoutSeconds"], probe["periodSeconds"])
        assert probe["periodSeconds"] + asks_s <= 5


def test_a_cold_start_that_knative_would_cut_off_is_refused_by_name() -> None:
    """115 MB at 0.15 MB/s take 780 s; Knative's default allows 600 s."""
    with pytest.raises(ConfigError, match=r"frozen-0 needs up to 7\d\d s .* may take 600 s"):
        render(desired(), cluster_settings(load_mb_per_s=0.15))
    allowed = render(desired(), cluster_settings(load_mb_per_s=0.15, max_timeout_s=900))
    assert 700 < spec_of(allowed, Tier.FROZEN)["timeoutSeconds"] < 900


@pytest.mark.parametrize(
    ("field", "value"),
    [("window_s", 7200.0), ("window_s", 3.0), ("scale_down_delay_s", 4000), ("retention_s", 9999)],
)
def test_scaling_outside_knatives_bounds_is_refused_not_bent(field: str, value: float) -> None:
    scaling = Scaling.model_validate({field: value})
    with pytest.raises(PlanError, match=rf"hot-0: .* of {value:g} s; Knative allows"):
        scaling_annotations("hot-0", scaling)


def test_replicas_that_a_cold_shard_was_planned_with_are_kept() -> None:
    """`--min-replicas cold=2`: what the plan says, not what the tier usually does."""
    found = scaling_annotations("cold-0", Scaling(min_scale=2, max_scale=4))
    assert found["autoscaling.knative.dev/min-scale"] == "2"


def test_every_container_has_a_memory_limit_under_a_quota() -> None:
    """A ResourceQuota on limits.memory refuses a pod of which one container has none."""
    rendered = render(desired(dense=True), cluster_settings())
    for service in (*rendered.functions, rendered.gateway):
        notes = service["spec"]["template"]["metadata"]["annotations"]
        for name in ("memory-resource-request", "memory-resource-limit", "cpu-resource-request"):
            assert notes[f"queue.sidecar.serving.knative.dev/{name}"]
    notes = render(desired(), cluster_settings(cpu_limits=True)).gateway["spec"]["template"]
    assert "queue.sidecar.serving.knative.dev/cpu-resource-limit" in str(notes)


def test_an_overload_leaves_knatives_container_its_memory() -> None:
    """Measured: 25 MiB, and 0.1 MiB for each request at once; a process of ours takes 4096."""
    key = "queue.sidecar.serving.knative.dev/memory-resource-{}"

    def notes(**options: Any) -> dict[str, str]:
        gateway = render(desired(), cluster_settings(**options)).gateway
        return dict(gateway["spec"]["template"]["metadata"]["annotations"])

    assert float(notes()[key.format("limit")].removesuffix("Mi")) >= 25 + 0.1 * 4096
    asked = notes(queue_proxy_memory_mb=800)  # Kubernetes refuses a limit below the request
    assert asked[key.format("limit")] == asked[key.format("request")] == "800Mi"


def test_a_gateway_planned_with_two_replicas_gets_a_disruption_budget() -> None:
    budgets = {
        each["metadata"]["name"]
        for each in render(desired(gateway_min_scale=2), cluster_settings()).extras
        if each["kind"] == "PodDisruptionBudget"
    }
    assert GATEWAY in budgets
    assert GATEWAY not in str(render(desired(), cluster_settings()).extras)


def test_what_cannot_be_deployed_is_refused() -> None:
    with pytest.raises(ConfigError, match="no image for sparse"):
        render(desired(), ClusterSettings(Config().targets.knative, {}))
    tagged: dict[FunctionKind, str] = {**IMAGES, "sparse": "registry.example/sparse:latest"}
    with pytest.raises(ConfigError, match="not named by digest"):
        render(desired(), ClusterSettings(Config().targets.knative, tagged))
    with pytest.raises(ConfigError, match="relative folder"):
        render(desired(store="releases"), cluster_settings())
    secured = Config(gateway=GatewayConfig(token_env="TOKEN"))  # noqa: S106
    with pytest.raises(ConfigError, match="token_secret"):
        resolve_settings(secured)
    for keys, fact in (
        ({"gateway": {"tokens_file": "tokens"}}, "token_secret"),
        ({"gateway": {"tls": {"certificate": "c", "key": "k"}}}, "external-domain-tls"),
        ({"security": {"mutual_tls": True}}, "system-internal-tls"),
    ):
        with pytest.raises(ConfigError, match=fact):
            resolve_settings(Config.model_validate(keys))


CONTAINER = "spec/template/spec/containers/0"


@pytest.mark.parametrize(
    ("path", "value", "fact"),
    [
        ("spec/template/spec/replicas", 3, "no such field"),
        ("spec/template/spec/hostNetwork", True, "no such field"),
        ("spec/template/spec/timeoutSeconds", 0, "not positive"),
        (f"{CONTAINER}/image", "sparse:latest", "not named by digest"),
        (f"{CONTAINER}/imag", "x", "no such field"),
        (f"{CONTAINER}/env/0/name", "PORT", "reserved"),
        (f"{CONTAINER}/resources/limits/memory", "1 GB", "not a quantity"),
        (f"{CONTAINER}/ports/0/containerPort", "8080", "not of type int"),
        (f"{CONTAINER}/volumeMounts/0/name", "nowhere", "no volume"),
        (f"{CONTAINER}/volumeMounts/0/mountPath", None, "missing"),
        (f"{CONTAINER}/readinessProbe/periodSeconds", 0, "without a period"),
        # Kubernetes knows these two, Knative's definition of a Service does not
        (f"{CONTAINER}/livenessProbe/terminationGracePeriodSeconds", 1, "no such field"),
        (f"{CONTAINER}/securityContext/procMount", "Default", "no such field"),
        ("metadata/name", "Erless_S", "DNS name"),
        ("metadata/labels/erless.dev~release", "x" * 64, "not a label"),
        ("spec/traffic/0/percent", 90, "sum to 100"),
        (
            "spec/template/metadata/annotations/autoscaling.knative.dev~window",
            "5s",
            "not within 6s",
        ),
        (
            "spec/template/metadata/annotations/autoscaling.knative.dev~max-scale",
            "1",
            "less than min-scale",
        ),
    ],
)
def test_schemas_find_what_a_server_would_refuse(path: str, value: Any, fact: str) -> None:
    document = copy.deepcopy(render(desired(), cluster_settings()).functions[0])
    place: Any = document
    *parents, last = [part.replace("~", "/") for part in path.split("/")]
    for key in parents:
        place = place[int(key)] if key.isdigit() else place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    if "max-scale" in path:
        place["autoscaling.knative.dev/min-scale"] = "2"
    found = list(findings(document))
    assert any(fact in each for each in found), found
    with pytest.raises(DeployError, match="Service"):
        check_objects([document])


def container_of(objects: Rendered, digest: str) -> dict[str, Any]:
    service = next(
        each for each in objects.functions if each["metadata"]["name"] == SCOPE.shard(digest)
    )
    found: dict[str, Any] = service["spec"]["template"]["spec"]["containers"][0]
    return found


def test_a_shard_of_the_disk_tier_takes_disk_instead_of_memory() -> None:
    wanted, plain = desired(on_disk=(Tier.FROZEN,)), desired()
    digest = wanted.release.shard("frozen-0").digest
    rendered = render(wanted, cluster_settings())
    check_objects(rendered.objects)
    on_disk = container_of(rendered, digest)["resources"]
    in_memory = container_of(render(plain, cluster_settings()), digest)["resources"]
    kept = int(on_disk["requests"]["ephemeral-storage"].removesuffix("Mi"))
    assert kept << 20 > wanted.release.shard("frozen-0").size_bytes
    assert "ephemeral-storage" not in in_memory["requests"]
    memory = [int(each["limits"]["memory"].removesuffix("Mi")) for each in (on_disk, in_memory)]
    assert memory[1] - memory[0] > 100  # 115 MB of rows
    noted = [each["metadata"]["annotations"].get(DISK) for each in rendered.functions]
    assert set(noted) == {None, str(wanted.release.shard("frozen-0").size_bytes)}


def test_functions_get_memory_for_changed_rows() -> None:
    wanted, settings = desired(on_disk=(Tier.FROZEN,)), cluster_settings()
    fresh = replace(settings, freshness=FreshnessConfig(memory_share=0.5))
    for shard in wanted.release.remote:
        before, after = (
            container_of(render(wanted, each), shard.digest) for each in (settings, fresh)
        )
        names = [{each["name"] for each in made["env"]} for made in (before, after)]
        memory = [
            int(made["resources"]["limits"]["memory"].removesuffix("Mi")) << 20
            for made in (before, after)
        ]
        if shard.cache_bytes is not None:
            assert (before, memory[0]) == (after, memory[1]), "changed rows of a disk lie beside"
            continue
        assert names[1] - names[0] == {"ERLESS_REWRITTEN_BYTES"}
        given = {each["name"]: each.get("value") for each in after["env"]}
        assert int(given["ERLESS_REWRITTEN_BYTES"]) == shard.row_bytes / 2
        assert memory[1] - memory[0] >= shard.row_bytes / 2 - 2**20


def test_a_disk_that_is_not_the_pod_s_own_is_not_reserved() -> None:
    wanted = desired(store="/srv/releases", on_disk=(Tier.FROZEN,))
    digest = wanted.release.shard("frozen-0").digest
    container = container_of(render(wanted, cluster_settings()), digest)
    assert "ephemeral-storage" not in container["resources"]["requests"]


@pytest.mark.parametrize(
    ("store", "endpoint", "ports"),
    [
        ("/srv/releases", None, []),
        ("s3://bucket/releases", None, [443]),
        ("s3://bucket/releases", "http://minio:9000", [443, 9000]),
        ("s3://bucket/releases", "http://minio", [80, 443]),
    ],
)
def test_functions_connect_to_the_store_and_the_gateway_to_the_ingress(
    store: str, endpoint: str | None, ports: list[int]
) -> None:
    def spec(name: str, **options: Any) -> dict[str, Any]:
        rendered = render(desired(store=store), cluster_settings(endpoint_url=endpoint, **options))
        (found,) = [each["spec"] for each in rendered.base if each["metadata"]["name"] == name]
        return dict(found)

    shards = spec("erless-shards").get("egress", [])
    gateway = spec("erless-gateway")["egress"]
    anywhere = [each["port"] for rule in shards if "to" not in rule for each in rule["ports"]]
    assert [port for port in anywhere if port not in (53, 5353)] == ports
    assert bool(shards) == bool(ports)  # a folder takes no connection, and so no name
    assert spec("erless-shards")["policyTypes"] == ["Ingress", "Egress"]
    spaces = [
        peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for rule in gateway
        for peer in rule.get("to", ())
        if "namespaceSelector" in peer
    ]
    assert "kourier-system" in spaces
    assert spec("erless-shards", egress="any")["policyTypes"] == ["Ingress"]


def test_functions_connect_to_the_collector_of_traces() -> None:
    config = Config.model_validate(
        {"traces": {"endpoint": "http://tempo:4318"}, "targets": {"knative": {"images": IMAGES}}}
    )
    rendered = render(desired(store="/srv/releases"), resolve_settings(config))
    egress = [each["spec"]["egress"] for each in rendered.base if "egress" in each.get("spec", {})]
    assert len(egress) == 2
    assert all({"ports": [{"protocol": "TCP", "port": 4318}]} in rules for rules in egress)


def test_replicas_are_spread_over_zones_and_have_their_priority() -> None:
    placement = {"gateway": {"priority_class": "serving"}, "frozen": {"priority_class": "spare"}}
    zone = "topology.kubernetes.io/zone"
    rendered = render(desired(), cluster_settings(spread_over=zone, placement=placement))
    check_objects(rendered.objects)
    for service in (*rendered.functions, rendered.gateway):
        template = service["spec"]["template"]
        (spread,) = template["spec"]["topologySpreadConstraints"]
        assert spread["topologyKey"] == zone
        selector = spread["labelSelector"]["matchLabels"].items()
        assert selector <= template["metadata"]["labels"].items()
        assert (
            "erless.dev/digest",
            template["metadata"]["labels"]["erless.dev/digest"],
        ) in selector
    assert rendered.gateway["spec"]["template"]["spec"]["priorityClassName"] == "serving"
    assert spec_of(rendered, Tier.FROZEN)["priorityClassName"] == "spare"
    assert "priorityClassName" not in spec_of(rendered, Tier.HOT)


def test_pods_that_are_resized_carry_their_sizing_and_are_added_last() -> None:
    wanted = with_status(desired())
    target = "autoscaling.knative.dev/target"
    for resize in (False, True):
        settings = cluster_settings(cpu_limits=True, cpu_overcommit=4, resize=resize)
        rendered = render(wanted, settings)
        template = rendered.functions[0]["spec"]["template"]
        notes = template["metadata"]["annotations"]
        if resize:
            sizing = PodSizing.model_validate_json(notes[SIZING])
            # 0.5 vCPU are one process, which uses no more than one
            assert (sizing.vcpu, sizing.most_vcpu, sizing.requests_per_vcpu_s) == (0.5, 1.0, 800.0)
            assert (sizing.utilisation, sizing.overcommit) == (0.7, 4)
            assert notes[target] == "1400"
        else:
            assert SIZING not in notes and notes[target] == "700"
        assert SIZING not in rendered.gateway["spec"]["template"]["metadata"]["annotations"]
    with pytest.raises(ValidationError, match="set cpu_limits: true too"):
        cluster_settings(resize=True)

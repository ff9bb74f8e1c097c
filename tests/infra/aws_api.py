"""An AWS API on loopback: moto's server, and the parts of EKS's API that moto lacks.

    python -m tests.infra.aws_api PORT_FILE

moto (5.2) knows EKS clusters and node groups, but no add-ons, access entries or pod identity
associations, forgets a cluster's access config, makes no autoscaling group for a node group but an
SSH key that nobody asked for, and mixes a launch template's own tags into its content. `EksExtras`
stands in front and mends that, in the shapes of the EKS API, so that an example is applied whole.
A bucket that denies plain HTTP stays usable: loopback counts as TLS here. Budgets remember their
subscribers.
"""

from __future__ import annotations

import io
import json
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import boto3
import pytest
from moto.ec2.models import EC2Backend
from moto.iam.access_control import IAMPolicyStatement, PermissionResult
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

App = Callable[..., Iterable[bytes]]
ACCOUNT = "123456789012"
BUDGETS = "AWSBudgetServiceGateway."
TLS = {"aws:SecureTransport", "s3:TlsVersion"}
EXTRAS = re.compile(
    r"^/clusters/(?P<cluster>[^/]+)/"
    r"(?P<kind>addons|access-entries|pod-identity-associations)(?:/(?P<name>.+))?$"
)


class EksExtras:
    """WSGI middleware: EKS's add-ons, access entries and pod identity associations."""

    def __init__(self, inner: App, url: str) -> None:
        self._inner = inner
        self._autoscaling = boto3.client(
            "autoscaling",
            "us-east-1",
            endpoint_url=url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",  # noqa: S106
        )
        self._lock = threading.Lock()
        self._things: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._policies: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        self._created_with: dict[str, dict[str, Any]] = {}
        self._subscribers: dict[tuple[str, str, float], list[dict[str, str]]] = {}
        self._update_configs: dict[str, dict[str, Any]] = {}

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = unquote(environ.get("RAW_URI", environ["PATH_INFO"]).partition("?")[0])
        match = EXTRAS.match(path)
        if match:
            request = Request(environ)
            body = json.loads(request.get_data() or b"{}")
            with self._lock:
                answer = self._extra(request.method, body, **match.groupdict())
            return answer(environ, start)
        if environ.get("HTTP_X_AMZ_TARGET", "").startswith(BUDGETS):
            return self._budgets(environ, start)
        if re.fullmatch(r"/clusters(/[^/]+)?", path):
            return self._cluster(environ, start)
        if re.fullmatch(r"/clusters/[^/]+/node-groups(/[^/]+)?", path):
            return self._node_group(environ, start)
        return self._inner(environ, start)

    def _budgets(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Pass on, and remember and tell the subscribers, which moto does not."""
        verb, sent = environ["HTTP_X_AMZ_TARGET"].removeprefix(BUDGETS), _body(environ)
        notes = sent.get("NotificationsWithSubscribers", [sent] if "Subscribers" in sent else [])
        for note in notes:
            self._subscribers[_key(note["Notification"])] = note["Subscribers"]
        if verb == "DescribeSubscribersForNotification":
            subscribers = self._subscribers[_key(sent["Notification"])]
            return _json({"Subscribers": subscribers})(environ, start)
        if verb == "ListTagsForResource":
            return _json({"ResourceTags": []})(environ, start)
        return self._inner(environ, start)

    def _node_group(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Pass on, and make or delete the node group's autoscaling group, as EKS does."""
        method = environ["REQUEST_METHOD"]
        sent = _body(environ)
        answer = Response.from_app(self._inner, environ)
        document = json.loads(answer.get_data())
        group = document.get("nodegroup")
        if group:
            if method == "POST":
                self._update_configs[group["nodegroupArn"]] = sent.get("updateConfig", {})
            group["updateConfig"] = self._update_configs[group["nodegroupArn"]]
            group.pop("remoteAccess", None)
            group.pop("diskSize", None)  # the launch template's
            answer.set_data(json.dumps(document))
        if group and method in {"POST", "DELETE"}:
            name = group["resources"]["autoScalingGroups"][0]["name"]
            if method == "POST":
                self._autoscaling.create_auto_scaling_group(
                    AutoScalingGroupName=name,
                    MinSize=0,
                    DesiredCapacity=0,  # moto's instances would be of no use
                    MaxSize=group["scalingConfig"]["maxSize"],
                    VPCZoneIdentifier=",".join(group["subnets"]),
                    LaunchTemplate={"LaunchTemplateId": group["launchTemplate"]["id"]},
                )
            else:
                self._autoscaling.delete_auto_scaling_group(
                    AutoScalingGroupName=name, ForceDelete=True
                )
        return answer(environ, start)

    def _cluster(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Pass on, and keep what moto forgets of a cluster: its access config."""
        sent = _body(environ)
        answer = Response.from_app(self._inner, environ)
        if answer.status_code == 200:
            document = json.loads(answer.get_data())
            cluster = document.get("cluster", {})
            if environ["REQUEST_METHOD"] == "POST":
                self._created_with[cluster["name"]] = sent
            access = self._created_with.get(cluster.get("name"), {}).get("accessConfig")
            if access:
                cluster["accessConfig"] = access
                answer.set_data(json.dumps(document))
        return answer(environ, start)

    def _extra(
        self, method: str, body: dict[str, Any], cluster: str, kind: str, name: str | None
    ) -> Response:
        if cluster not in self._created_with:
            return _missing(f"No cluster found for name: {cluster}.")
        if kind == "access-entries" and name and "/access-policies" in name:
            principal, _, policy = name.partition("/access-policies")
            return self._policy(method, body, (cluster, principal), policy.lstrip("/"))
        if name is None:
            return (
                self._create(cluster, kind, body) if method == "POST" else self._all(cluster, kind)
            )
        key = (cluster, kind, name)
        if key not in self._things:
            return _missing(f"No {kind} found: {name}")
        document = self._things.pop(key) if method == "DELETE" else self._things[key]
        return _json({_NAMES[kind]: document})

    def _all(self, cluster: str, kind: str) -> Response:
        names = [key[2] for key in self._things if key[:2] == (cluster, kind)]
        if kind == "pod-identity-associations":
            return _json({"associations": [self._things[cluster, kind, name] for name in names]})
        return _json({"addons" if kind == "addons" else "accessEntries": names})

    def _create(self, cluster: str, kind: str, body: dict[str, Any]) -> Response:
        now = time.time()
        arn = f"arn:aws:eks:us-east-1:{ACCOUNT}"
        common = {
            "clusterName": cluster,
            "createdAt": now,
            "modifiedAt": now,
            "tags": body.get("tags", {}),
        }
        if kind == "addons":
            name = body["addonName"]
            roles = body.get("podIdentityAssociations", ())
            linked = [self._associate(cluster, name, each)["associationArn"] for each in roles]
            document = {
                **common,
                "addonName": name,
                "status": "ACTIVE",
                "health": {"issues": []},
                "addonVersion": body.get("addonVersion", "v1.0.0-eksbuild.1"),
                "addonArn": f"{arn}:addon/{cluster}/{name}/{uuid.uuid4()}",
                "podIdentityAssociations": linked,
            }
        elif kind == "access-entries":
            name = body["principalArn"]
            user = body.get("username", name)
            document = {
                **common,
                "principalArn": name,
                "username": user,
                "type": body.get("type", "STANDARD"),
                "kubernetesGroups": body.get("kubernetesGroups", []),
                "accessEntryArn": f"{arn}:access-entry/{cluster}/{uuid.uuid4()}",
            }
        else:
            return _json({"association": self._associate(cluster, "", body)})
        if (cluster, kind, name) in self._things:
            return _json({"message": f"{name} exists"}, 409, "ResourceInUseException")
        self._things[cluster, kind, name] = document
        return _json({_NAMES[kind]: document})

    def _associate(self, cluster: str, addon: str, body: dict[str, Any]) -> dict[str, Any]:
        name = f"a-{uuid.uuid4().hex[:17]}"
        arn = f"arn:aws:eks:us-east-1:{ACCOUNT}:podidentityassociation/{cluster}/{name}"
        now = time.time()
        made = self._things[cluster, "pod-identity-associations", name] = {
            "clusterName": cluster,
            "associationId": name,
            "associationArn": arn,
            "namespace": body.get("namespace", "kube-system"),
            "roleArn": body["roleArn"],
            "serviceAccount": body["serviceAccount"],
            "tags": body.get("tags", {}),
            "createdAt": now,
            "modifiedAt": now,
            "ownerArn": addon or None,
        }
        return made

    def _policy(
        self, method: str, body: dict[str, Any], owner: tuple[str, str], policy: str
    ) -> Response:
        policies = self._policies.setdefault(owner, {})
        now = time.time()
        if method == "POST":
            made = {
                "policyArn": body["policyArn"],
                "accessScope": body["accessScope"],
                "associatedAt": now,
                "modifiedAt": now,
            }
            policies[body["policyArn"]] = made
            return _json(
                {"clusterName": owner[0], "principalArn": owner[1], "associatedAccessPolicy": made}
            )
        if method == "DELETE":
            policies.pop(policy, None)
            return _json({})
        return _json(
            {
                "clusterName": owner[0],
                "principalArn": owner[1],
                "associatedAccessPolicies": list(policies.values()),
            }
        )


_NAMES = {
    "addons": "addon",
    "access-entries": "accessEntry",
    "pod-identity-associations": "association",
}


def _key(notification: dict[str, Any]) -> tuple[str, str, float]:
    """What tells one notification of a budget from another."""
    return (
        notification["NotificationType"],
        notification["ComparisonOperator"],
        float(notification["Threshold"]),
    )


def _body(environ: dict[str, Any]) -> dict[str, Any]:
    """The JSON that was sent; moto reads it once more."""
    data = Request(environ).get_data()
    environ["wsgi.input"] = io.BytesIO(data)
    return dict(json.loads(data)) if data else {}


def count_loopback_as_tls() -> None:
    """moto takes every statement with a condition for a denial; here, TLS 1.3 is what came."""
    original = IAMPolicyStatement.is_action_permitted

    def permitted(self: Any, *arguments: Any, **more: Any) -> PermissionResult:
        keys = {key for test in self._statement.get("Condition", {}).values() for key in test}
        if self._statement["Effect"] == "Deny" and keys and keys <= TLS:
            return PermissionResult.NEUTRAL
        return original(self, *arguments, **more)

    pytest.MonkeyPatch().setattr(IAMPolicyStatement, "is_action_permitted", permitted)


def keep_tags_apart() -> None:
    """Keep a launch template's own tags out of its content, as AWS does."""
    original = EC2Backend.create_launch_template

    def create(self: EC2Backend, name: str, description: str, data: Any, tags: Any) -> Any:
        specifications = [
            entry
            for entry in data.get("TagSpecifications", ())
            if entry["ResourceType"] != "launch-template"
        ]
        return original(
            self, name, description, {**data, "TagSpecifications": specifications}, tags
        )

    pytest.MonkeyPatch().setattr(EC2Backend, "create_launch_template", create)


def _json(document: dict[str, Any], status: int = 200, error: str = "") -> Response:
    answer = Response(json.dumps(document), status, content_type="application/json")
    if error:
        answer.headers["x-amzn-ErrorType"] = error
    return answer


def _missing(message: str) -> Response:
    return _json({"message": message}, 404, "ResourceNotFoundException")


class Quiet(WSGIRequestHandler):
    """Says nothing of each request."""

    def log_request(self, *_: object) -> None:
        """No line."""


def main() -> None:
    """Serve on a free port of loopback; write the port to the file named as the argument."""
    keep_tags_apart()
    count_loopback_as_tls()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        moto = DomainDispatcherApplication(create_backend_app)
        app = EksExtras(moto, f"http://127.0.0.1:{port}")
        listener.listen(128)
        server = make_server(
            "127.0.0.1", port, app, threaded=True, request_handler=Quiet, fd=listener.detach()
        )
    target = Path(sys.argv[1])
    stage = target.with_suffix(".tmp")
    stage.write_text(str(port))
    stage.rename(target)
    server.serve_forever()


if __name__ == "__main__":
    main()

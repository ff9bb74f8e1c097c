"""`erless autoscale`: the controller that grows and shrinks pods in place."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from erless.cli.cluster.cluster_options import ClusterTargetOptions, cluster_settings_of
from erless.cli.option_groups import grouped
from erless.cli.run import Output, OutputOption, note, verb

__all__ = ["autoscale"]


@verb
@grouped
def autoscale(
    cluster: ClusterTargetOptions,
    access: Annotated[
        bool, typer.Option("--access", help="Print the account that it needs (YAML), and end.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Change the vCPU of a cluster's pods in place, as the load rises and falls.

    For a release whose plan has `planner.autoscaler: status`, deployed with
    `resize` of its target. Runs until it is ended; pods then keep what they have, and the next
    run goes on from there. Of several one is at work, and the next takes over within seconds of its
    end. With -o json each change is a line.

    Example: `erless autoscale --namespace recs`, `erless autoscale --access | kubectl apply -f -`
    """
    import yaml

    from erless.autoscale.kpa import TICK_S
    from erless.deploy.cluster.settings import autoscaler_access
    from erless.deploy.kubernetes.api import connect
    from erless.deploy.kubernetes.lock import leading
    from erless.deploy.kubernetes.pod_autoscaler import PodAutoscaler
    from erless.errors import DeployError

    config = cluster.config()
    settings = cluster_settings_of(config, None, cluster.chosen(config))
    if access:
        print(yaml.safe_dump_all(autoscaler_access(settings.options.namespace), sort_keys=False))
        return
    api = connect(settings.options.kubeconfig, settings.options.context)
    while True:
        with leading(api, settings.scope) as leads:
            autoscaler = PodAutoscaler(api, settings.scope)
            note(f"looks after the pods in {settings.options.namespace} every {TICK_S:g} s")
            while leads():
                began = time.monotonic()
                try:
                    for resized in autoscaler.tick():
                        if output is Output.JSON:
                            print(json.dumps(resized._asdict()), flush=True)
                        else:
                            note(str(resized))
                except DeployError as error:
                    note(f"not this time: {error}")
                time.sleep(max(0.0, began + TICK_S - time.monotonic()))
        note("another looks after them now; waits for its end")

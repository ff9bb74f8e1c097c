"""The verbs by name; a verb's module is imported when it is called or its own help is shown.

`erless --help` and a mistyped verb need no more than the names and lines below: importing all verbs
and converting their options takes longer than drawing the help.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

__all__ = ["MARKUP", "VERBS", "Verbs"]

MARKUP: Final = "markdown"

# In the order in which a user meets them: name → where it is, and its line in `erless --help`, the
# first of its own help.
VERBS: dict[str, tuple[str, str]] = {
    "demo": (
        "demo.verb:demo",
        "Serve a model by shards on this machine, in about a minute, and show what it takes.",
    ),
    "init": (
        "config:init",
        "Write a commented erless.yaml, and its schema for editors; on a terminal it asks first.",
    ),
    "config": (
        "config:app",
        "Check erless.yaml, or print its JSON schema.",
    ),
    "example": (
        "model.example:app",
        "Make a model bundle with queries and an access log: rm1, rm2, rm3, dlrmv2, movielens "
        "or sequence.",
    ),
    "import": (
        "model.import_:app",
        "Import a trained model. Pickles are never executed: only plain tensors load.",
    ),
    "bundle": (
        "model.bundle:app",
        "Show or verify a model bundle; say how its ids become rows.",
    ),
    "profile": (
        "model.profile:profile",
        "Measure how hot each row is from access logs; with --throughput or --disk how fast this "
        "machine is.",
    ),
    "plan": (
        "release.plan:plan",
        "Choose which rows live in which function, on how many replicas and nodes.",
    ),
    "prices": (
        "release.prices:prices",
        "Refresh the prices that plans are made with; name the table in erless.yaml or --prices.",
    ),
    "pack": (
        "release.pack:pack",
        "Cut a model into the shards of a plan and keep them in a store.",
    ),
    "update": (
        "release.update:update",
        "Publish changed rows or dense weights of a release: gateways answer with them in seconds.",
    ),
    "drift": (
        "release.drift:drift",
        "Compare what gateways see with what the deployed plan was cut for, in shares and dollars.",
    ),
    "replan": (
        "release.replan:replan",
        "Plan the deployed release anew for what gateways see, and move as few rows as that "
        "allows.",
    ),
    "releases": (
        "release.releases:app",
        "What a release store holds: `list`, `show`, `verify`, `prune`.",
    ),
    "image": (
        "cluster.image:app",
        "Images of the functions: `build`, `push`.",
    ),
    "cluster": (
        "cluster.cluster_init:app",
        "Make a Kubernetes cluster ready for erless: `init`, `secret`.",
    ),
    "autoscale": (
        "cluster.autoscale:autoscale",
        "Change the vCPU of a cluster's pods in place, as the load rises and falls.",
    ),
    "doctor": (
        "cluster.doctor:doctor",
        "Check a cluster: reachable, set up for the target, rights, nodes, images, store.",
    ),
    "render": (
        "cluster.render:render",
        "Write the exact Kubernetes objects that `erless deploy` applies on a cluster.",
    ),
    "deploy": (
        "deployment.deploy:deploy",
        "Run a release: start what is missing, wait until all is ready, then switch queries over.",
    ),
    "status": (
        "deployment.status:status",
        "Show every function: replicas, rate, latency, memory, state and, where it fails, why.",
    ),
    "open": (
        "deployment.open:open_",
        "Serve a live page of what runs, on loopback and read-only, until Ctrl-C.",
    ),
    "predict": (
        "deployment.predict:predict",
        "Predict every query of a file by the deployment, or with --monolith by one process.",
    ),
    "logs": (
        "deployment.logs:logs",
        "Print the log lines of one function, or of all in order of time.",
    ),
    "alerts": (
        "deployment.alerts:alerts",
        "Print the alerts of decoys, canary tokens and alarms; with --follow as they come.",
    ),
    "history": (
        "deployment.history:history",
        "List the releases that were deployed and are kept, newest first.",
    ),
    "rollback": (
        "deployment.history:rollback",
        "Make a kept release current again; queries in flight are answered where they are.",
    ),
    "destroy": (
        "deployment.destroy:destroy",
        "Answer what is in flight, then remove a model's functions, their state and logs.",
    ),
    "loadtest": (
        "measure.loadtest:loadtest",
        "Put a deployment under load. Ctrl-C keeps what was measured; `erless report` draws it.",
    ),
    "drill": (
        "measure.drill:drill",
        "Break a deployment on purpose under load, and check every answer.",
    ),
    "report": (
        "measure.report:report",
        "Write a self-contained page: works offline, light and dark, on a phone.",
    ),
    "simulate": (
        "measure.simulate:simulate",
        "Simulate a plan under a traffic trace; `erless report` draws the result.",
    ),
}


class Verbs(TyperGroup):
    """A group whose commands are stand-ins, with name and line only, until one is asked for."""

    def __init__(self, **options: Any) -> None:
        options["commands"] = {
            name: TyperCommand(name, help=line) for name, (_, line) in VERBS.items()
        }
        super().__init__(**options)
        self._unloaded = set(VERBS)
        self._lists = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The verb itself; while the help lists all of them, its stand-in."""
        if cmd_name in self._unloaded and not self._lists:
            self.commands[cmd_name] = _load(cmd_name)
            self._unloaded.remove(cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Draw the list of verbs."""
        self._lists = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._lists = False


def _load(name: str) -> Any:
    module, attribute = VERBS[name][0].split(":")
    verb = getattr(import_module(f"erless.cli.{module}"), attribute)
    alone = typer.Typer(rich_markup_mode=MARKUP)
    if isinstance(verb, typer.Typer):
        alone.add_typer(verb, name=name)
    else:
        alone.command(name)(verb)
    return get_group(alone).commands[name]

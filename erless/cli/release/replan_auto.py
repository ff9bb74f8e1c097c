"""`erless replan --auto`: look at the drift now and then; plan, pack and deploy where it lasts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from erless.cli.bars import bars
from erless.cli.deployment.target_options import PlaceOptions, resolve_target
from erless.cli.options import project, store_of
from erless.cli.release.live_inputs import LiveOptions, LivePlan, live_plan
from erless.cli.run import note

__all__ = ["AutoOptions", "watch"]

GB = 1e9


@dataclass(frozen=True)
class AutoOptions:
    """When a lasting drift is acted on."""

    auto: Annotated[
        bool,
        typer.Option("--auto", help="Look until Ctrl-C; pack and deploy where drift lasts."),
    ] = False
    every_s: Annotated[
        float, typer.Option("--every", min=0.1, help="Seconds between two looks [auto].")
    ] = 60.0
    after_s: Annotated[
        float, typer.Option("--after", min=0, help="Seconds that drift must last [auto].")
    ] = 900.0
    at_most_every_s: Annotated[
        float,
        typer.Option("--at-most-every", min=0, help="Seconds between two changes [auto]."),
    ] = 6 * 3600.0
    gb_a_day: Annotated[
        float, typer.Option(min=0, help="Most GB of rows that a day's changes may move [auto].")
    ] = 100.0
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Bundle to pack [erless.yaml's] [auto].")
    ] = None
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, help="Most that one deploy may take [auto].")
    ] = 600.0


Write = Callable[[LivePlan], tuple[int, Path] | None]


def watch(
    source: LiveOptions,
    options: AutoOptions,
    where: PlaceOptions,
    requested: Mapping[str, Any],
    write: Write,
) -> Iterator[dict[str, Any]]:
    """One document for each look whose outcome is news, for ever.

    Args:
        source: where live heat is.
        options: when to act.
        where: the target that a new release is deployed to.
        requested: as `live_plan`.
        write: plans anew and writes it: bytes that move and the folder; None: nothing to gain.
    """
    from erless.errors import ErlessError
    from erless.plan.live.auto import AutoReplan

    auto = AutoReplan(options.after_s, options.at_most_every_s, options.gb_a_day * GB)
    told: dict[str, Any] = {}
    while True:
        try:
            document, source = _look(auto, source, options, where, requested, write)
        except ErlessError as error:  # a store that does not answer, nothing sampled: look again
            document = {"decision": "not known", "reason": str(error)}
        if document != told:
            told = document
            yield document
        time.sleep(options.every_s)


def _look(
    auto: Any,
    source: LiveOptions,
    options: AutoOptions,
    where: PlaceOptions,
    requested: Mapping[str, Any],
    write: Write,
) -> tuple[dict[str, Any], LiveOptions]:
    from erless.plan.live.auto import Replanning
    from erless.specs.generations import newest_generation

    with live_plan(source, requested) as live:
        now_s = time.monotonic()
        decision = auto.look(now_s, live.drift().drifted)
        document = {"decision": str(decision), "release": live.release.digest}
        if decision is not Replanning.ACT:
            return document, source
        auto.put_off(now_s)
        if newest_generation(live.store, live.release.digest) is not None:
            reason = "the release has generations, which a new one would not: train a bundle first"
            return document | {"decision": "put off", "reason": reason}, source
        written = write(live)
        if written is None:
            return document | {"decision": "put off", "reason": "nothing is to be gained"}, source
        moved_bytes, folder = written
        if not auto.affords(now_s, moved_bytes):
            reason = f"{moved_bytes / GB:,.3f} GB would move, more than the day's budget has left"
            return document | {"decision": "put off", "reason": reason}, source
        release = _pack_and_deploy(live, folder, source, options, where)
    auto.changed(time.monotonic(), moved_bytes)
    done = {"decision": "deployed", "release": release, "moved_bytes": moved_bytes}
    return done, replace(source, profile=folder / "profile")


def _pack_and_deploy(
    live: LivePlan, folder: Path, source: LiveOptions, options: AutoOptions, where: PlaceOptions
) -> str:
    """Make a release of the new plan and switch queries over to it; its digest."""
    from erless.api.decoys import follow_with_decoys
    from erless.cli.cluster.cluster_options import desired_release
    from erless.errors import PlanError
    from erless.pack.inputs import PackInputs
    from erless.pack.packer import Packer

    destination, config = resolve_target(where)
    bundle = options.model or config.model
    with bars() as progress:
        packer = Packer(PackInputs(bundle, folder / "profile", folder / "plan.json"), live.store)
        release = packer.pack().release
        if release is None:
            raise PlanError("the new release was not packed whole")
        location = store_of(source.store, None, project())
        desired = desired_release(config, location, release.digest, source.endpoint_url)
        desired = follow_with_decoys(desired, config, destination, note)
        destination.deploy(desired, progress, options.timeout_s)
    return release.digest

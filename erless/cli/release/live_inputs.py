"""What `erless drift` and `erless replan` look at: a release, its plan, and the heat of now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.options import EndpointOption, StoreOption, project, store_of
from erless.cli.release.plan_inputs import floors_like, request_like

if TYPE_CHECKING:
    from erless.plan.live.drift import Drift
    from erless.plan.live.replan import Replan, Tolerance
    from erless.plan.planner import Planner
    from erless.profile.live import Heat
    from erless.specs.plan import Plan
    from erless.specs.profile import Profile
    from erless.specs.release import ReleaseManifest
    from erless.storage.store import Store

__all__ = ["LiveOptions", "LivePlan", "live_plan"]


@dataclass(frozen=True)
class LiveOptions:
    """The release, and where its live heat is."""

    release: Annotated[
        str, typer.Option(help="Digest or its beginning [default: the last that has live heat].")
    ] = ""
    store: StoreOption = None
    endpoint_url: EndpointOption = None
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile",
            "-p",
            help="Profile that it was planned from, for the order of rows that were not seen "
            "[erless.yaml's].",
        ),
    ] = None
    prices: Annotated[Path | None, typer.Option(help="Your own instance types (CSV).")] = None
    window_s: Annotated[
        float, typer.Option("--window", min=1, help="Seconds that the shares seen are taken over.")
    ] = 120.0
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Difference of a shard's share that is no drift.")
    ] = 0.02


@dataclass(frozen=True)
class LivePlan:
    """A deployed plan and a planner for the heat of now.

    profile: of live heat, in `folder`.
    """

    store: Store
    release: ReleaseManifest
    plan: Plan
    heat: Heat
    profile: Profile
    folder: Path
    planner: Planner
    options: LiveOptions

    def drift(self) -> Drift:
        """The plan against what was seen lately.

        Raises:
            PlanError: no query was sampled.
        """
        from erless.plan.live.drift import compare

        lately = self.heat.lately(self.options.window_s)
        return compare(self.planner, self.plan, lately, self.options.tolerance)

    def replan(self, tolerance: Tolerance) -> Replan:
        """The plan to change to. Errors as `erless.plan.live.replan.replan`.

        Raises:
            PlanError: generations were folded into the release: the bundle does not have its rows.
        """
        from erless.errors import PlanError
        from erless.plan.live.replan import replan

        if self.release.folds is not None:
            raise PlanError(
                f"generations were folded into release {self.release.digest[:12]}, so that its "
                "rows are not the bundle's: plan and pack a newer bundle with `erless profile "
                "--live`, `erless plan --profile live` and `erless pack`"
            )
        from erless.specs.placement import HeldRows

        held = HeldRows(self.store, self.release)
        return replan(self.planner, self.plan, held, self.row_heat(), tolerance)

    def row_heat(self) -> list[Any]:
        """Per table the share of its accesses that each row takes."""
        from erless.plan.live.replan import row_heat

        return list(row_heat(self.folder, self.profile, self.planner.demand.tables))


@contextmanager
def live_plan(options: LiveOptions, requested: Mapping[str, Any]) -> Iterator[LivePlan]:
    """Open all of it; what is temporary is gone after the block.

    Args:
        options: which release.
        requested: options named as `PlanRequest`'s fields, above the deployed plan's.

    Raises:
        LogError: there is no live heat, or nothing was sampled.
        ArtifactError: release, plan or heat is damaged.
        StoreError, StorageError: the store refused.
    """
    import tempfile

    from erless.plan.nodes.prices import read_prices
    from erless.plan.planner import Planner
    from erless.plan.source import bundle_source
    from erless.profile.live import live_release, profile_live, read_live
    from erless.specs.bundle import BundleManifest
    from erless.specs.plan import Plan
    from erless.storage.stores import open_store

    config = project()
    store = open_store(store_of(options.store, None, config), endpoint_url=options.endpoint_url)
    release = live_release(store, options.release)
    plan = Plan.parse(store.read(release.plan.path), f"{store.url}/{release.plan.path}")
    bundle = BundleManifest.parse(
        store.read(release.bundle.path), f"{store.url}/{release.bundle.path}"
    )
    bundle = bundle.model_copy(update={"model": release.model})  # tables may have grown since
    request = request_like(plan, requested, config)
    heat = read_live(store, release)
    with tempfile.TemporaryDirectory(prefix="erless-live-") as temporary:
        folder = Path(temporary) / "profile"
        before = options.profile or config.profile
        report = profile_live(store, release, folder, before=before, heat=heat)
        source = bundle_source(bundle, folder, request.batch)
        prices = read_prices(options.prices or config.planner.prices)
        floors = floors_like(plan, requested)
        tables = [
            replace(table, floor=floors.get(table.spec.name, table.floor))
            for table in source.tables
        ]
        planner = Planner(source.model, tables, request, prices, source.measured)
        yield LivePlan(store, release, plan, heat, report.profile, folder, planner, options)

"""`erless.Project`: the stages of a model from its access log to its gateway, from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from erless.api.planned import Planned
from erless.api.progress import Callback, ProgressCalls
from erless.errors import ConfigError, PlanError
from erless.progress import Progress, Silent
from erless.specs.config import Config, anchored, load_config
from erless.specs.strict.findings import first_finding

if TYPE_CHECKING:
    from erless.api.client import Client
    from erless.deploy.target import Deployment, Status, Target
    from erless.profile.counted import AccessReport
    from erless.specs.generations import GenerationManifest
    from erless.specs.release import ReleaseManifest

__all__ = ["Project", "plan_workload"]

CONFIG_FILE = "erless.yaml"
PLAN_FILE = "plan.json"
StrPath = str | os.PathLike[str]
S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class _Places:
    """Where the artifacts of a project lie."""

    model: Path
    profile: Path
    plan: Path


class Project:
    """A model with its profile, plan, releases and target; each stage is a method.

        project = erless.Project(model="model", store="releases")
        project.profile("access.parquet")
        print(project.plan(qps=500))
        project.pack()
        project.deploy()
        with project.client() as client:
            outputs = client.predict({"user": users, "item": items})

    Args:
        folder: of the project; what its `erless.yaml` says holds, where there is one.
        progress: called with (step, done, of how many or None) while a stage runs.
        options: keys of erless.yaml, above the file's: `model`, `profile`, `store`, and sections
            as mappings, such as `traffic={"qps": 500}`. Relative paths are the folder's.

    Raises:
        ConfigError: the file or an option has a mistake.
    """

    def __init__(
        self, folder: StrPath = ".", *, progress: Callback | None = None, **options: Any
    ) -> None:
        self.folder = Path(folder)
        self._progress: Progress = ProgressCalls(progress) if progress else Silent()
        self.config = _config(self.folder, options)
        self._places = _Places(self.config.model, self.config.profile, self.folder / PLAN_FILE)

    def __repr__(self) -> str:
        return (
            f"Project({str(self.folder)!r}, model={str(self.config.model)!r}, "
            f"store={self.config.store!r}, target={self.config.targets.default!r})"
        )

    def profile(
        self, *logs: StrPath, samples: int | None = None, overwrite: bool = False
    ) -> AccessReport:
        """Count how often each row is accessed by `logs`; writes the project's profile.

        Args:
            logs: files or folders in any format that `erless profile` reads, `TABLE:PATH` for one
                of a single table.
            samples: that they cover, for aggregated logs that cannot say.
            overwrite: replace the profile.

        Raises:
            LogError: a log is damaged, or has ids that are no rows of its table.
            ArtifactError: no model bundle, or the profile exists.
        """
        from erless.profile.access import profile_access
        from erless.profile.formats import LogSource

        return profile_access(
            self._places.model,
            [LogSource.parse(os.fspath(log)) for log in logs],
            self._places.profile,
            samples=samples,
            overwrite=overwrite,
            progress=self._progress,
        )

    def plan(self, *, compare: bool = True, **request: Any) -> Planned:
        """Choose which rows live in which function; writes `plan.json` into the folder.

        Args:
            compare: plan the baselines too, and say whether sharding pays.
            request: fields of `erless.plan.request.PlanRequest` above erless.yaml's, such as
                `qps=500`, `sla_p95_ms=50`, `shards=4`.

        Raises:
            PlanError: the request has a mistake, or no plan meets it (InfeasibleError).
            ArtifactError: model or profile are missing or damaged.
        """
        from erless.plan.request import configured
        from erless.plan.source import profile_source

        fields = {**configured(self.config), **request}
        places = self._places
        batch = int(fields.get("batch") or self.config.traffic.batch)
        source = profile_source(places.model, places.profile, batch)
        planned = Planned.of(source, fields, self.config.planner.prices, compare=compare)
        planned.plan.save(places.plan)
        return planned

    def pack(self) -> ReleaseManifest:
        """Cut the model into the plan's shards and keep them in the store.

        Raises:
            PlanError, ArtifactError: model, profile and plan do not belong together.
            StorageError: the store refused.
        """
        from erless.pack.inputs import PackInputs
        from erless.pack.packer import Packer
        from erless.storage.stores import open_store

        places = self._places
        store = open_store(self.config.store, create=True)
        packed = Packer(
            PackInputs(places.model, places.profile, places.plan), store, progress=self._progress
        ).pack()
        if packed.release is None:
            raise PlanError(f"packing left out shards: {', '.join(packed.missing)}")
        return packed.release

    def deploy(
        self, release: str = "", *, replace_model: bool = False, timeout_s: float = 600
    ) -> Deployment:
        """Make a release the one that answers queries; the last that was packed, if not named.

        Until all of it is ready the former one serves.

        Raises:
            StoreError: no such release.
            DeployError: it did not get ready; with the function's own reason.
        """
        from erless.api.decoys import count_to_follow, with_decoys
        from erless.deploy.desired_release import load_desired

        target = self._target()
        desired = load_desired(self.config.store, release, replace_model=replace_model)
        count = count_to_follow(desired, self.config, target)
        desired = with_decoys(desired, self.config, target.name, count)
        return target.deploy(desired, self._progress, timeout_s)

    def update(
        self, rows: Mapping[str, tuple[Any, Any]], *, release: str = "", tower: Path | None = None
    ) -> GenerationManifest:
        """Publish changed rows of a release: see `erless.update`."""
        from erless.pack.generations.publish import update

        return update(rows, store=self.config.store, release=release, tower=tower)

    def status(self) -> Status:
        """What runs now. Raises NotDeployedError where nothing does."""
        return self._target().status()

    def rollback(self, release: str | None = None, *, timeout_s: float = 120) -> Deployment:
        """Make a kept release current again; the one before the current, if not named."""
        return self._target().rollback(release, self._progress, timeout_s)

    def destroy(self, *, timeout_s: float = 120) -> None:
        """Drain and remove everything of erless at the target; the store stays."""
        self._target().destroy(self._progress, timeout_s)

    def client(self, **options: Any) -> Client:
        """A client of the gateway that runs now; `options` are `Client`'s.

        Raises:
            NotDeployedError: nothing runs.
            DeployError: the gateway does not listen; with its reason.
        """
        from erless.api.client import Client

        status = self.status()
        variable = self.config.gateway.token_env
        if variable and "token" not in options:
            options["token"] = os.environ.get(variable)
        return Client(status.answering_url(), address=status.address, **options)

    def _target(self) -> Target:
        from erless.deploy.targets import open_target

        return open_target(None, self.config)


def plan_workload(
    workload: str,
    *,
    locality: float = 0.9,
    rows: int | None = None,
    compare: bool = True,
    **request: Any,
) -> Planned:
    """Plan a reference workload (rm1, rm2, rm3, dlrmv2) without a model.

    Args:
        workload: its name.
        locality: share of accesses that the hottest 10 % of rows take.
        rows: of each table; the workload's own if not given.
        compare: plan the baselines too.
        request: as of `Project.plan`.

    Raises:
        PlanError: no such workload, or no plan meets the request.
    """
    from erless.plan.source import workload_source

    source = workload_source(workload, locality, int(request.get("batch", 32)), rows)
    return Planned.of(source, request, None, compare=compare)


def _config(folder: Path, options: Mapping[str, Any]) -> Config:
    """What the folder's erless.yaml says, or every default, with `options` above it.

    Raises:
        ConfigError: one has a mistake.
    """
    file = folder / CONFIG_FILE
    config = load_config(file) if file.exists() else anchored(Config(), folder)
    try:
        asked = Config.model_validate(dict(options))
    except ValidationError as error:
        keys, words = first_finding(error)
        raise ConfigError(f"{'.'.join(keys)}: {words}") from error
    return _over(config, asked, anchored(asked, folder))


def _over(base: S, asked: BaseModel, values: BaseModel) -> S:
    """`base` with the fields that were set in `asked`, as they are in `values`."""
    update = {}
    for name in asked.model_fields_set:
        former, chosen, value = (getattr(section, name) for section in (base, asked, values))
        nested = isinstance(chosen, BaseModel)
        update[name] = _over(former, chosen, value) if nested else value
    return base.model_copy(update=update)

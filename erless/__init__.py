"""erless: serve deep learning recommendation models elastically.

    import erless

    erless.export(model, example_inputs, "model/")          # any PyTorch recommender
    project = erless.Project(model="model", store="releases")
    project.profile("access.parquet")
    print(project.plan(qps=500))
    project.pack()
    project.deploy()
    with project.client() as client:
        print(client.predict({"user": users, "item": items}).scores)

Every error that is raised on purpose is an `erless.ErlessError`; `erless.errors` draws their tree.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from erless.errors import ErlessError
from erless.version import __version__

if TYPE_CHECKING:
    from erless.api.client import AsyncClient, Client, Prediction
    from erless.api.planned import Planned
    from erless.api.project import Project, plan_workload
    from erless.importers.graph.export import export
    from erless.pack.generations.publish import update

__all__ = [
    "AsyncClient",
    "Client",
    "ErlessError",
    "Planned",
    "Prediction",
    "Project",
    "__version__",
    "export",
    "plan_workload",
    "update",
]

# What a name stands for is imported when it is first used: `import erless` takes no time.
_HOMES = {
    "AsyncClient": "erless.api.client",
    "Client": "erless.api.client",
    "Planned": "erless.api.planned",
    "Prediction": "erless.api.client",
    "Project": "erless.api.project",
    "export": "erless.importers.graph.export",
    "plan_workload": "erless.api.project",
    "update": "erless.pack.generations.publish",
}


def __getattr__(name: str) -> Any:
    """The public object `name`."""
    if name not in _HOMES:
        raise AttributeError(f"module 'erless' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """What a notebook completes."""
    return sorted(__all__)

"""Where each deployed model has its state folder: the place's own, or `models/KEY` in that.

Each has a supervisor, a secret, logs and releases of its own, so one may be deployed, rolled back,
destroyed or killed without the others noticing.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from erless.deploy.deployed_models import DeployedModel
from erless.deploy.local.supervisor.folder.state_folder import MODELS, StateFolder
from erless.errors import ArtifactError

__all__ = ["deployed_in", "model_folder", "remove_empty"]


def model_folder(root: Path, key: str) -> StateFolder:
    """The state folder of the model with `key`; of the one without a name for an empty one."""
    return StateFolder(root / MODELS / key if key else root)


def deployed_in(root: Path) -> list[DeployedModel]:
    """The models that are deployed under `root`."""
    folders = sorted(path.name for path in (root / MODELS).glob("*"))
    deployed = []
    for key in ("", *folders):
        folder = model_folder(root, key)
        if folder.exists:
            deployed.append(DeployedModel(key, _served_model(folder)))
    return deployed


def _served_model(folder: StateFolder) -> str:
    """The model that answers queries; empty where the state does not say, or is damaged."""
    try:
        state = folder.load()
    except ArtifactError:
        return ""  # whoever needs the state will tell
    release = state.release(state.current) or next(iter(state.releases), None)
    return release.model if release else ""


def remove_empty(root: Path) -> None:
    """Remove what held models' folders, where none is left."""
    for path in (root / MODELS, root):
        with suppress(OSError):  # it is not empty, or not there
            path.rmdir()

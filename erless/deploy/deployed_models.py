"""Several models in one place: which deployment a verb is about, and where a release goes.

A place (a namespace, a local state folder) may hold one deployment without a name, and any number
under the names of their models. A deployment without a name goes by the model that it serves.

| deploy says | goes to |
|---|---|
| `--model NAME` | NAME's own deployment, made where there is none; the release has to be of NAME |
| nothing | the deployment of the release's model; into an empty place, without a name |
| `--replace-model` | the named deployment, or the only one there, whatever it serves |

So a release of another model never takes a deployment's clients over unless it is told to, and
never starts beside what runs because of a wrong `--store`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from erless.errors import NotDeployedError, OtherModelError, SeveralModelsError

__all__ = [
    "DeployedModel",
    "deployment_to_change",
    "deployment_to_compare",
    "deployment_to_destroy",
    "find_deployment",
    "model_key",
]

KEY_LENGTH = 20  # what a gateway's revision has room for within a label's 63 characters
_HASH_LENGTH = 8


def model_key(model: str) -> str:
    """A model's name as part of Kubernetes' names and of folders: at most 20 of `[a-z0-9-]`.

    >>> model_key("ads"), model_key("Ads_v2"), model_key("")
    ('ads', 'ads-v2-51114c4d', '')
    """
    plain = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    if plain == model and len(plain) <= KEY_LENGTH:
        return plain
    mark = hashlib.sha256(model.encode()).hexdigest()[:_HASH_LENGTH]
    return f"{plain[: KEY_LENGTH - _HASH_LENGTH - 1].strip('-')}-{mark}".lstrip("-")


@dataclass(frozen=True, slots=True)
class DeployedModel:
    """One deployment of a place.

    key: of the name that it was deployed under; empty: without one. serves: the model that answers
    its queries; empty where the record is of an older version that does not say.
    """

    key: str
    serves: str

    @property
    def name(self) -> str:
        """As `--model` takes it."""
        return self.serves or self.key or "a model of unknown name"


def _find(asked: str, deployed: Sequence[DeployedModel]) -> DeployedModel | None:
    """The deployment that goes by the name `asked`; its own name goes before what one serves."""
    key = model_key(asked)
    named = (deployment for deployment in deployed if deployment.key == key)
    served = (deployment for deployment in deployed if deployment.serves == asked)
    return next(named, None) or next(served, None)


def find_deployment(asked: str, deployed: Sequence[DeployedModel]) -> str:
    """The key of the deployment that a verb is about.

    Args:
        asked: a model's name; empty: the only one.
        deployed: all of the place.

    Raises:
        NotDeployedError: no such model is deployed here.
        SeveralModelsError: it is not said which of several.
    """
    if asked:
        found = _find(asked, deployed)
        if found is None:
            others = f"; here are {_listed(deployed)}" if deployed else ""
            raise NotDeployedError(f"model {asked!r} is not deployed here{others}")
        return found.key
    if len(deployed) > 1:
        raise SeveralModelsError(f"several models are deployed here: {_listed(deployed)}")
    return deployed[0].key if deployed else ""


def deployment_to_change(
    asked: str, model: str, deployed: Sequence[DeployedModel], *, replace: bool
) -> str:
    """The key of the deployment that a release of `model` goes to.

    Args:
        asked: whose deployment; empty: the release's model's, or where nothing is, one without.
        model: of the release.
        deployed: all of the place.
        replace: the release may take the place of another model's.

    Raises:
        OtherModelError: another model answers queries there, and may not be replaced.
        SeveralModelsError: it may replace one, and it is not said which of several.
    """
    if asked:
        found = _find(asked, deployed)
        if model not in (asked, found.serves if found else asked) and not replace:
            raise OtherModelError(f"the release is of model {model!r}, not {asked!r}")
        return found.key if found else model_key(asked)
    found = _find(model, deployed)
    if found is not None or not deployed:
        return found.key if found else ""
    unknown = len(deployed) == 1 and not deployed[0].serves
    if not replace and not unknown:
        raise OtherModelError(f"model {_listed(deployed)} answers queries here, not {model!r}")
    return find_deployment("", deployed)


def deployment_to_compare(
    asked: str, model: str, deployed: Sequence[DeployedModel], *, replace: bool
) -> str:
    """As `deployment_to_change`; where that refuses, the deployment that would be replaced."""
    try:
        return deployment_to_change(asked, model, deployed, replace=replace)
    except OtherModelError as refused:
        try:
            return deployment_to_change(asked, model, deployed, replace=True)
        except SeveralModelsError:
            raise refused from None


def deployment_to_destroy(asked: str, deployed: Sequence[DeployedModel]) -> str:
    """As `find_deployment`; what a first deploy left that never got ready is found too."""
    try:
        return find_deployment(asked, deployed)
    except NotDeployedError:
        return model_key(asked)


def _listed(deployed: Sequence[DeployedModel]) -> str:
    return ", ".join(repr(deployment.name) for deployment in deployed)

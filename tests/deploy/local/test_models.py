"""Two models in one state folder: each with a supervisor of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from erless.deploy.desired_release import load_desired
from erless.deploy.local.supervisor.spec import Timing
from erless.deploy.local.target import LocalTarget
from erless.deploy.target import Desired, served_model
from erless.dlrm.queries import QueryFile
from erless.dlrm.reference import Monolith
from erless.errors import NotDeployedError, OtherModelError, SeveralModelsError
from erless.progress import Silent
from erless.serve.protocol.client import QueryClient
from erless.specs.config import Config, LocalConfig, TargetsConfig
from tests.conftest import Cli
from tests.deploy.fleets import kill_everything
from tests.releases import Made, default_model, make_release

TIMEOUT_S = 120.0


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    state = tmp_path / "state"
    yield state
    for folder in (state, *state.glob("models/*")):
        kill_everything(folder)


def target(state: Path, model: str | None = None) -> LocalTarget:
    local = LocalConfig(state=state, window_s=3.0, grace_s=0.5)
    return LocalTarget(Config(targets=TargetsConfig(local=local, model=model)), Timing(poll_s=0.2))


def answers_exactly(made: Made, url: str) -> bool:
    model = Monolith.load(made.bundle)
    query = QueryFile(made.queries)[0]
    with QueryClient(url) as client:
        found = client.predict(query).predictions
    return bool((abs(found - model.predict(query)) <= 1e-5).all())


def test_two_models_side_by_side(state: Path, tmp_path: Path, cli: Cli) -> None:
    """Deployed, rolled back, listed, spared by pruning and destroyed, each by itself."""
    store = str(tmp_path / "store")
    recs = make_release(tmp_path / "recs", store=store)
    named = default_model().model_copy(update={"name": "Ads"})
    ads = make_release(tmp_path / "ads", store=store, model=named, seed=1)

    def desired(made: Made) -> Desired:
        return load_desired(made.store, made.release.digest)

    first = target(state).deploy(desired(recs), Silent(), TIMEOUT_S)
    with pytest.raises(OtherModelError, match="'small' answers queries here, not 'Ads'"):
        target(state).deploy(desired(ads), Silent(), TIMEOUT_S)
    second = target(state, "Ads").deploy(desired(ads), Silent(), TIMEOUT_S)
    assert first.url != second.url
    assert answers_exactly(recs, first.url)
    assert answers_exactly(ads, second.url)

    with pytest.raises(SeveralModelsError, match="'small', 'Ads'"):
        target(state).status()
    with pytest.raises(NotDeployedError, match="'ads' is not deployed here"):
        target(state, "ads").status()
    found = {served_model(each.deployments()): each.status() for each in target(state).by_model()}
    assert {name: each.url for name, each in found.items()} == {
        "small": first.url,
        "Ads": second.url,
    }
    shown = json.loads(cli("status", "--state", str(state), "-o", "json").stdout)
    assert [each["model"] for each in shown["models"]] == ["small", "Ads"]
    parts = [each["memory_bytes"] for each in shown["models"]]
    assert shown["memory_bytes"] == sum(parts) > max(parts)

    # the next release of one finds its own place by its model
    assert {each.action for each in target(state).diff(desired(ads))} == {"keep"}
    target(state, "Ads").destroy(Silent(), TIMEOUT_S)
    assert answers_exactly(recs, first.url)
    assert target(state).status().url == first.url
    target(state).destroy(Silent(), TIMEOUT_S)
    assert not state.exists()

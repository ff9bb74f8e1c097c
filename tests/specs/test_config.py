from pathlib import Path

import pytest
import yaml

from erless.errors import ConfigError
from erless.specs.config import Config, load_config
from erless.specs.plan import Tier
from erless.specs.schema import SCHEMA_FILE, main, schema_text
from erless.specs.template import config_template


def load(tmp_path: Path, text: str) -> Config:
    (tmp_path / "erless.yaml").write_text(text)
    return load_config(tmp_path / "erless.yaml")


def test_the_template_is_the_defaults(tmp_path: Path) -> None:
    assert Config.model_validate(yaml.safe_load(config_template())) == Config()
    comments = [line for line in config_template().splitlines() if line.strip().startswith("#")]
    assert len(comments) > 25


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, "model: m\nstore: s3://bucket/x\nprofile: /abs/p\n")
    assert config.model == tmp_path / "m"
    assert config.store == "s3://bucket/x"
    assert config.profile == Path("/abs/p")
    assert config.targets.local.state == tmp_path / ".erless"
    assert load(tmp_path, "").traffic.qps == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: m", r"erless.yaml:1: modle: unknown key; did you mean model\?"),
        ("model: m\ntraffic:\n  qqs: 1", r":3: traffic.qqs: unknown key; did you mean qps\?"),
        ("targets:\n  local:\n    zzz: 1", r":3: targets.local.zzz: unknown key; valid are state"),
        ("traffic:\n  batch: 0", r":2: traffic.batch: must be 1 or more, found 0"),
        ("traffic:\n  qps: fast\n  batch: 0", r":2: traffic.qps: .*\(1 more\)"),
        ("planner:\n  policy: best", r":2: planner.policy: must be one of joint, "),
        (
            "planner:\n  min_replicas:\n    warmm: 2",
            r":3: planner.min_replicas.warmm: .*, gateway, found",
        ),
        ("precision:\n  allowed: [fp32, int3]", r":2: precision.allowed.1: "),
        ("- a", "expected keys and values, found a list"),
        ("model: [", r"erless.yaml:2: not YAML|erless.yaml:1: not YAML"),
    ],
)
def test_mistakes_name_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.yaml")


def test_the_schema_is_fresh(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["--check"]) == 0
    stale = tmp_path / "erless.schema.json"
    stale.write_text(SCHEMA_FILE.read_text().replace("qps", "qpss"))
    monkeypatch.setattr("erless.specs.schema.SCHEMA_FILE", stale)
    assert main(["--check"]) == 1
    assert "make schema" in capsys.readouterr().err
    assert main([]) == 0
    assert stale.read_text() == schema_text()


def test_the_gateways_fewest_replicas_have_one_name(tmp_path: Path) -> None:
    config = load(tmp_path, "planner:\n  min_replicas: {gateway: 2, cold: 1}\n")
    assert config.planner.min_replicas == {Tier.RESIDENT: 2, Tier.COLD: 1}
    with pytest.raises(ConfigError, match="gateway and resident are the same function"):
        load(tmp_path, "planner:\n  min_replicas: {gateway: 2, resident: 3}\n")

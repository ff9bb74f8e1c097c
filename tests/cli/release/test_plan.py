"""`erless plan` over the paper's workloads, as the README calls it."""

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import Cli

FIELDS = {
    "policy",
    "memory_bytes",
    "memory_reduction",
    "memory_utility",
    "functions",
    "containers",
    "fan_out",
    "vcpu",
    "nodes",
    "usd_per_month",
    "predicted_p95_ms",
    "lower_bound_gap",
}


@pytest.mark.parametrize(
    ("workload", "locality"), list(itertools.product(["rm1", "rm2", "rm3"], [0.5, 0.9]))
)
def test_joint_under_the_papers_terms(cli: Cli, workload: str, locality: float) -> None:
    run = cli(
        *("plan", "--workload", workload, "--locality", locality, "--traffic", "8x"),
        *("--equal-containers", "--objective", "memory", "--compare", "-o", "json"),
    )
    assert run.returncode == 0, run.stderr
    policies = {each["policy"]: each for each in json.loads(run.stdout)["policies"]}
    assert set(policies) == {"model-wise", "table-wise", "elasticrec", "joint"}
    assert all(set(each) >= FIELDS for each in policies.values())
    joint, elasticrec = policies["joint"], policies["elasticrec"]
    assert joint["memory_bytes"] <= elasticrec["memory_bytes"]
    assert 0 <= joint["lower_bound_gap"] <= 0.01
    if locality == 0.9:
        assert joint["containers"] <= elasticrec["containers"] / 2


TABLE = "amazon-book"


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """A folder with a model of one Amazon-book table and a foreign tower (`torch.export`)."""
    folder = tmp_path_factory.mktemp("book")
    np.save(folder / "book.npy", np.random.default_rng(0).random((91_599, 32), np.float32))
    batch = torch.export.Dim("batch", min=2, max=4096)
    tower = torch.export.export(
        _Tower().eval(),
        (torch.rand(8, 4), torch.rand(8, 1, 32)),
        dynamic_shapes=({0: batch}, {0: batch}),
    )
    torch.export.save(tower, folder / "tower.pt2")
    done = cli(
        "import",
        "tables",
        f"{TABLE}=book.npy",
        "--tower",
        "tower.pt2",
        "--pooling",
        "sum",
        "--dense-features",
        4,
        "--out",
        "model",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder


class _Tower(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = torch.nn.Linear(36, 64), torch.nn.Linear(64, 1)

    def forward(self, dense: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        both = torch.cat([dense, pooled.flatten(1)], 1)
        return torch.sigmoid(self.last(torch.relu(self.hidden(both))))[:, 0]


def test_a_real_log_then_all_policies(cli: Cli, book: Path, shared_data: Path) -> None:
    """The must-show of issue 3, with a tower whose cost nobody measured."""
    log = f"{TABLE}:{shared_data / 'amazon-book.txt'}"
    done = cli("profile", "--model", "model", "--log", log, "--out", "p", cwd=book)
    assert done.returncode == 0, done.stderr
    done = cli("plan", "--model", "model", "--profile", "p", "--compare", "-o", "json", cwd=book)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [each["policy"] for each in document["policies"]] == [
        "model-wise",
        "table-wise",
        "elasticrec",
        "joint",
    ]
    assert "estimated from the archive's" in document["assumptions"]["dense tower"]
    assert not (book / "plan.json").exists()


def test_erless_yaml_says_all_and_options_win(cli: Cli, book: Path, shared_data: Path) -> None:
    (book / "erless.yaml").write_text(
        "traffic: {qps: 300, batch: 8, sla_p95_ms: 50}\n"
        "planner: {objective: memory, min_replicas: {cold: 2}, max_fan_out: 3}\n"
        "precision: {allowed: [fp32, int8]}\n"
    )
    done = cli("profile", "--log", f"{TABLE}:{shared_data / 'amazon-book.txt'}", cwd=book)
    assert done.returncode == 0, done.stderr
    done = cli("plan", "-o", "json", cwd=book)
    assert done.returncode == 0, done.stderr
    plan = json.loads((book / "plan.json").read_text())
    assert (plan["qps"], plan["batch"], plan["objective"]) == (300, 8, "memory")
    for each in plan["shards"]:
        if each["tier"] == "cold":
            assert (each["precision"], each["replicas"]) == ("int8", 2)
    done = cli(
        "plan",
        "--qps",
        20,
        "--objective",
        "dollars",
        "--shards",
        2,
        "--out",
        "o.json",
        "--precision",
        "fp32",
        "--min-replicas",
        "cold=1",
        "--min-replicas",
        "gateway=2",
        cwd=book,
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads((book / "o.json").read_text())
    # two gateways always run, so that Kubernetes may evict one (a disruption budget)
    assert plan["gateway"]["scaling"]["min_scale"] == 2
    assert plan["gateway"]["replicas"] >= 2
    assert (plan["qps"], plan["objective"], plan["result"]["fan_out"]) == (20, "dollars", 2)
    done = cli("plan", "--workload", "rm3", "-o", "json", cwd=book)
    assert json.loads(done.stdout)["qps"] > 1000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--qps", "0"], "above 0"),
        (["--traffic", "often"], "'often' is not a number"),
        (["--policy", "jiont"], "--policy: must be one of joint, elasticrec, table-wise"),
        (
            ["--precision", "fp12"],
            "--precision: must be one of fp32, fp16, int8, int4",
        ),
        (["--precision", "tepid=int8"], "no such tier; there are resident, hot, warm"),
        (["--resident-share", "1", "--shards", "2"], "no plan has the demanded shape"),
        (["--sla-p95-ms", "0.01"], "over the 0.01 ms allowed"),
        (["--max-shard-bytes", "5"], "over the 5 allowed: raise max_shard_bytes"),
        (["--locality", "0.5", "--workload", "rm4"], "no workload rm4"),
    ],
)
def test_wrong_options_say_what_is_right(cli: Cli, options: list[str], words: str) -> None:
    base = [] if "--workload" in options else ["--workload", "rm3"]
    done = cli("plan", *base, *options)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_without_model_or_yaml_it_says_what_to_give(cli: Cli, tmp_path: Path) -> None:
    done = cli("plan", cwd=tmp_path)
    assert done.returncode == 1
    assert "no model at model: give --model" in done.stderr


@pytest.mark.parametrize("workload", ["rm1", "rm2", "rm3"])
def test_best_against_best_is_one_document_and_joint_is_never_dearer(
    cli: Cli, workload: str
) -> None:
    """Nothing but JSON on stdout: the solver of the bound has its own mind about that."""
    done = cli("plan", "--workload", workload, "--traffic", "16x", "--compare", "-o", "json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    policies = {each["policy"]: each for each in document["policies"]}
    cost = {name: each["usd_per_month"] for name, each in policies.items()}
    assert cost["joint"] <= min(cost.values()) + 0.01
    assert all(each["lower_bound"] <= each["usd_per_month"] + 0.01 for each in policies.values())
    assert any("sharding" in line for line in document["verdict"])


def test_plans_share_one_pool_of_nodes(cli: Cli, tmp_path: Path) -> None:
    small = ("plan", "--traffic", "0.5x", "--rows", "500000")
    first = cli(*small, "--workload", "rm3", "--out", "rm3.json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    run = cli(*small, "--workload", "rm1", "--with", "rm3.json", "-o", "json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    plan = json.loads(run.stdout)
    pool = plan["pool"]
    assert [share["name"] for share in pool["shares"]] == ["this plan", "rm3.json"]
    assert sum(share["usd_per_month"] for share in pool["shares"]) == pytest.approx(
        pool["usd_per_month"]
    )
    assert pool["usd_per_month"] <= pool["usd_apart"] + 1e-6
    assert any(line.startswith("one pool for 2 plans") for line in plan["verdict"])
    missing = cli(*small, "--workload", "rm1", "--with", "none.json", cwd=tmp_path)
    assert missing.returncode != 0
    assert "none.json" in missing.stderr


def test_a_plan_from_logs_alone(cli: Cli, tmp_path: Path) -> None:
    """No model, no bundle: whether sharding would pay, by the rows that a log touches."""
    generator = np.random.default_rng(0)
    ids = (50_000 * generator.random((2_000, 4)) ** 9).astype(np.int64)
    ids[0, 0] = 49_999
    columns = {
        "user": pa.array(list(generator.integers(300, size=(2_000, 1)))),
        "item": pa.array(list(ids)),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    words = ("plan", "--log", "log.parquet", "--qps", 200)
    read = cli(*words, cwd=tmp_path)
    assert read.returncode == 0, read.stderr
    assert "table item: 50,000 rows of dim 64" in read.stderr
    assert "of its rows take" in read.stderr
    lines = read.stdout.splitlines()
    assert lines[0].startswith("- sharding ")  # the verdict comes first
    assert "sharding pays at" in read.stdout
    assert max(len(line) for line in lines if line[:1] in "│┏┡└") <= 80
    assert read.stderr.splitlines()[-1].startswith("next: erless import")

    shapes = ("--table", "user=300x16", "--table", "item=60000x16")
    told = cli(*words, *shapes, "-o", "json", "--out", "plan.json", cwd=tmp_path)
    document = json.loads(told.stdout)
    slices = [part for shard in document["shards"] for part in shard["slices"]]
    rows = {name: max(part["stop"] for part in slices if part["table"] == name) for name in columns}
    assert rows == {"user": 300, "item": 60_000}
    assert any("there is no model yet" in note for note in document["notes"])
    for more, says in (
        (("--table", "item=5"), "NAME=ROWSxDIM"),
        (("--table", "item=10x16", "--table", "user=300x16"), "outside table item"),
        (("--model", "m"), "leave out --model"),
    ):
        wrong = cli(*words, *more, cwd=tmp_path)
        assert wrong.returncode == 1 and says in wrong.stderr, wrong.stderr

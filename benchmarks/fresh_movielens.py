"""A MovieLens model that goes on learning while it serves: what fresh rows are worth.

    python -m benchmarks.fresh_movielens --data ../shared/data --markdown

The model is trained on the first half of the ratings, packed and deployed on this machine. The
other half comes in slices of time. Each slice is first asked for at the gateway, under a Locust
that runs all the while, and then learned from; the rows that changed, and the new tower, are moved
into the folder that `erless update --follow` watches, and the next slice is asked for once the
gateway answers with them. Every answer is compared with the trainer's own model of the generation
that it names.

auc_fresh    of the gateway's answers, which had learned from all slices before
auc_frozen   of the model as it was deployed, on the same ratings
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmarks.freshness import generation_of
from benchmarks.functions import Client
from erless.dlrm.auc import auc
from erless.dlrm.queries import Query, write_queries
from erless.dlrm.reference import Monolith
from erless.dlrm.tower import builtin_tower, tower_layers
from erless.importers.accesslog import write_access_log
from erless.importers.bundle import new_bundle
from erless.importers.movielens import Ratings, movielens_model, read_movielens
from erless.importers.training import labels_of, pick_samples, sample_offsets
from erless.observe.loadtest.encoded_queries import build
from erless.storage.tensors import write_tensors

FIRST_SHARE = 0.5  # of the ratings, the earliest: what is deployed was trained on them
EPOCHS = 2
BATCH = 256
QUERY_BATCH = 32
FIRST_RATE, FIRST_DECAY = 5e-4, 1.0  # those of `erless example movielens`
LATER_RATE = 0.02  # Adagrad's: rows without a gradient stay as they are, and are not published
VISIBLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Slice:
    """What came of one slice of time."""

    ratings: int
    auc_fresh: float
    auc_frozen: float
    generation: int
    rows: int
    visible_s: float
    wrong: int


class Learner:
    """The model while it learns."""

    def __init__(self, ratings: Ratings, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._generator, self._ratings = generator, ratings
        self._offsets = sample_offsets(ratings.samples)
        self.model = movielens_model(ratings.sizes)
        self.tables = [
            (torch.randn(t.rows, t.dim, generator=generator) * 0.05).requires_grad_()
            for t in self.model.tables
        ]
        self.tower = {
            name: (
                torch.randn(shape, generator=generator) * (2 / shape[-1]) ** 0.5
                if len(shape) == 2
                else torch.zeros(shape)
            ).requires_grad_()
            for name, shape in tower_layers(self.model).items()
        }
        logits = movielens_model(ratings.sizes, sigmoid=False)
        self._logits = Monolith(logits, self.tables, builtin_tower(logits, self.tower))

    def learn(self, begin: int, end: int, optimizer: torch.optim.Optimizer) -> None:
        """One pass over ratings `begin` … `end - 1`, shuffled."""
        order = begin + torch.randperm(end - begin, generator=self._generator).numpy()
        for first in range(0, len(order), BATCH):
            batch = self.samples(order[first : first + BATCH])
            logits = self._logits.tower(torch.from_numpy(batch.dense), self._logits.pool(batch))
            loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels_of(batch)))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def samples(self, picks: NDArray[np.int64]) -> Query:
        """These ratings as one query."""
        return pick_samples(self._ratings.samples, self._offsets, picks)

    def frozen(self) -> Monolith:
        """The model as it is now."""
        tables = [rows.detach().clone() for rows in self.tables]
        tower = {name: tensor.detach().clone() for name, tensor in self.tower.items()}
        return Monolith(self.model, tables, builtin_tower(self.model, tower))

    def write(self, folder: Path) -> None:
        """A bundle of it."""
        with new_bundle(folder, self.model) as bundle:
            for spec, rows in zip(self.model.tables, self.tables, strict=True):
                bundle.add_table(spec, [rows.detach().numpy()])
            bundle.add_tower({name: t.detach().numpy() for name, t in self.tower.items()})
            bundle.finish()


class Deployment:
    """The model deployed from a folder of its own, as a user does it."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.follower: subprocess.Popen[bytes] | None = None

    def erless(self, *arguments: object) -> dict[str, Any]:
        """Run a verb; its JSON document."""
        command = [sys.executable, "-m", "erless", *map(str, arguments), "-o", "json"]
        run = subprocess.run(command, cwd=self.work, check=True, stdout=subprocess.PIPE)
        document: dict[str, Any] = json.loads(run.stdout)
        return document

    def start(self, shards: int) -> str:
        """Profile, plan, pack, deploy and follow; returns the gateway's URL."""
        self.erless("profile", "--log", self.work / "access.parquet")
        self.erless("plan", "--shards", shards, "--out", "plan.json")
        self.erless("pack")
        url = str(self.erless("deploy")["url"])
        follow = [sys.executable, "-m", "erless", "update", "--follow", "incoming"]
        with (self.work / "follower.log").open("wb") as log:
            self.follower = subprocess.Popen(follow, cwd=self.work, stdout=log, stderr=log)
        return url

    def drop(self, name: str, before: Monolith, after: Learner) -> int:
        """Move a batch of what changed into the followed folder; returns its rows."""
        folder = self.work / "incoming" / f".{name}"
        folder.mkdir(parents=True)
        rows = 0
        for spec, old, new in zip(after.model.tables, before.tables, after.tables, strict=True):
            now = new.detach().numpy()
            ids = np.flatnonzero((now != old.numpy()).any(axis=1))
            if len(ids):
                write_tensors(folder / f"{spec.name}.safetensors", {"ids": ids, "rows": now[ids]})
            rows += len(ids)
        after.write(folder / "tower")
        folder.rename(folder.parent / name)
        return rows

    def close(self) -> None:
        """Stop all."""
        if self.follower is not None:
            self.follower.terminate()
            self.follower.wait(30)
        self.erless("destroy", "--yes")


def ask(client: Client, samples: Query) -> NDArray[np.float32]:
    """The gateway's predictions for `samples`, in queries of some."""
    offsets, predictions = sample_offsets(samples), []
    for begin in range(0, samples.batch, QUERY_BATCH):
        picks = np.arange(begin, min(begin + QUERY_BATCH, samples.batch))
        predictions.append(client.infer(build(pick_samples(samples, offsets, picks))).copy())
    return np.concatenate(predictions)


def run(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The whole story."""
    ratings = read_movielens(options.data)
    first = int(ratings.samples.batch * FIRST_SHARE)
    learner = Learner(ratings, options.seed)
    parameters = [*learner.tables, *learner.tower.values()]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        parameters, lr=FIRST_RATE, weight_decay=FIRST_DECAY
    )
    for _ in range(EPOCHS):
        learner.learn(0, first, optimizer)
    frozen = learner.frozen()
    learner.write(work / "model")
    names = [table.name for table in learner.model.tables]
    known = learner.samples(np.arange(first))
    write_access_log(work / "access.parquet", names, [known])
    write_queries(work / "queries.safetensors", known, names, QUERY_BATCH)
    deployment = Deployment(work)
    try:
        url = deployment.start(options.shards)
        load = subprocess.Popen(
            [
                *(sys.executable, "-m", "erless", "loadtest", "--queries", "queries.safetensors"),
                *("--traffic", f"step:{options.rate}", "--duration", str(options.seconds)),
                *("--users", "8", "--out", "load", "-o", "json"),
            ],
            cwd=work,
            stdout=subprocess.PIPE,
        )
        optimizer = torch.optim.Adagrad(parameters, lr=LATER_RATE)
        client = Client(int(url.rpartition(":")[2]), learner.model.name)
        slices = follow(options, learner, frozen, deployment, client, optimizer)
        told, _ = load.communicate(timeout=options.seconds + 120)
        if load.returncode:
            raise SystemExit(f"locust ended with {load.returncode}")
        return {
            "slices": [asdict(each) for each in slices],
            "auc_fresh": round(float(np.mean([each.auc_fresh for each in slices])), 4),
            "auc_frozen": round(float(np.mean([each.auc_frozen for each in slices])), 4),
            "wrong": sum(each.wrong for each in slices),
            "load": json.loads(told),
        }
    finally:
        deployment.close()


def follow(
    options: argparse.Namespace,
    learner: Learner,
    frozen: Monolith,
    deployment: Deployment,
    client: Client,
    optimizer: torch.optim.Optimizer,
) -> list[Slice]:
    """Ask for each slice, then learn from it and publish."""
    total = learner._ratings.samples.batch
    ends = np.linspace(int(total * FIRST_SHARE), total, options.slices + 1).astype(int)
    slices, current, took, rows = [], frozen, 0.0, 0
    for number, (begin, end) in enumerate(itertools.pairwise(ends)):
        samples = learner.samples(np.arange(begin, end))
        answers, expected = ask(client, samples), current.predict(samples)
        wrong = int((~np.isclose(answers, expected, rtol=1e-5, atol=1e-6)).sum())
        labels = labels_of(samples)
        slices.append(
            Slice(
                len(labels),
                round(auc(labels, answers), 4),
                round(auc(labels, frozen.predict(samples)), 4),
                number,
                rows,
                round(took, 2),
                wrong,
            )
        )
        learner.learn(int(begin), int(end), optimizer)
        before, current = current, learner.frozen()
        rows = deployment.drop(f"{number:04d}", before, learner)
        began = time.monotonic()
        while generation_of(client, learner.model.name) <= number:
            if time.monotonic() - began > VISIBLE_S:
                log = (deployment.work / "follower.log").read_text()
                raise SystemExit(f"generation {number + 1} was not seen:\n{log}")
            time.sleep(0.02)
        took = time.monotonic() - began
    return slices


def markdown(document: dict[str, Any]) -> str:
    """The page's table."""
    lines = ["| ratings | rows changed before | published → answered | AUC with | AUC without |"]
    lines.append("|" + "---|" * 5)
    for each in document["slices"]:
        moved = f"{each['rows']:,} | {each['visible_s']:.2f} s" if each["generation"] else "– | –"
        lines.append(
            f"| {each['ratings']:,} | {moved} | {each['auc_fresh']:.4f} | "
            f"{each['auc_frozen']:.4f} |"
        )
    lines.append(f"| mean | | | {document['auc_fresh']:.4f} | {document['auc_frozen']:.4f} |")
    return "\n".join(lines)


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Serve MovieLens while it goes on learning.")
    parser.add_argument("--data", type=Path, required=True, help="folder of ml-100k.inter, …")
    parser.add_argument("--slices", type=int, default=10)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--rate", type=int, default=50, help="queries/s of Locust")
    parser.add_argument("--seconds", type=float, default=60.0, help="that Locust runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)  # small layers gain nothing from more
    with tempfile.TemporaryDirectory(prefix="erless-movielens-") as folder:
        document = run(options, Path(folder))
    print(markdown(document) if options.markdown else json.dumps(document, indent=2))
    return 1 if document["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())

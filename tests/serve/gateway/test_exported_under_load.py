"""A model that somebody wrote, brought in by `erless.export`, loses a shard under load."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from erless import export
from erless.errors import ServeError
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packer
from erless.serve.protocol.client import QueryClient
from erless.specs.model import Pooling
from erless.storage.stores import open_store
from tests.releases import Made, make_inputs, make_plan
from tests.serve.functions import Fleet
from tests.serve.gateway.test_graph import TIERS

ITEMS, LENGTH, DIM = 1500, 9, 8
THREADS, EACH = 4, 60


class TwoHeads(nn.Module):
    """History and target share a table; the history is padded with 0 and averaged where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, DIM, padding_idx=0)
        self.hidden = nn.Linear(3 * DIM + 1, 16)
        self.click, self.buy = nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, history: Tensor, target: Tensor, price: Tensor) -> dict[str, Tensor]:
        there = (history != 0).unsqueeze(2)
        past = (self.items(history) * there).sum(1) / there.sum(1).clamp(min=1)
        item = self.items(target)
        joined = torch.cat([past, item, past * item, price], dim=1)
        hidden = torch.relu(self.hidden(joined))
        return {
            "click": torch.sigmoid(self.click(hidden)).squeeze(1),
            "buy": torch.sigmoid(self.buy(hidden)).squeeze(1),
        }


def queries(count: int) -> list[dict[str, np.ndarray]]:
    """Of 1 to 6 samples, histories of 0 to LENGTH items."""
    rng = np.random.default_rng(1)
    made: list[dict[str, np.ndarray]] = []
    for _ in range(count):
        batch = int(rng.integers(1, 7))
        history = rng.integers(1, ITEMS, (batch, LENGTH))
        history[np.arange(LENGTH) >= rng.integers(0, LENGTH + 1, (batch, 1))] = 0
        made.append(
            {
                "history": history,
                "target": rng.integers(1, ITEMS, batch),
                "price": rng.random((batch, 1), np.float32),
            }
        )
    return made


def test_no_answer_is_wrong_when_a_shard_dies_under_load(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model, asked = TwoHeads().eval(), queries(THREADS * EACH)
    example = {name: torch.from_numpy(array) for name, array in asked[0].items()}
    example = {
        name: tensor.repeat(3, *[1] * (tensor.dim() - 1)) for name, tensor in example.items()
    }
    spec = export(model, example, tmp_path / "model", name="heads").model
    assert [(f.table, f.pooling) for f in spec.features] == [("items", Pooling.NONE)] * 2
    bundle, profile = make_inputs(tmp_path, spec)
    plan = tmp_path / "plan.json"
    make_plan(bundle, profile, TIERS).save(plan)
    release = Packer(
        PackInputs(bundle, profile, plan), open_store(str(tmp_path / "store"), create=True)
    )
    packed = release.pack().release
    assert packed is not None
    made = Made(str(tmp_path / "store"), packed, bundle, profile, plan, plan, spec)
    with Fleet(made, tmp_path) as fleet:
        assert len(fleet.shards) == 4
        outcomes = ask_all(fleet, model, asked)
    assert outcomes["wrong"] == 0
    assert outcomes["right"] >= THREADS * EACH // 4
    assert outcomes["refused"] > 0
    assert sum(outcomes.values()) == THREADS * EACH


def ask_all(fleet: Fleet, model: nn.Module, asked: list[dict[str, np.ndarray]]) -> Counter[str]:
    """Ask from several threads, and kill a shard when a third has been answered."""
    outcomes: Counter[str] = Counter()
    lock, third = threading.Lock(), threading.Event()

    def ask(own: list[dict[str, np.ndarray]]) -> None:
        with QueryClient(fleet.gateway.url) as client:
            for inputs in own:
                with torch.inference_mode():
                    wanted = model(**{n: torch.from_numpy(a) for n, a in inputs.items()})
                try:
                    found, _ = client.infer(inputs)
                except ServeError as error:
                    outcome = "refused" if error.status in (502, 503, 504) else "wrong"
                else:
                    same = found.keys() == wanted.keys() and all(
                        np.allclose(found[name], wanted[name], rtol=1e-5, atol=1e-7)
                        for name in wanted
                    )
                    outcome = "right" if same else "wrong"
                with lock:
                    outcomes[outcome] += 1
                    if outcomes.total() >= len(asked) // 3:
                        third.set()

    threads = [threading.Thread(target=ask, args=(asked[n::THREADS],)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    assert third.wait(60)
    fleet.shards["cold"].process.kill()
    for thread in threads:
        thread.join()
    return outcomes

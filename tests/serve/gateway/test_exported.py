"""A model that `erless.export` brought in, behind its gateway: one user, many candidates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import tritonclient.http as triton
from torch import Tensor, nn

import erless
from erless.dlrm.graph_queries import GraphQueryFile, write_graph_queries
from erless.observe.loadtest.served_model import discover
from erless.specs.features import Pooling
from tests.serve.functions import Fleet
from tests.serve.gateway.test_graph import pack_bundle


class Candidates(nn.Module):
    """A user's history and price limits, candidates with words of any number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(2000, 8)
        self.users = nn.Embedding(1000, 8)
        self.tags = nn.EmbeddingBag(300, 8, mode="mean")
        self.words = nn.EmbeddingBag(300, 8, mode="sum", include_last_offset=True)
        self.out = nn.Linear(8, 1)

    def forward(
        self,
        user: Tensor,
        history: Tensor,
        limit: Tensor,
        item: Tensor,
        tags: Tensor,
        words: dict[str, Tensor],
        price: Tensor,
    ) -> dict[str, Tensor]:
        lengths = words["word.lengths"]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        mask = (history > 0).unsqueeze(2)
        liked = (self.items(history % 2000) * mask).sum(1) / mask.sum(1).clamp(min=1)
        known = liked * self.users(user) + self.tags(tags)
        vector = self.items(item) * known + self.words(words["word"], offsets)
        cheap = (price.float() < limit).float()
        return {"score": self.out(vector).squeeze(1) + cheap, "liked": liked}


def candidates(batch: int, seed: int) -> dict[str, Any]:
    """A request for `batch` candidates, the user's inputs once."""
    make = torch.Generator().manual_seed(seed)

    def ids(rows: int, *shape: int) -> Tensor:
        return torch.randint(0, rows, shape, generator=make)

    lengths = ids(4, batch)
    return {
        "user": ids(1000, 1),
        "history": ids(9000, 1, 5) * ids(2, 1, 5),
        "limit": torch.rand(1, generator=make),
        "item": ids(2000, batch),
        "tags": ids(300, batch, 3),
        "words": {"word": ids(300, int(lengths.sum())), "word.lengths": lengths},
        "price": torch.rand(batch, generator=make).to(torch.bfloat16),
    }


ONCE = ("user", "history", "limit")


def whole(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The model's own answer to a request."""
    batch = len(inputs["item"])
    once = {name: inputs[name].expand(batch, *inputs[name].shape[1:]) for name in ONCE}
    with torch.inference_mode():
        found: dict[str, Tensor] = Candidates().eval()(**inputs | once)
    return found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("exported")
    manifest = erless.export(
        Candidates(), candidates(4, 0), folder / "model", request=ONCE, name="ranker"
    )
    features = {f.name: (f.pooling, f.per, f.ids) for f in manifest.model.features}
    assert features == {
        "items.lookup": (Pooling.NONE, "request", "items.lookup.ids"),
        "items.item": (Pooling.NONE, "sample", "item"),
        "users": (Pooling.NONE, "request", "user"),
        "tags.tags": (Pooling.MEAN, "sample", "tags"),
        "words": (Pooling.SUM, "sample", "word"),
    }
    per = {tensor.name: tensor.per for tensor in manifest.model.inputs}
    assert {name: kind for name, kind in per.items() if kind != "sample"} == {
        **dict.fromkeys(ONCE, "request"),
        "word": "entry",
    }
    assert not (folder / "model" / "front.pt2").exists()
    with Fleet(pack_bundle(folder, manifest.model), folder) as started:
        yield started


@pytest.mark.parametrize("batch", [1, 2, 70])
def test_what_comes_once_is_answered_as_if_it_came_for_each(fleet: Fleet, batch: int) -> None:
    inputs = candidates(batch, seed=batch)
    given = []
    for name, value in {**inputs, **inputs["words"]}.items():
        if name == "words":
            continue
        bfloat16 = value.dtype is torch.bfloat16
        array = value.float().numpy().astype(ml_dtypes.bfloat16) if bfloat16 else value.numpy()
        datatype = "BF16" if bfloat16 else triton.np_to_triton_dtype(array.dtype)
        tensor = triton.InferInput(name, list(array.shape), datatype)
        given.append(tensor.set_data_from_numpy(array))
    client = triton.InferenceServerClient(f"127.0.0.1:{fleet.gateway.port}")
    answer = client.infer("ranker", given)
    for name, expected in whole(inputs).items():
        np.testing.assert_allclose(answer.as_numpy(name), expected, rtol=1e-5, atol=1e-6)
    client.close()


def test_a_file_of_queries_keeps_a_samples_entries_together(fleet: Fleet, tmp_path: Path) -> None:
    inputs = candidates(9, seed=3)
    words = inputs.pop("words")
    arrays = {name: value.numpy() for name, value in {**inputs, **words}.items() if name != "price"}
    arrays["price"] = inputs["price"].view(torch.uint16).numpy()
    for name in ONCE:
        arrays[name] = np.repeat(arrays[name], 3, axis=0)
    write_graph_queries(tmp_path / "q.safetensors", arrays, 3)
    served = discover(f"http://127.0.0.1:{fleet.gateway.port}").inputs
    queries = list(GraphQueryFile(tmp_path / "q.safetensors", served))
    assert [len(query["word"]) for query in queries] == [
        int(words["word.lengths"][begin : begin + 3].sum()) for begin in (0, 3, 6)
    ]
    assert np.concatenate([query["word"] for query in queries]).tolist() == words["word"].tolist()

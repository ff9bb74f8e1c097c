"""What comes once per request goes through a tower once, and the answer is the tiled one's."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from erless.dlrm.archive import build_module, compute_once, read_archive
from erless.dlrm.graph_archives import open_compute
from erless.errors import QueryError

BATCH = torch.export.Dim("batch", min=2, max=512)
TAKES = ("user", "item", "history", "mask")
WIDTHS = {"user": 3, "item": 4}


class Scores(nn.Module):
    """Joins a user, an item and a history that is weighed by the item."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3 + 4 + 4 + 3, 8), nn.Linear(8, 1)

    def forward(self, user: Tensor, item: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        weights = torch.softmax((history * item.unsqueeze(1)).sum(2), 1) * mask
        taste = (history * weights.unsqueeze(2)).sum(1)
        seen = torch.ops.aten.view.default(history, [-1, 12])[:, :3]
        joined = torch.cat([user, item, taste, seen], dim=1)
        scores: Tensor = self.head(torch.relu(self.hidden(joined)))[:, 0] + user[:, 0]
        return scores


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("once") / "tower.pt2"
    example = (torch.rand(4, 3), torch.rand(4, 4), torch.rand(4, 3, 4), torch.rand(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of itself
        program = torch.export.export(
            Scores().eval(), example, dynamic_shapes=tuple({0: BATCH} for _ in example)
        )
        torch.export.save(program.run_decompositions({}), path)
    return path


def once(samples: int) -> dict[str, np.ndarray]:
    """Inputs of `samples` items for one user, the user's with a stride of 0."""
    rng = np.random.default_rng(samples)
    shapes = {"user": (1, 3), "item": (samples, 4), "history": (1, 3, 4), "mask": (1, 3)}
    return {
        name: np.broadcast_to(rng.random(shape, np.float32), (samples, *shape[1:]))
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("samples", [2, 7, 300])
def test_answers_are_those_of_tiled_inputs(archive: Path, samples: int) -> None:
    plain = open_compute(archive, TAKES, ("score",))
    shared = open_compute(
        archive, TAKES, ("score",), once=frozenset({"user", "history", "mask"}), widths=WIDTHS
    )
    inputs = once(samples)
    tiled = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    found, wanted = shared(inputs)["score"], plain(tiled)["score"]
    assert found.shape == (samples,)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_users_columns_meet_one_sample(archive: Path) -> None:
    module = build_module(read_archive(archive))
    assert compute_once(module, {0}, {0: 3, 1: 4}) == set()  # its first column is added elsewhere
    shapes = [tuple(buffer.shape) for name, buffer in module.named_buffers() if "_once_" in name]
    assert shapes == [(8, 3)]
    inputs = [torch.from_numpy(np.array(array)) for array in once(5).values()]
    with torch.inference_mode():
        found = module(*inputs)[0]
        wanted = build_module(read_archive(archive))(*inputs)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_layers_of_unknown_widths_stay_whole(archive: Path) -> None:
    module = build_module(read_archive(archive))
    assert compute_once(module, {0}, {0: 3}) == set()
    assert any("_once_" in name for name, _ in module.named_buffers())  # one run is what is left
    module = build_module(read_archive(archive))
    assert compute_once(module, {1}, {1: 4}) == set()
    assert not any("_once_" in name for name, _ in module.named_buffers())


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 2)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        scores: Tensor = self.layer(torch.cat([user, item], 1))
        return scores


def test_several_samples_of_what_comes_once_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of itself
        program = torch.export.export(
            Joined(), (torch.rand(4, 3), torch.rand(4, 4)), dynamic_shapes=({0: BATCH}, {0: BATCH})
        )
        torch.export.save(program.run_decompositions({}), tmp_path / "tower.pt2")
    takes = ("user", "item")
    compute = open_compute(
        tmp_path / "tower.pt2", takes, ("y",), once=frozenset({"user"}), widths=WIDTHS
    )
    inputs = {name: once(4)[name] for name in takes}
    assert compute(inputs)["y"].shape == (4, 2)
    inputs["user"] = np.ascontiguousarray(inputs["user"])
    with pytest.raises(QueryError, match="user comes once per request, but has 4 samples"):
        compute(inputs)

"""From a PyTorch recommender to answers by its shards: `python examples/recommender.py`.

The cells of examples/recommender.ipynb are those of this file, which the tests run.
"""

# %% A model: any torch module that `torch.export` takes. This one is not trained.
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import erless

USERS, ITEMS, DIM = 20_000, 50_000, 16


class Recommender(torch.nn.Module):
    """A user and a history of items → the chance of a click."""

    def __init__(self) -> None:
        super().__init__()
        self.user = torch.nn.Embedding(USERS, DIM)
        self.items = torch.nn.EmbeddingBag(ITEMS, DIM, mode="mean")
        self.top = torch.nn.Linear(2 * DIM, 1)

    def forward(self, user: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """(B,) ids and (B, 8) ids → (B,) chances."""
        both = torch.cat([self.user(user), self.items(history)], 1)
        return torch.sigmoid(self.top(both))[:, 0]


torch.manual_seed(0)
torch.set_num_threads(1)  # small layers gain nothing from more
model = Recommender().eval()

# %% The model becomes a bundle: its tables, and what it computes around them.
folder = Path(tempfile.mkdtemp(prefix="erless-example-"))
generator = np.random.default_rng(0)


def draw(rows: int, shape: tuple[int, ...]) -> np.ndarray:
    """Ids as traffic has them: a few rows take most accesses."""
    return np.minimum(rows - 1, (rows * generator.random(shape) ** 12).astype(np.int64))


example = {
    "user": torch.from_numpy(draw(USERS, (4,))),
    "history": torch.from_numpy(draw(ITEMS, (4, 8))),
}
bundle = erless.export(model, example, folder / "model")
tables = [table.name for table in bundle.model.tables]
print("tables:", ", ".join(tables))

# %% Its access log: which rows each request of a while ago touched, one column per table.
columns = {"user": draw(USERS, (20_000, 1)), "items": draw(ITEMS, (20_000, 8))}
log = pa.table({name: pa.array(list(ids), pa.list_(pa.int64())) for name, ids in columns.items()})
pq.write_table(log, folder / "access.parquet")

# %% Profile, plan, pack, deploy: one function per shard, on this machine.
project = erless.Project(folder, traffic={"qps": 50, "batch": 4})
project.profile(folder / "access.parquet")
planned = project.plan(shards=2, resident_share=0.5)
print(planned)
project.pack()
deployment = project.deploy()
print("answers at", deployment.url)

# %% Ask it, and compare with the model itself.
try:
    users, histories = draw(USERS, (4,)), draw(ITEMS, (4, 8))
    with project.client() as client:
        scores = client.predict({"user": users, "history": histories}).scores
    with torch.inference_mode():
        expected = model(torch.from_numpy(users), torch.from_numpy(histories)).numpy()
    print("by shards:", scores, "by the model:", expected)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
finally:
    project.destroy()

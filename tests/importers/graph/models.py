"""Models as people write them, small."""

import torch
from torch import Tensor, nn


class HistoryModel(nn.Module):
    """A shared table, a masked mean over a sequence, bags in all forms, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(1000, 8, padding_idx=0)
        self.tags = nn.EmbeddingBag(500, 4, mode="mean", padding_idx=0)
        self.words = nn.EmbeddingBag(300, 4, mode="sum", include_last_offset=True)
        self.out = nn.Linear(2 * 8 + 4 + 4 + 2, 1)

    def forward(
        self,
        history: Tensor,
        target: Tensor,
        tags: Tensor,
        words: Tensor,
        offsets: Tensor,
        weights: Tensor,
        dense: Tensor,
    ) -> dict[str, Tensor]:
        mask = (history != 0).unsqueeze(-1)
        user = (self.items(history) * mask).sum(1) / mask.sum(1).clamp(min=1)
        words = self.words(words, offsets, per_sample_weights=weights)
        x = torch.cat([user, self.items(target), self.tags(tags), words, dense], 1)
        return {"ctr": torch.sigmoid(self.out(x.relu_())).squeeze(1), "user": user}


def history_inputs(batch: int, length: int = 6, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def ids(rows: int, *shape: int) -> Tensor:
        return torch.randint(0, rows, shape, generator=generator)

    lengths = ids(4, batch)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return {
        "history": ids(1000, batch, length) * (ids(2, batch, length) == 1),
        "target": ids(1000, batch),
        "tags": ids(500, batch, 3) * (ids(3, batch, 3) > 0),
        "words": ids(300, int(offsets[-1])),
        "offsets": offsets,
        "weights": torch.rand(int(offsets[-1]), generator=generator),
        "dense": torch.randn(batch, 2, generator=generator),
    }

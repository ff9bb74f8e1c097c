"""The ranker of histories: self-attention over the history, attention of the target to it.

SASRec's block (arXiv 1808.09781) reads the history, DIN's attention (arXiv 1706.06978) weighs it by
the target. History and target share one item table. A user may write a model like this one; nothing
in it knows erless.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["HistoryRanker"]

DIM = 16
HIDDEN = 48
DROPOUT = 0.3
FAR = -1e9  # of a score that shall have no weight


class HistoryRanker(nn.Module):
    """Whether a user will like a film, and how many stars they give it.

    Args:
        items, genres, stars: rows of these tables; row 0 of each is padding.
        length: of a history.
    """

    later: Tensor  # (length, length): whether a place lies behind another

    def __init__(self, items: int, genres: int, stars: int, length: int) -> None:
        super().__init__()
        self.items = nn.Embedding(items, DIM, padding_idx=0)
        self.genres = nn.EmbeddingBag(genres, DIM, mode="mean", padding_idx=0)
        self.stars = nn.Embedding(stars, DIM)
        self.positions = nn.Embedding(length, DIM)
        self.query, self.key, self.value = (nn.Linear(DIM, DIM) for _ in range(3))
        self.attended, self.forwarded = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.forward_net = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, DIM))
        self.weigh = nn.Sequential(nn.Linear(3 * DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.hidden = nn.Linear(4 * DIM, HIDDEN)
        self.like, self.rating = nn.Linear(HIDDEN, 1), nn.Linear(HIDDEN, 1)
        self.dropout = nn.Dropout(DROPOUT)
        self.register_buffer("later", torch.ones(length, length).triu(1) > 0, persistent=False)
        for table in (self.items, self.genres, self.stars, self.positions):
            nn.init.normal_(table.weight, std=0.05)

    def forward(
        self, history: Tensor, ratings: Tensor, target: Tensor, genres: Tensor
    ) -> dict[str, Tensor]:
        """The chance of four stars or more, and the stars expected.

        Args:
            history: (B, length) items, oldest first, 0 where there is none.
            ratings: (B, length) stars of each.
            target: (B,) the film in question.
            genres: (B, G) its genres, 0 where there are no more.

        Returns:
            `like` (B,) in 0 … 1 and `stars` (B,) in 1 … 5.
        """
        there = history != 0
        past = self.dropout(self.items(history) + self.stars(ratings) + self.positions.weight)
        past = self._read(past, there)
        item = self.items(target)
        user = self._taste(past, item, there)
        joined = torch.cat([user, item, user * item, self.genres(genres)], dim=1)
        hidden = self.dropout(torch.relu(self.hidden(joined)))
        return {
            "like": torch.sigmoid(self.like(hidden)).squeeze(1),
            "stars": 1 + 4 * torch.sigmoid(self.rating(hidden)).squeeze(1),
        }

    def _read(self, past: Tensor, there: Tensor) -> Tensor:
        """One block of SASRec: each place of (B, length, DIM) sees itself and what was before."""
        scores = self.query(past) @ self.key(past).transpose(1, 2) / math.sqrt(DIM)
        hidden = self.later.unsqueeze(0) | ~there.unsqueeze(1)
        attention = torch.softmax(scores.masked_fill(hidden, FAR), dim=2)
        past = self.attended(past + attention @ self.value(past))
        out: Tensor = self.forwarded(past + self.forward_net(past))
        return out

    def _taste(self, past: Tensor, item: Tensor, there: Tensor) -> Tensor:
        """The history (B, DIM) as the target sees it; zero where there is none."""
        beside = item.unsqueeze(1).expand_as(past)
        scores = self.weigh(torch.cat([past, beside, past * beside], dim=2)).squeeze(2)
        weights = torch.softmax(scores.masked_fill(~there, FAR), dim=1) * there
        return (weights.unsqueeze(2) * past).sum(1)

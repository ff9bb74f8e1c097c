"""Towers made of what real ones are made of; each takes dense (B,3) and pooled (B,2,4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.towers import CrossV2, DeepFm


class Tower(nn.Module):
    """A tower with parts and a formula."""

    def __init__(
        self, formula: Callable[[nn.ModuleList, Tensor, Tensor], Tensor], *parts: nn.Module
    ) -> None:
        super().__init__()
        self.formula, self.parts = formula, nn.ModuleList(parts)

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        return self.formula(self.parts, dense, pooled)


class Dlrm(nn.Module):
    """DLRM: bottom MLP, products below the diagonal, top MLP."""

    row: Tensor
    column: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
        self.top = nn.Sequential(nn.Linear(7, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 1))
        row, column = torch.tril_indices(3, 3, offset=-1)
        self.register_buffer("row", row, persistent=False)
        self.register_buffer("column", column, persistent=False)

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        x = self.bottom(dense)
        vectors = torch.cat([x.unsqueeze(1), pooled], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.row, self.column]
        return torch.sigmoid(self.top(torch.cat([x, products], 1))).squeeze(1)


class Din(nn.Module):
    """DIN's attention of a candidate over a history, with a mask and Dice."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(16, 8), nn.PReLU(), nn.Linear(8, 1))
        self.norm = nn.BatchNorm1d(7, eps=1e-9)
        self.alpha = nn.Parameter(torch.full((7,), 0.25))
        self.out = nn.Linear(7, 1)
        self.norm.running_mean = torch.randn(7)
        self.norm.running_var = torch.rand(7) + 0.5

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        query = pooled[:, :1].expand_as(pooled)
        pairs = torch.cat([query, pooled, query - pooled, query * pooled], -1)
        scores = self.score(pairs).squeeze(-1).masked_fill(pooled[..., 0] > 0.8, float("-inf"))
        weights = torch.nan_to_num(scores.softmax(-1))
        x = torch.cat([(weights.unsqueeze(1) @ pooled).squeeze(1), dense], 1)
        gate = torch.sigmoid(self.norm(x))
        logits: Tensor = self.out(gate * x + (1 - gate) * self.alpha * x)
        return logits.squeeze(1)


def folded(parts: nn.ModuleList, dense: Tensor, pooled: Tensor) -> Tensor:
    """The batch folded into rows and back: a shape of twice the batch."""
    rows: Tensor = parts[0](pooled.reshape(pooled.shape[0] * 2, 4)).softmax(-1)
    return rows.view(pooled.shape[0], 2, 4).sum((1, 2)) + dense.sum(1)


def attention(parts: nn.ModuleList, dense: Tensor, pooled: Tensor) -> Tensor:
    mask = pooled[..., 0] > 0.9
    attended = torch.nan_to_num(parts[0](pooled, pooled, pooled, key_padding_mask=mask)[0])
    rows: Tensor = parts[1](pooled).mean(1).sum(-1)
    return attended.sum((1, 2)) + rows + dense.sum(1)


def norms(parts: nn.ModuleList, dense: Tensor, pooled: Tensor) -> Tensor:
    rows: Tensor = parts[0](pooled.flatten(1)).sum(1) + parts[1](pooled).sum((1, 2))
    rows = rows + parts[2](pooled).sum((1, 2)) + parts[3](pooled).sum((1, 2))
    return rows + dense.sum(1)


def convolutions(parts: nn.ModuleList, dense: Tensor, pooled: Tensor) -> Tensor:
    deep: Tensor = parts[0](pooled).sum((1, 2)) + parts[1](pooled.unsqueeze(1)).flatten(1).sum(1)
    pools = F.max_pool1d(pooled, 2) + F.avg_pool1d(pooled, 2)
    return deep + pools.sum((1, 2)) + F.adaptive_avg_pool1d(pooled, 1).sum((1, 2)) + dense.sum(1)


def activations(parts: nn.ModuleList, dense: Tensor, pooled: Tensor) -> Tensor:
    functions = (
        F.relu,
        F.gelu,
        F.silu,
        F.elu,
        F.leaky_relu,
        F.softplus,
        F.hardtanh,
        F.selu,
        F.mish,
        F.hardswish,
        F.relu6,
        F.logsigmoid,
        F.hardsigmoid,
        F.celu,
        torch.tanh,
        torch.exp,
        torch.log1p,
        torch.abs,
        torch.sign,
        torch.sqrt,
        torch.square,
        torch.sin,
        torch.erf,
        torch.floor,
        torch.round,
        torch.neg,
    )
    total = sum(function(pooled).sum((1, 2)) for function in functions)
    powers = pooled**2 + pooled ** dense[:, :1, None] + torch.pow(2.0, pooled)
    return total + powers.sum((1, 2)) + F.gelu(dense, approximate="tanh").sum(1)


def masks(parts: nn.ModuleList, dense: Tensor, pooled: Tensor) -> Tensor:
    soft = pooled.masked_fill(pooled < 0.5, float("-inf")).softmax(-1).nan_to_num(0.0)
    either = ((pooled > 0) & (pooled < 1) | ~(pooled == 0)).float()
    sums = torch.where(pooled > 0.5, pooled, 0.0) + soft + either
    return sums.sum((1, 2)) + torch.where(dense[:, 0] > 0.5, 1.0, dense[:, 1])


def picking(parts: nn.ModuleList, dense: Tensor, pooled: Tensor) -> Tensor:
    places = torch.zeros_like(pooled, dtype=torch.long)
    sums = (pooled[:, 0], pooled[:, 1, 1:3], pooled.flatten(1)[:, torch.tensor([0, 3])])
    tops = (torch.topk(pooled, 2, dim=-1)[0], pooled.sort(-1)[0], pooled.flip(1))
    rows = (pooled.max(-1)[0], pooled.min(1)[0], pooled.amax(1), pooled.argmax(-1).float())
    total = sum(value.flatten(1).sum(1) for value in (*sums, *tops, *rows))
    moved = torch.gather(pooled, 2, places) + pooled.index_select(1, torch.tensor([1, 0]))
    return total + (moved.cumsum(1) + pooled.roll(1, 1)).sum((1, 2)) + dense.sum(1)


def shapes(parts: nn.ModuleList, dense: Tensor, pooled: Tensor) -> Tensor:
    values = (
        torch.stack([pooled, pooled], 1),
        torch.split(pooled, [1, 3], 2)[1],
        pooled.chunk(2, 1)[1],
        pooled.unbind(1)[0],
        pooled.repeat(1, 2, 1),
        pooled.unsqueeze(1).expand(-1, 3, -1, -1),
        pooled.permute(0, 2, 1).contiguous().view(pooled.shape[0], -1),
        F.pad(pooled, (0, 1)),
        pooled.repeat_interleave(2, 1),
        pooled.narrow(1, 0, 1),
        pooled.tril(),
        pooled.mT,
        torch.unflatten(pooled.flatten(1), 1, (2, 4)),
        pooled.diagonal(dim1=1, dim2=2),
    )
    return sum(value.flatten(1).sum(1) for value in values) + dense.sum(1)


def products(parts: nn.ModuleList, dense: Tensor, pooled: Tensor) -> Tensor:
    pairs = torch.einsum("bij,bkj->bik", pooled, pooled) + torch.bmm(pooled, pooled.mT)
    layer = parts[0]
    assert isinstance(layer, nn.Linear)
    square = layer.weight
    plain = torch.matmul(dense, square) + torch.addmm(layer.bias, dense, square)
    bilinear: Tensor = parts[1](dense, dense)
    return pairs.sum((1, 2)) + plain.sum(1) + bilinear.sum(1) + dense @ square[:, 0]


def constants(parts: nn.ModuleList, dense: Tensor, pooled: Tensor) -> Tensor:
    batch = pooled.shape[0]
    rows = torch.arange(batch) * 0.1 + torch.zeros(batch) + torch.full((batch,), 2.5)
    rows = rows + torch.tensor(3.0) + torch.eye(3).sum() + dense.new_ones(batch, 2).sum(1)
    return rows + torch.full_like(dense, -1e9).clamp(-1, 1).sum(1) + pooled.sum((1, 2))


def casts(parts: nn.ModuleList, dense: Tensor, pooled: Tensor) -> Tensor:
    wide = pooled.to(torch.float64).sum((1, 2)).float() + pooled.half().float().sum((1, 2))
    return (
        wide + (dense > 0.5).to(dense.dtype).sum(1) + dense.long().sum(1) + dense.bfloat16()[:, 0]
    )


def reductions(parts: nn.ModuleList, dense: Tensor, pooled: Tensor) -> Tensor:
    rows = pooled.mean(1) + pooled.std(1) + pooled.var(1) + pooled.prod(1) + pooled.logsumexp(1)
    some = (dense > 0.5).any(1).float() + (dense > 0.5).all(1).float()
    length: Tensor = pooled.norm()
    return rows.sum(1) + some + torch.div(dense, 0.3, rounding_mode="floor").sum(1) + length


def towers() -> dict[str, nn.Module]:
    """A tower per kind of part, with weights that are the same every time."""
    torch.manual_seed(0)
    return {
        "dlrm": Dlrm(),
        "dcn v2": CrossV2(3, 2, 4),
        "deepfm": DeepFm(3, 2, 4),
        "din": Din(),
        "attention": Tower(
            attention,
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.1),
        ),
        "batch folded": Tower(folded, nn.Linear(4, 4)),
        "norms": Tower(
            norms, nn.BatchNorm1d(8), nn.BatchNorm1d(2), nn.LayerNorm(4), nn.GroupNorm(1, 2)
        ),
        "convolutions": Tower(convolutions, nn.Conv1d(2, 3, 3, padding=1), nn.Conv2d(1, 2, (2, 2))),
        "activations": Tower(activations),
        "masks": Tower(masks),
        "picking": Tower(picking),
        "shapes": Tower(shapes),
        "products": Tower(products, nn.Linear(3, 3), nn.Bilinear(3, 3, 2)),
        "constants": Tower(constants),
        "casts": Tower(casts),
        "reductions": Tower(reductions),
    }

"""What `erless import inspect` says of checkpoints that others made."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch

from erless.errors import CheckpointError
from erless.importers.inspect import inspect_checkpoint
from tests.conftest import Cli

TABLE, LAYER = torch.zeros(100, 4), torch.zeros(3, 4)


def test_each_kind_gets_its_command(tmp_path: Path, cli: Cli) -> None:
    torch.save(
        OrderedDict({"emb_l.0.weight": TABLE, "bot_l.0.weight": LAYER}), tmp_path / "dlrm.pt"
    )
    prefix = "model.sparse_arch.embedding_bag_collection.embedding_bags"
    rec = {f"{prefix}.user.weight": TABLE, f"{prefix}.item.weight": TABLE}
    safetensors.torch.save_file({"own_emb.weight": TABLE, "top": LAYER}, tmp_path / "own.st")
    torch.save(rec, tmp_path / "rec.pt")
    program = torch.export.export(torch.nn.Linear(2, 1), (torch.ones(3, 2),))
    torch.export.save(program, tmp_path / "whole.pt2")
    for name, command in (
        ("dlrm.pt", "erless import dlrm {} --out model"),
        ("rec.pt", "erless import torchrec {} --pooling sum --tables user,item --out model"),
        ("own.st", 'in Python: erless.export(model, example_inputs, "model/", weights='),
        ("whole.pt2", "erless import torch {} --out model"),
    ):
        found = inspect_checkpoint(tmp_path / name)
        assert found.command.startswith(command.format(tmp_path / name)), found
    told = json.loads(cli("import", "inspect", tmp_path / "dlrm.pt", "-o", "json").stdout)
    assert told["tensors"] == [
        {"name": "emb_l.0.weight", "dtype": "float32", "shape": [100, 4], "table": True},
        {"name": "bot_l.0.weight", "dtype": "float32", "shape": [3, 4], "table": False},
    ]
    assert told["next"] == f"erless import dlrm {tmp_path / 'dlrm.pt'} --out model"


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no tensors here")
    with pytest.raises(CheckpointError):
        inspect_checkpoint(tmp_path / "text.pt")

"""A tower that was imported, served: it answers what torch does, within its batches."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from erless.dlrm.reference import Monolith
from erless.importers.options import ImportOptions
from erless.importers.poolings import Poolings
from erless.importers.tables import import_tables
from erless.specs.model import Pooling
from tests.releases import random_query
from tests.serve.functions import Function, request_of
from tests.towers import DeepFm


def test_queries_beyond_the_batches_of_the_export_are_a_400(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("user", "item"):
        np.save(tmp_path / f"{name}.npy", generator.standard_normal((9, 4)).astype(np.float32))
    batch = torch.export.Dim("batch", min=2, max=4)
    tower = DeepFm(3, 2, 4).eval()
    example = (torch.randn(3, 3), torch.randn(3, 2, 4))
    dynamic = {"dense": {0: batch}, "pooled": {0: batch}}
    program = torch.export.export(tower, example, dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "tower.pt2")
    sources = [str(tmp_path / f"{name}.npy") for name in ("user", "item")]
    options = ImportOptions(Poolings(Pooling.SUM))
    manifest = import_tables(sources, tmp_path / "tower.pt2", 3, tmp_path / "m", options)
    command = [sys.executable, "-m", "erless.serve.process.monolith", "--port", "0"]
    server = Function("monolith", tmp_path, [*command, "--model", str(tmp_path / "m")])
    try:
        server.ready()
        monolith = Monolith.load(tmp_path / "m")
        for samples in (1, 2, 4):
            query = random_query(manifest.model, samples, samples)
            body = json.dumps(request_of(query)).encode()
            status, answer = server.post("/v2/models/model/infer", body)
            assert status == 200, answer
            pooled = torch.stack(monolith.pool(query), dim=1)
            with torch.no_grad():
                expected = tower(torch.from_numpy(query.dense), pooled).flatten().numpy()
            np.testing.assert_allclose(answer["outputs"][0]["data"], expected, rtol=1e-5)
        body = json.dumps(request_of(random_query(manifest.model, 5, 5))).encode()
        status, answer = server.post("/v2/models/model/infer", body)
        assert (status, answer["error"]) == (400, "5 samples, at most 4 are taken")
    finally:
        server.stop()

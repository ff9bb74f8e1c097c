"""What a form does with every query: nothing that depends on the model alone."""

from __future__ import annotations

import pydantic
import pytest

from erless.serve.protocol.forms import KjtForm, SharedKjtForm
from tests.releases import Made, random_query


@pytest.mark.parametrize("form_class", [KjtForm, SharedKjtForm])
def test_no_specification_is_validated_with_a_query(
    packed_release: Made, form_class: type[KjtForm], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed_release.model
    form, query = form_class(model, 4096), random_query(model, 3, 5)
    inputs = {"values": query.values, "lengths": query.lengths, "dense": query.dense}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a specification was validated while a query was answered")

    monkeypatch.setattr(pydantic.BaseModel, "__init__", refuse)
    assert form.memory_bytes(inputs) > 2 * query.values.nbytes
    assert form.open(inputs).batch == 5

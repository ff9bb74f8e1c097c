"""The messages of the Open Inference Protocol over gRPC, as classes of the library protobuf.

`open_inference_grpc.proto` is the protocol's own file (kserve/open-inference-protocol,
specification/protocol), and `open_inference_grpc.json` its descriptor as protoc makes it:

    protoc --descriptor_set_out=set.pb open_inference_grpc.proto

The descriptor is registered in a pool of its own: clients bring the same names in theirs.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

__all__ = ["message_class"]

PACKAGE = "inference"


def _pool() -> descriptor_pool.DescriptorPool:
    text = files(__package__).joinpath("open_inference_grpc.json").read_text(encoding="utf-8")
    file = json_format.ParseDict(json.loads(text), descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


_POOL = _pool()


def message_class(name: str) -> Any:
    """The class of message `name`, such as "ModelInferRequest"."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))

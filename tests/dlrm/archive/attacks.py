"""The corpus of attacks: what each changes in a good archive, and the reason that must be given."""

from __future__ import annotations

import json
from typing import Any

from tests.dlrm.archive.hostile import (
    CONSTANTS,
    MODEL,
    SAMPLES,
    WEIGHTS,
    Change,
    Document,
    add_node,
    custom_object,
    every,
    graph,
    in_json,
    in_text,
    pickled,
    pickled_weight,
    second_program,
    set_record,
    weight,
)

CODE = "__import__('pathlib').Path('BOMB').touch()"
SYMBOL = "Symbol('"
TENSOR: Document = {"as_tensor": {"name": "dense"}}
CPU: Document = {"as_device": {"type": "cpu", "index": None}}


def ints(*values: int) -> Document:
    return {"as_ints": list(values)}


def scalar(value: Any) -> Document:
    return {"as_int": value} if isinstance(value, int) else {"as_float": value}


def expression(text: str) -> Change:
    return in_text(SYMBOL, f"{text} or {SYMBOL}")


def first_size(text: str) -> Change:
    """Put an expression where a size computed from others stands."""

    def change(document: Document) -> None:
        meta = next(iter(graph(document)["tensor_values"].values()))
        meta["strides"] = [{"as_expr": {"expr_str": text, "hint": None}}]

    return in_json(change)


def range_key(text: str) -> Change:
    return in_json(
        lambda document: document["range_constraints"].update({text: {"min_val": 1, "max_val": 2}})
    )


def rename_input(name: str) -> Change:
    return in_text('"dense"', json.dumps(name))


def argument(change: dict[str, Any]) -> Change:
    """Replace the first argument of the first node."""
    return in_json(lambda document: graph(document)["nodes"][0]["inputs"][0].update(arg=change))


def node(**fields: Any) -> Change:
    return in_json(lambda document: graph(document)["nodes"][0].update(fields))


def field(name: str, value: Any) -> Change:
    return in_json(lambda document: document.update({name: value}))


def layout(**fields: Any) -> Change:
    return weight(lambda meta: meta["tensor_meta"].update(fields))


def sizes(*values: int) -> list[Document]:
    return [{"as_int": value} for value in values]


def output(name: str) -> Change:
    """Let the program give a value that no node computes."""

    def change(document: Document) -> None:
        given = {"as_tensor": {"name": name}}
        graph(document)["outputs"] = [given]
        document["graph_module"]["signature"]["output_specs"] = [{"user_output": {"arg": given}}]
        values = graph(document)["tensor_values"]
        values[name] = values["sigmoid"]

    return in_json(change)


def aten(operator: str, /, result: str = "extra", **arguments: Document) -> Change:
    """Put a call of an ATen operator in front of all others."""
    return add_node(f"torch.ops.aten.{operator}", *arguments.items(), output=result)


def instead(target: str) -> Change:
    """Call something else where the graph calls relu."""
    return in_text("torch.ops.aten.relu.default", target)


def drop(name: str) -> Change:
    def apply(files: dict[str, bytes], bomb: Any) -> None:
        del files[name]

    return apply


def tree(text: str) -> Change:
    return in_json(
        lambda document: document["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec=text
        )
    )


FROM_FILE = aten(
    "from_file.default",
    filename={"as_string": "BOMB"},
    shared={"as_bool": True},
    size=scalar(4),
)
FILL = aten("fill_.Scalar", "filled", self={"as_tensor": {"name": "extra"}}, value=scalar(1))
BIAS: Document = {"as_tensor": {"name": "p_deep_0_bias"}}
HUGE = ints(1 << 20, 1 << 20)
META: Document = {"as_device": {"type": "meta", "index": None}}

PICKLES: dict[str, tuple[Change, str]] = {
    "legacy weights": (set_record("data/weights/model.pt", pickled), "is a pickled object"),
    "legacy constants": (set_record("data/constants/model.pt", pickled), "is a pickled object"),
    "legacy weights alone": (
        every(set_record("data/weights/model.pt", pickled), drop(WEIGHTS)),
        "is a pickled object",
    ),
    "a pickled weight": (pickled_weight, "is a pickled object"),
    "a custom object": (custom_object("custom_obj"), "is a pickled object"),
    "an opaque object": (custom_object("opaque_obj"), "is a pickled object"),
    "pickled example inputs": (set_record(SAMPLES, pickled), "sample inputs hold pickled objects"),
    "example inputs of no format": (
        set_record(SAMPLES, b"\x80\x02."),
        "not a torch.export archive",
    ),
    "a second program with its own inputs": (
        second_program(set_record(SAMPLES, pickled)),
        "no record of an archive|a second program",
    ),
    "a second program with code": (
        second_program(expression(CODE)),
        "no record of an archive|a second program",
    ),
    "names in capitals": (set_record("data/weights/MODEL.PT", pickled), "no record of an archive"),
    "a folder in capitals": (set_record("Models/model.json", b"{}"), "no record of an archive"),
    "example inputs in capitals": (
        set_record("data/sample_inputs/MODEL.pt", pickled),
        "no record of an archive",
    ),
    "compiled code": (set_record("data/aotinductor/model/a.so", b"\x7fELF"), "compiled code"),
    "an ExecuTorch program": (set_record("data/executorch/a.pte", b""), "no record of an archive"),
    "an extra file": (set_record("extra/notes", b""), "no record of an archive"),
}

TEXTS: dict[str, tuple[Change, str]] = {
    "code in a size": (expression(CODE), "no function __import__|not arithmetic"),
    "code as a range": (range_key("exec('1')"), "no function exec"),
    "a tower of powers": (first_size("9**9**9**9"), r"'\*\*' is not expected"),
    "a power of powers": (
        first_size("Pow(9, Pow(9, Pow(9, 9)))"),
        "an exponent is no number",
    ),
    "a range of many digits": (range_key("2^99999999"), "is not arithmetic"),
    "a range without a symbol": (range_key("2**99999999"), "an exponent is no number"),
    "a number of many digits": (first_size("9" * 1000), "is no number"),
    "a long expression": (first_size("1+" * 5000 + "1"), "2000 characters"),
    "a nested expression": (first_size("(" * 900 + "1" + ")" * 900), "nested too deeply"),
    "an attribute": (first_size("s0.__class__"), "is not arithmetic"),
    "a lambda": (first_size("(lambda: 1)()"), "is not arithmetic"),
    "a string": (first_size("Symbol('a b')"), "is not arithmetic"),
    "a name that is code": (rename_input("dense): exec('1')  #"), "should match pattern"),
    "a name with a newline": (rename_input("dense\nimport os"), "should match pattern"),
    "a name that is a keyword": (rename_input("lambda"), "a word of Python"),
    "a name of Python's own": (rename_input("__class__"), "a word of Python"),
    "a name of letters that are not": (rename_input("dénse"), "should match pattern"),
    "a long name": (rename_input("d" * 100_000), "at most 200"),
    "a type as a tree": (in_text("builtins.tuple", "os.path"), "takes or gives a os.path"),
    "a nested tree": (tree("[1, " + '{"type": "builtins.list", "children_spec": [' * 60), "nested"),
    "a tree that is none": (tree("[1, 2]"), "a node of the tree is damaged"),
    "a tree of version 2": (tree("[2, {}]"), "not a tree of version 1"),
}

NODES: dict[str, tuple[Change, str]] = {
    "torch.load": (instead("torch.load"), "torch.load is not on"),
    "a function of Python": (instead("builtins.exec"), "not on erless"),
    "a getter": (instead("_operator.attrgetter"), "not on erless"),
    "another namespace": (instead("torch.ops.mylib.relu.default"), "not on erless"),
    "an attribute of an operator": (instead("torch.ops.aten.relu.__init__"), "not on erless"),
    "a file mapped and written": (every(FILL, FROM_FILE), "from_file.default is not on"),
    "a file mapped": (FROM_FILE, "from_file.default is not on"),
    "another operator called with its arguments": (
        instead("torch.ops.aten.from_file.default"),
        "from_file.default is not on",
    ),
    "raw strides": (
        aten("as_strided.default", self=TENSOR, size=ints(9), stride=ints(9)),
        "as_strided.default is not on",
    ),
    "memory of others": (aten("empty.memory_format", size=ints(9)), "memory_format is not on"),
    "an out variant": (aten("relu.out", self=TENSOR, out=TENSOR), "relu.out is not on"),
    "random numbers": (aten("rand.default", size=ints(4)), "random numbers"),
    "a value read back": (aten("item.default", self=TENSOR), "not on erless"),
    "an embedding bag": (aten("embedding_bag.default", weight=TENSOR), "not on erless"),
    "a shift": (add_node("_operator.lshift", ("a", scalar(1)), ("b", scalar(2**40))), "not on"),
    "a branch": (argument({"as_graph": {"name": "g", "graph": {}}}), "graph within the graph"),
    "an operator as argument": (argument({"as_operator": "os.system"}), "is not known here"),
    "a custom object as argument": (
        argument({"as_custom_obj": {"name": "a", "class_fqn": "b"}}),
        "is not known here",
    ),
    "two kinds of argument": (argument({"as_int": 1, "as_float": 1.0}), "alternatives, not one"),
    "a weight overwritten": (
        aten("mul_.Scalar", self=BIAS, other=scalar(2)),
        "writes to a value that others use",
    ),
    "an input overwritten": (aten("relu_.default", self=TENSOR), "writes to a value"),
    "terabytes of zeros": (aten("zeros.default", size=HUGE), "elements"),
    "terabytes by repetition": (aten("repeat.default", self=TENSOR, repeats=HUGE), "elements"),
    "terabytes by padding": (aten("pad.default", self=TENSOR, pad=HUGE), "elements"),
    "a long range": (aten("arange.default", end=scalar(2**60)), "elements"),
    "a large identity": (aten("eye.default", n=scalar(2**31)), "elements"),
    "a tensor for a size": (
        aten("select.int", self=TENSOR, dim=TENSOR, index=scalar(0)),
        "dim is tensor, not int",
    ),
    "a string for a tensor": (
        aten("relu.default", self={"as_string": "dense"}),
        "self is string, not Tensor",
    ),
    "an unknown argument": (aten("relu.default", self=TENSOR, out=TENSOR), "with self, out"),
    "an argument twice": (
        add_node("torch.ops.aten.relu.default", ("self", TENSOR), ("self", TENSOR)),
        "is called with self, self",
    ),
    "a missing argument": (aten("add.Tensor", self=TENSOR), "without other"),
    "code as a mode": (
        aten("gelu.default", self=TENSOR, approximate={"as_string": "exec('1')"}),
        "approximate is string",
    ),
    "a device of elsewhere": (
        aten("zeros.default", size=ints(1), device=META),
        "should be 'cpu' or 'cuda'",
    ),
    "a sparse layout": (
        aten("zeros.default", size=ints(1), layout={"as_layout": 1}),
        "should be 7",
    ),
    "a value before its node": (
        aten("relu.default", self={"as_tensor": {"name": "sigmoid"}}),
        "sigmoid is used before any node gives it",
    ),
    "a value of itself": (
        aten("relu.default", self={"as_tensor": {"name": "extra"}}),
        "extra is used before any node gives it",
    ),
    "two values of one name": (aten("relu.default", "dense", self=TENSOR), "are called dense"),
    "a weight replaced": (aten("relu.default", "p_deep_0_bias", self=TENSOR), "are called"),
    "too many nodes": (
        in_json(lambda it: graph(it).update(nodes=graph(it)["nodes"][:1] * 10_001)),
        "at most 10000",
    ),
    "no outputs": (in_json(lambda it: graph(it).update(outputs=[])), "outputs are described"),
    "an output of nobody": (output("nobody"), "nobody is given by no node"),
    "dropout in training": (
        aten("dropout.default", input=TENSOR, p=scalar(0.5), train={"as_bool": True}),
        r"training mode; call \.eval\(\)",
    ),
    "a buffer written": (
        in_json(
            lambda document: document["graph_module"]["signature"]["output_specs"].insert(
                0, {"buffer_mutation": {"arg": {"name": "a"}, "buffer_name": "running"}}
            )
        ),
        r"exported in training mode; call \.eval\(\)",
    ),
}

NUMBERS: dict[str, tuple[Change, str]] = {
    "infinity": (argument({"as_float": 1e308 * 10}), "Infinity is no JSON number"),
    "a number beyond floats": (
        in_text('"as_int": 1}', '"as_float": 1e999}'),
        "finite number",
    ),
    "a number beyond 64 bits": (argument({"as_int": 2**64}), "less than"),
    "a number of 100,000 digits": (
        in_text('"as_int": 1}', f'"as_int": {"9" * 100_000}}}'),
        "damaged JSON",
    ),
    "true for a number": (argument({"as_int": True}), "valid integer"),
    "text for a number": (argument({"as_int": "1"}), "valid integer"),
    "a key twice": (
        in_text('"opset_version"', '"opset_version": {}, "opset_version"'),
        "stands twice",
    ),
    "deep JSON": (set_record(MODEL, b"[" * 200_000 + b"]" * 200_000), "nested 200,000 deep"),
    "deep objects": (set_record(MODEL, b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "deep"),
    "deep in a field": (field("verifiers", json.loads("[" * 60 + "]" * 60)), "nested"),
    "many values": (set_record(MODEL, b"[" + b"1," * 5_000_000 + b"1]"), "values, at most"),
    "many faults": (field("verifiers", [1] * 500_000), "should have at most|valid string"),
    "many fields of nobody": (
        in_json(lambda document: document.update({f"v{n}": 1 for n in range(300_000)})),
        "is not known here",
    ),
    "many faults by name": (
        in_json(
            lambda document: graph(document).update(
                tensor_values={f"v{n}": 1 for n in range(300_000)}
            )
        ),
        "tensor_values",
    ),
    "JSON beyond its limit": (set_record(MODEL, b" " * (33 << 20)), "bytes, at most"),
    "not JSON": (set_record(MODEL, b"\x80\x02}q\x00."), "damaged JSON"),
    "not an object": (set_record(MODEL, b"[]"), "dictionary"),
    "nothing": (set_record(MODEL, b""), "damaged JSON"),
    "a field of nobody": (field("hook", "os.system"), "'hook' is not known here"),
    "a schema of tomorrow": (field("schema_version", {"major": 9, "minor": 0}), "should be 8"),
    "no graph": (in_text('"graph":', '"grph":'), "Field required|not known here"),
}

RECORDS: dict[str, tuple[Change, str]] = {
    "a short record": (set_record("data/weights/weight_0", b"\0" * 8), "its record has 8"),
    "an empty record": (set_record("data/weights/weight_0", b""), "its record has 0"),
    "a record of half an element": (
        set_record("data/weights/weight_0", b"\0" * 357),
        "its record has 357",
    ),
    "a missing record": (drop("data/weights/weight_0"), "there is no record"),
    "a record of nobody": (
        set_record("data/weights/weight_999", b"\0" * 4),
        "belongs to no tensor",
    ),
    "a missing table of weights": (drop(WEIGHTS), "there is no record"),
    "stride zero": (layout(sizes=sizes(1 << 40), strides=sizes(0)), "repeats its elements"),
    "sizes beyond 64 bits": (
        layout(sizes=sizes(*[1 << 40] * 8), strides=sizes(*[0] * 8)),
        "repeats its elements",
    ),
    "strides beyond 64 bits": (
        layout(sizes=sizes(3, 3), strides=sizes(1 << 62, 1 << 62)),
        "its record has",
    ),
    "a negative stride": (layout(sizes=sizes(3), strides=sizes(-1)), r"strides \[-1\]"),
    "a negative size": (layout(sizes=sizes(-3), strides=sizes(1)), r"sizes \[-3\]"),
    "a negative offset": (layout(storage_offset={"as_int": -8}), "offset -8"),
    "an offset past the end": (layout(storage_offset={"as_int": 1 << 40}), "its record has"),
    "a size that is computed": (
        layout(sizes=[{"as_expr": {"expr_str": "s0", "hint": None}}]),
        "has sizes",
    ),
    "more strides than sizes": (layout(sizes=sizes(2), strides=sizes(1, 1)), "strides"),
    "a dtype of nobody": (layout(dtype=10), "has dtype 10"),
    "a nested tensor": (layout(layout=1), "should be 7"),
    "a meta tensor": (layout(device={"type": "meta", "index": None}), "should be 'cpu' or 'cuda'"),
    "no layout": (weight(lambda meta: meta.update(tensor_meta=None)), "is a pickled object"),
    "a path out": (weight(lambda meta: meta.update(path_name="../../x")), "should match pattern"),
    "a record of another kind": (
        weight(lambda meta: meta.update(path_name="tensor_0")),
        "is a pickled object",
    ),
    "a weight that is a constant too": (
        lambda files, bomb: files.update(
            {CONSTANTS: files[WEIGHTS].replace(b'"weight_', b'"tensor_')}
        ),
        "a weight and a constant|there is no record",
    ),
    "another format": (set_record("archive_format", b"pt3"), "not a torch.export archive"),
    "another version": (set_record("archive_version", b"1"), "not a torch.export archive"),
    "big end first": (set_record("byteorder", b"big"), "not a torch.export archive"),
}

ATTACKS = {**PICKLES, **TEXTS, **NODES, **NUMBERS, **RECORDS}

"""Arrow arrays that lie, made byte by byte through the C data interface, as a foreign producer may hand them over.

pyarrow refuses to make most of them, so the structs are filled with ctypes; how they are released is pyarrow's. Run as
a program it appends each to topics of every kind, in each way, and says of each what came of it: one line of JSON per
try.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

import streamcore as sc

_MEMORY_BYTES = 6 << 30


class _Schema(ctypes.Structure):
    pass


class _Array(ctypes.Structure):
    pass


class _Stream(ctypes.Structure):
    pass


_ReleaseSchema = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Schema))
_ReleaseArray = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Array))
_ReleaseStream = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Stream))
_GetSchema = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Stream), ctypes.POINTER(_Schema))
_GetNext = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Stream), ctypes.POINTER(_Array))
_GetError = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.POINTER(_Stream))
_Schema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_char_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.POINTER(ctypes.POINTER(_Schema))),
    ("dictionary", ctypes.POINTER(_Schema)),
    ("release", _ReleaseSchema),
    ("private_data", ctypes.c_void_p),
]
_Array._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_Array))),
    ("dictionary", ctypes.POINTER(_Array)),
    ("release", _ReleaseArray),
    ("private_data", ctypes.c_void_p),
]
_Stream._fields_ = [
    ("get_schema", _GetSchema),
    ("get_next", _GetNext),
    ("get_last_error", _GetError),
    ("release", _ReleaseStream),
    ("private_data", ctypes.c_void_p),
]


_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_kept: list[Any] = []  # what pointers in the structs point to


class Raw:
    """An array as its maker describes it, true or not."""

    def __init__(
        self,
        kind: str,
        length: int,
        buffers: Sequence[bytes | None],
        *,
        nulls: int = 0,
        offset: int = 0,
        children: Sequence[Raw] = (),
        dictionary: Raw | None = None,
        buffer_count: int | None = None,
        name: str = "",
    ) -> None:
        self.schema, self.array = _Schema(), _Array()
        pa.nulls(0)._export_to_c(ctypes.addressof(self.array), ctypes.addressof(self.schema))  # for its `release`
        data = [None if one is None else ctypes.create_string_buffer(one, max(1, len(one))) for one in buffers]
        places = [None if one is None else ctypes.addressof(one) for one in data]
        pointers = (ctypes.c_void_p * max(1, len(data)))(*places)
        schemas = (ctypes.POINTER(_Schema) * max(1, len(children)))(*[ctypes.pointer(one.schema) for one in children])
        arrays = (ctypes.POINTER(_Array) * max(1, len(children)))(*[ctypes.pointer(one.array) for one in children])
        _kept.append((self, data, pointers, schemas, arrays, children, dictionary))
        self.schema.format, self.schema.name, self.schema.flags = kind.encode(), name.encode(), 2
        self.schema.n_children, self.schema.children = len(children), schemas
        self.array.length, self.array.null_count, self.array.offset = length, nulls, offset
        self.array.n_buffers = len(buffers) if buffer_count is None else buffer_count
        self.array.n_children, self.array.buffers, self.array.children = len(children), pointers, arrays
        if dictionary is not None:
            self.schema.dictionary = ctypes.pointer(dictionary.schema)
            self.array.dictionary = ctypes.pointer(dictionary.array)

    def __arrow_c_array__(self, requested: Any = None) -> tuple[Any, Any]:
        return (
            _capsule(ctypes.addressof(self.schema), b"arrow_schema", None),
            _capsule(ctypes.addressof(self.array), b"arrow_array", None),
        )


class WrongName(Raw):
    """Hands its array over as something else."""

    def __arrow_c_array__(self, requested: Any = None) -> tuple[Any, Any]:
        return (
            _capsule(ctypes.addressof(self.schema), b"arrow_array", None),
            _capsule(ctypes.addressof(self.array), b"arrow_schema", None),
        )


class NoCapsules:
    """Hands over what is no capsule."""

    def __arrow_c_array__(self, requested: Any = None) -> Any:
        return 1, 2


class Raising:
    """Raises where it is asked for its data."""

    def __arrow_c_array__(self, requested: Any = None) -> Any:
        raise RuntimeError("the producer does not want to")

    def __arrow_c_stream__(self, requested: Any = None) -> Any:
        raise RuntimeError("the producer does not want to")


class RawStream:
    """A stream of batches of one column `value`, whose n-th batch is another thing than its schema says."""

    def __init__(self, batches: Sequence[Raw], number: int = 0, message: bytes | None = None) -> None:
        self._batches = iter(batches)
        self._number, self._message = number, message
        self._schema = Raw("+s", 0, [None], children=[Raw("z", 0, [None, bytes(4), b""], name="value")])
        self.stream = _Stream()
        empty = pa.RecordBatchReader.from_batches(pa.schema([]), [])
        empty._export_to_c(ctypes.addressof(self.stream))  # for its `release`
        self.stream.get_schema = _GetSchema(self._get_schema)
        self.stream.get_next = _GetNext(self._get_next)
        self.stream.get_last_error = _GetError(lambda _: self._message)
        _kept.append(self)

    def _get_schema(self, _: Any, out: Any) -> int:
        ctypes.memmove(out, ctypes.addressof(self._schema.schema), ctypes.sizeof(_Schema))
        return 0

    def _get_next(self, _: Any, out: Any) -> int:
        batch = next(self._batches, None)
        if batch is None and self._number:
            return self._number
        if batch is None:
            out.contents.release = _ReleaseArray()
        else:
            ctypes.memmove(out, ctypes.addressof(batch.array), ctypes.sizeof(_Array))
        return 0

    def __arrow_c_stream__(self, requested: Any = None) -> Any:
        return _capsule(ctypes.addressof(self.stream), b"arrow_array_stream", None)


def i32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}i", *numbers)


def i64(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}q", *numbers)


def one_view(size: int, buffer: int, offset: int, prefix: bytes = b"xxxx") -> bytes:
    return struct.pack("<i4sii", size, prefix, buffer, offset)


def views(*entries: bytes, size: int = 30, kind: str = "vz", length: int | None = None) -> Raw:
    return Raw(kind, len(entries) if length is None else length, [None, b"".join(entries), b"x" * 30, i64(size)])


def indices(*numbers: int, values: Raw | None = None) -> Raw:
    return Raw("l", len(numbers), [None, i64(*numbers)], dictionary=values or Raw("z", 2, [None, i32(0, 1, 2), b"ab"]))


def deep(levels: int) -> Raw:
    made = Raw("l", 1, [None, i64(1)], name="x")
    for _ in range(levels):
        made = Raw("+l", 1, [None, i32(0, 1)], children=[made], name="x")
    return made


ABC = b"abc"
OFFSETS = i32(0, 1, 2, 3)
LIES: dict[str, Callable[[], Any]] = {
    "offsets that go back": lambda: Raw("z", 3, [None, i32(0, 3, 1, 3), ABC]),
    "offsets that go back at the end": lambda: Raw("z", 3, [None, i32(0, 3, 3, 2), ABC]),
    "negative offsets": lambda: Raw("z", 3, [None, i32(-9, 1, 2, 3), ABC]),
    "negative offsets inside": lambda: Raw("z", 3, [None, i32(0, -(1 << 30), 2, 3), ABC]),
    "offsets beyond the end inside": lambda: Raw("z", 3, [None, i32(0, 1 << 30, 2, 3), ABC]),
    "offsets below zero at the end": lambda: Raw("z", 3, [None, i32(0, 1, 2, -5), ABC]),
    "large offsets that go back": lambda: Raw("Z", 3, [None, i64(0, 3, 1, 3), ABC]),
    "large offsets that 32 bits cut": lambda: Raw("Z", 3, [None, i64(0, 1 << 40, 1, 3), ABC]),
    "large offsets below zero": lambda: Raw("Z", 3, [None, i64(-(1 << 62), 1, 2, 3), ABC]),
    "offsets missing": lambda: Raw("z", 3, [None, None, ABC]),
    "data missing": lambda: Raw("z", 3, [None, OFFSETS, None]),
    "length of -1": lambda: Raw("z", -1, [None, OFFSETS, ABC]),
    "length of 2^62": lambda: Raw("z", 1 << 62, [None, OFFSETS, ABC]),
    "length of 2^63 - 1": lambda: Raw("z", (1 << 63) - 1, [None, OFFSETS, ABC]),
    "fixed length of 2^62": lambda: Raw("w:16", 1 << 62, [None, bytes(64)]),
    "nulls of 2^63 - 1": lambda: Raw("n", (1 << 63) - 1, []),
    "offset of 2^62": lambda: Raw("z", 3, [None, OFFSETS, ABC], offset=1 << 62),
    "offset of -1": lambda: Raw("z", 3, [None, OFFSETS, ABC], offset=-1),
    "one buffer": lambda: Raw("z", 3, [None]),
    "nine buffers": lambda: Raw("z", 3, [None, OFFSETS, ABC], buffer_count=9),
    "-1 buffers": lambda: Raw("z", 3, [None, OFFSETS, ABC], buffer_count=-1),
    "nulls without bits": lambda: Raw("z", 3, [None, OFFSETS, ABC], nulls=2),
    "fewer nulls than said": lambda: Raw("z", 3, [b"\7", OFFSETS, ABC], nulls=3),
    "more nulls than rows": lambda: Raw("z", 3, [b"\0", OFFSETS, ABC], nulls=100),
    "-5 nulls": lambda: Raw("z", 3, [b"\0", OFFSETS, ABC], nulls=-5),
    "fixed values missing": lambda: Raw("w:4", 3, [None, None]),
    "unknown format": lambda: Raw("?!", 3, [None, OFFSETS, ABC]),
    "width of -1": lambda: Raw("w:-1", 3, [None, ABC]),
    "width of 10^11": lambda: Raw("w:100000000000", 3, [None, ABC]),
    "list without child": lambda: Raw("+l", 3, [None, OFFSETS]),
    "a struct longer than its child": lambda: Raw("+s", 1 << 61, [None], children=[Raw("l", 1, [None, i64(1)])]),
    "a list beyond its child": lambda: Raw(
        "+l", 3, [None, i32(0, 1, 2, 1 << 30)], children=[Raw("l", 1, [None, i64(1)])]
    ),
    "nesting of 3000": lambda: deep(3000),
    "an index beyond the dictionary": lambda: indices(0, 7, 1),
    "a negative index": lambda: indices(0, -7, 1),
    "an index of 2^62": lambda: indices(0, 1 << 62, 1),
    "a dictionary that is not sound": lambda: indices(0, 1, values=Raw("z", 2, [None, i32(0, 1 << 30, 2), b"ab"])),
    "a view of a buffer that is not there": lambda: views(one_view(20, 5, 0)),
    "a view of buffer -1": lambda: views(one_view(20, -1, 0)),
    "a view beyond its buffer": lambda: views(one_view(20, 0, 1 << 30)),
    "a view of 2^30 bytes": lambda: views(one_view(1 << 30, 0, 0)),
    "a view of -5 bytes": lambda: views(one_view(-5, 0, 0)),
    "a view into -1 bytes": lambda: views(one_view(20, 0, 0), size=-1),
    "a view of text that is not there": lambda: views(one_view(20, 5, 0), kind="vu"),
    "a view whose prefix is another": lambda: views(one_view(20, 0, 0, b"aaaa")),
    "run ends beyond the values": lambda: Raw(
        "+r", 100, [], children=[Raw("i", 2, [None, i32(1, 2)]), Raw("l", 1, [None, i64(1)])]
    ),
    "run ends that go back": lambda: Raw(
        "+r", 3, [], children=[Raw("i", 2, [None, i32(5, 3)]), Raw("z", 2, [None, i32(0, 1, 2), b"ab"])]
    ),
    "a union of unknown kind": lambda: Raw(
        "+ud:0,1", 3, [b"\0\5\1", i32(0, 99, 5)], children=[Raw("l", 1, [None, i64(1)]), Raw("l", 1, [None, i64(1)])]
    ),
    "list views beyond the child": lambda: Raw(
        "+vl", 2, [None, i32(0, 10), i32(1, 50)], children=[Raw("l", 1, [None, i64(1)])]
    ),
    "capsules of the wrong name": lambda: WrongName("z", 3, [None, OFFSETS, ABC]),
    "no capsules": NoCapsules,
    "a producer that raises": Raising,
    "a released array": lambda: consumed(Raw("z", 3, [None, OFFSETS, ABC])),
}
SOUND: dict[str, tuple[Callable[[], Any], list[bytes | None]]] = {
    "plain": (lambda: Raw("z", 3, [None, OFFSETS, ABC]), [b"a", b"b", b"c"]),
    "a slice": (lambda: Raw("z", 2, [None, OFFSETS, ABC], offset=1), [b"b", b"c"]),
    "a null": (lambda: Raw("z", 3, [b"\5", OFFSETS, ABC], nulls=1), [b"a", None, b"c"]),
    "nulls not counted": (lambda: Raw("z", 3, [b"\5", OFFSETS, ABC], nulls=-1), [b"a", None, b"c"]),
    "a dictionary": (lambda: indices(1, 0, 1), [b"b", b"a", b"b"]),
    "views": (lambda: views(one_view(20, 0, 5)), [b"x" * 20]),
    "large": (lambda: Raw("Z", 3, [None, i64(0, 1, 2, 3), ABC]), [b"a", b"b", b"c"]),
}
STREAMS: dict[str, Callable[[], Any]] = {
    "a batch of another kind": lambda: RawStream(
        [batch(Raw("z", 3, [None, OFFSETS, ABC])), Raw("l", 3, [None, i64(1, 2, 3)])]
    ),
    "a batch with a column too many": lambda: RawStream(
        [batch(Raw("z", 3, [None, OFFSETS, ABC]), Raw("z", 3, [None, OFFSETS, ABC]))]
    ),
    "a batch longer than its column": lambda: RawStream([batch(Raw("z", 3, [None, OFFSETS, ABC]), length=5)]),
    "an error with a message": lambda: RawStream([batch(Raw("z", 3, [None, OFFSETS, ABC]))], 5, b"the drive is gone"),
    "an error without a message": lambda: RawStream([], 22),
    "offsets that go back in the second batch": lambda: RawStream(
        [batch(Raw("z", 3, [None, OFFSETS, ABC])), batch(Raw("z", 3, [None, i32(0, 3, 1, 3), ABC]))]
    ),
    "a producer that raises": Raising,
}


def batch(*columns: Raw, length: int | None = None) -> Raw:
    return Raw("+s", columns[0].array.length if length is None else length, [None], children=columns)


def three() -> Raw:
    return Raw("z", 3, [None, OFFSETS, ABC])


def table(**columns: Any) -> Any:
    """A record batch of these columns; what is no struct of ours stands for all of it."""
    for name, column in columns.items():
        if not isinstance(column, Raw) or isinstance(column, WrongName):
            return column
        column.schema.name = name.encode()
    return batch(*columns.values())


def consumed(raw: Raw) -> Raw:
    pa.array(raw)
    return raw


# ---- appending them -----------------------------------------------------------------------------------------------


def _ways(store: sc.Store, make: Callable[[], Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    topics = {name: store.topic(name) for name in ("one", "four", "packed", "compacted")}
    yield "values", lambda: topics["one"].append(make())
    yield "values of packed", lambda: topics["packed"].append(make())
    yield "keys", lambda: topics["one"].append([b"v"] * 3, keys=make())
    yield "keys of four", lambda: topics["four"].append([b"v"] * 3, keys=make())
    yield "keys of compacted", lambda: topics["compacted"].append([b"v"] * 3, keys=make())
    yield "headers", lambda: topics["one"].append([b"v"] * 3, headers=make())
    yield "timestamps", lambda: topics["one"].append([b"v"] * 3, timestamps=make())
    yield "table", lambda: topics["four"].append_table(table(value=make()))
    yield "keyed table", lambda: topics["four"].append_table(table(value=three(), key=make()))
    yield "partitions", lambda: topics["four"].append_table(table(value=three(), partition=make()))
    yield "typed", lambda: store.topic("typed").append_table(table(b=make()))
    yield "typed and packed", lambda: store.topic("typed-packed").append_table(table(b=make()))

    def in_a_transaction() -> None:
        with store.transaction("t") as transaction:
            transaction.append(topics["four"], make(), keys=make())

    yield "transaction", in_a_transaction


def _make_store(path: Path) -> sc.Store:
    store = sc.open(path, maintenance=False)
    small: dict[str, Any] = {"segment_bytes": 1 << 20}
    schema = pa.schema([("b", pa.binary()), ("l", pa.list_(pa.string(), 2))])
    store.create_topic("one", **small)
    store.create_topic("four", partitions=4, **small)
    store.create_topic("packed", compression="zstd", **small)
    store.create_topic("compacted", partitions=2, cleanup="compact", **small)
    store.create_topic("typed", schema=schema, **small)
    store.create_topic("typed-packed", 2, schema, compression="lz4", **small)
    return store


def _ends(store: sc.Store) -> list[tuple[str, list[int]]]:
    return [(topic.name, [partition.end_offset for partition in topic.partitions]) for topic in store.topics()]


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _try_all(store: sc.Store, name: str, ways: Iterator[tuple[str, Callable[[], Any]]]) -> None:
    for way, append in ways:
        _say(case=name, way=way)
        before = _ends(store)
        said = ""
        try:
            append()
            outcome = "appended"
        except Exception as error:
            wanted = [kind for kind in (sc.StreamcoreError, TypeError, ValueError, OSError) if isinstance(error, kind)]
            outcome, said = (wanted or [type(error)])[0].__name__, str(error)
        _say(case=name, way=way, outcome=outcome, said=said, changed=_ends(store) != before)
    for topic in store.topics():
        topic.scan().to_arrow().validate(full=True)


def main(kind: str, path: Path) -> None:
    """Appends each of one kind of arrays, and says what came of it."""
    if "ASAN_OPTIONS" not in os.environ:  # whose shadow memory takes terabytes of addresses
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    with _make_store(path) as store:
        if kind == "lies":
            for name, make in LIES.items():
                _try_all(store, name, _ways(store, make))
        elif kind == "streams":
            for name, make in STREAMS.items():
                _try_all(store, name, iter([("table", lambda m=make: store.topic("one").append_table(m()))]))  # type: ignore[misc]
        else:
            for name, (make, _) in SOUND.items():
                _try_all(store, name, iter([("values", lambda m=make: store.topic("one").append(m()))]))  # type: ignore[misc]
            _say(
                values=[
                    None if v is None else v.decode() for v in store.topic("one").scan().to_arrow()["value"].to_pylist()
                ]
            )
        store.topic("one").append([b"afterwards"])
        assert store.verify() == []
    _say(done=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""What callers hand to `append`, turned into what the core takes: lists of bytes, Arrow arrays, int64 milliseconds."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streamcore.schema import HEADERS, TEXT, WITHOUT_TEXT

Times = npt.NDArray[np.int64]
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_INT64_LIMIT = 1 << 63
_NULLS_MAX = (1 << 31) - 1
_PER_MILLISECOND = {"us": 1000, "ns": 1_000_000}


# ---- times -----------------------------------------------------------------------------------------------------


def milliseconds(moment: Any, name: str) -> int:
    """Milliseconds since 1970 of an int or an aware datetime (rounded down)."""
    if isinstance(moment, bool):
        raise TypeError(f"{name} is a bool; an aware datetime or int milliseconds is needed")
    if isinstance(moment, (int, np.integer)):
        if not -_INT64_LIMIT <= int(moment) < _INT64_LIMIT:
            raise ValueError(f"{name} is {moment}, which does not fit into 64 bits of milliseconds")
        return int(moment)
    if isinstance(moment, datetime.datetime):
        return microseconds(moment, name) // 1000
    raise TypeError(f"{name} is {type(moment).__name__}; an aware datetime or int milliseconds is needed")


def microseconds(moment: datetime.datetime, name: str) -> int:
    """Microseconds since 1970 of an aware datetime; ValueError for a naive one."""
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError(
            f"{name} is {moment!r}, which has no time zone: give an aware datetime, for example in datetime.UTC"
        )
    return (moment - _EPOCH) // _MICROSECOND


def times_of(timestamps: Any, count: int) -> tuple[Times | None, int]:
    """(array of `count` milliseconds, 0) or (None, one time for all)."""
    if isinstance(timestamps, (int, datetime.datetime, np.integer)):
        return None, milliseconds(timestamps, "timestamps")
    array = _time_array(timestamps)
    if len(array) != count:
        raise ValueError(f"{len(array)} timestamps for {count} values")
    return array, 0


def _time_array(timestamps: Any) -> Times:
    if isinstance(timestamps, np.ndarray):
        return _numpy_times(timestamps)
    if isinstance(timestamps, (list, tuple)):
        return np.fromiter(
            (milliseconds(moment, f"timestamps[{i}]") for i, moment in enumerate(timestamps)), np.int64, len(timestamps)
        )
    return arrow_times(arrow_array(timestamps, "timestamps"))


def _numpy_times(array: npt.NDArray[Any]) -> Times:
    if array.ndim != 1:
        raise ValueError(f"timestamps has {array.ndim} dimensions; one is needed")
    if np.issubdtype(array.dtype, np.datetime64):
        if np.isnat(array).any():
            raise ValueError("timestamps has NaT; every record has a time")
        return np.ascontiguousarray(array.astype("datetime64[ms]").astype(np.int64))
    if np.issubdtype(array.dtype, np.integer):
        if array.dtype == np.uint64 and len(array) and array.max() >= _INT64_LIMIT:
            raise ValueError(f"timestamps has {array.max()}, which does not fit into 64 bits of milliseconds")
        return np.ascontiguousarray(array.astype(np.int64))
    raise TypeError(f"timestamps is an array of {array.dtype}; int64 milliseconds or datetime64 is needed")


def arrow_times(array: pa.Array) -> Times:
    """Milliseconds of an Arrow array of integers or of timestamps with a time zone."""
    if array.null_count:
        raise ValueError("timestamps has nulls; every record has a time")
    if pa.types.is_timestamp(array.type):
        if array.type.tz is None:
            raise ValueError(
                f"timestamps are {array.type}, without a time zone: cast them, for example to timestamp('ms', 'UTC')"
            )
        finer = _PER_MILLISECOND.get(array.type.unit)
        if finer is None:
            array = array.cast(pa.timestamp("ms", tz="UTC")).view(pa.int64())
        else:
            stamps: Times = array.view(pa.int64()).to_numpy(zero_copy_only=False)
            return np.floor_divide(stamps, finer)
    elif pa.types.is_integer(array.type):
        array = array.cast(pa.int64())
    else:
        raise TypeError(f"timestamps are {array.type}; int64 milliseconds or timestamps with a time zone are needed")
    return np.ascontiguousarray(array.to_numpy(zero_copy_only=False))


# ---- arrays ----------------------------------------------------------------------------------------------------


def is_arrow_like(values: Any) -> bool:
    """True for what carries Arrow data or can be viewed as such: arrays, series, NumPy arrays."""
    return isinstance(values, (pa.Array, pa.ChunkedArray, np.ndarray)) or any(
        hasattr(values, name) for name in ("__arrow_c_array__", "__arrow_c_stream__", "__arrow_array__")
    )


def check_sound(array: pa.Array, name: str) -> None:
    """Raises ValueError unless offsets, lengths, counts of nulls, views and indices fit the array's buffers.

    Whoever makes an array may say anything of it: the Arrow interfaces check nothing, and Arrow's own functions read
    where it says. What the values are is not looked at: whether strings are UTF-8, or decimals fit their precision.
    Indices into dictionaries are checked when these are decoded: below a null they may be anything.
    """
    _check_offset(array, name)
    kind = array.type.id
    try:
        if kind in WITHOUT_TEXT:  # of which Arrow checks the layout alone: of strings it would look at each character
            array.validate(full=True)
            return
        if kind in TEXT and _has_sound_layout(array):
            return
        if pa.types.is_null(array.type) and len(array) > _NULLS_MAX:
            raise ValueError(f"{name} is no sound Arrow array: it has {len(array)} nulls; {_NULLS_MAX} are allowed")
        array.validate()
        if not _has_dictionaries(array.type) and not _has_sound_layout(array):
            array.validate(full=True)
        if _has_fixed_lists(array.type):
            _check_fixed_lists(array, name)
    except pa.ArrowException as error:
        raise ValueError(f"{name} is no sound Arrow array: {error}") from None


def _check_offset(array: pa.Array, name: str) -> None:
    if array.offset < 0:  # which Arrow does not mind
        raise ValueError(f"{name} is no sound Arrow array: its offset is {array.offset}; 0 or more is allowed")


def _has_sound_layout(array: pa.Array) -> bool:
    """False when Arrow has to look at the values too: it finds fault with some sound arrays when viewed otherwise."""
    kind = _layout_of(array.type)
    if kind is array.type:
        return False
    try:
        array.view(kind).validate(full=True)
    except pa.ArrowException:
        return False
    return True


@functools.lru_cache(maxsize=1024)
def _has_fixed_lists(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) or any(
        _has_fixed_lists(kind.field(i).type) for i in range(kind.num_fields)
    )


def _check_fixed_lists(array: pa.Array, name: str) -> None:
    """Arrow looks at their lengths, but not at where they begin."""
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        wanted, values = (array.offset + len(array)) * kind.list_size, array.values
        if wanted > len(values):
            raise ValueError(
                f"{name} is no sound Arrow array: its lists need {wanted} values, and it has {len(values)}"
            )
        _check_fixed_lists(values, name)
    elif pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            _check_fixed_lists(array.field(i), name)
    elif pa.types.is_map(kind):
        _check_fixed_lists(array.keys, name)
        _check_fixed_lists(array.items, name)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        _check_fixed_lists(array.values, name)


@functools.lru_cache(maxsize=1024)
def _layout_of(kind: pa.DataType) -> pa.DataType:
    """A type of the same layout of which Arrow checks the layout alone; the type itself when that is one."""
    types = pa.types
    if types.is_string(kind):
        return pa.binary()
    if types.is_large_string(kind):
        return pa.large_binary()
    if types.is_string_view(kind):
        return pa.binary_view()
    if types.is_decimal(kind):
        return pa.binary(kind.byte_width)
    if types.is_time(kind) or types.is_date64(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    if types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        made = pa.struct([field.with_type(_layout_of(field.type)) for field in fields])
    elif types.is_list(kind):
        made = pa.list_(kind.value_field.with_type(_layout_of(kind.value_type)))
    elif types.is_large_list(kind):
        made = pa.large_list(kind.value_field.with_type(_layout_of(kind.value_type)))
    elif types.is_fixed_size_list(kind):
        made = pa.list_(kind.value_field.with_type(_layout_of(kind.value_type)), kind.list_size)
    elif types.is_map(kind):
        made = pa.map_(_layout_of(kind.key_type), kind.item_field.with_type(_layout_of(kind.item_type)))
    else:
        return kind
    return kind if made == kind else made


def arrow_array(values: Any, name: str, unchecked: pa.DataType | None = None) -> pa.Array:
    """One sound Arrow array of anything that carries Arrow data or converts to it.

    unchecked: an array of this type is taken as it is when it is one already: somebody else checks it.
    """
    if isinstance(values, pa.ChunkedArray):
        if values.num_chunks == 1 and values.type == unchecked:
            return values.chunk(0)
        for chunk in values.chunks:
            check_sound(chunk, name)
        values = plain_chunks(values)
        return values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
    if isinstance(values, pa.Array):
        if values.type != unchecked:
            check_sound(values, name)
        return values
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise ValueError(f"{name} has {values.ndim} dimensions; one is needed")
    if not is_arrow_like(values) and not hasattr(values, "__array__"):
        raise TypeError(f"{name} is {type(values).__name__}; a list, a tuple, or an Arrow or NumPy array is needed")
    try:
        if hasattr(values, "__arrow_c_stream__") and not hasattr(values, "__arrow_c_array__"):
            return arrow_array(pa.chunked_array(values), name, unchecked)
        array = pa.array(values)
    except (pa.ArrowException, TypeError) as error:
        raise TypeError(f"{name} is {type(values).__name__}, which is no Arrow array: {error}") from error
    return arrow_array(array, name, unchecked)


@functools.lru_cache(maxsize=1024)
def _has_dictionaries(kind: pa.DataType) -> bool:
    if pa.types.is_map(kind):
        return _has_dictionaries(kind.key_type) or _has_dictionaries(kind.item_type)
    return pa.types.is_dictionary(kind) or any(_has_dictionaries(kind.field(i).type) for i in range(kind.num_fields))


def decode_dictionaries(array: pa.Array) -> pa.Array:
    """Dictionary-encoded values as plain ones, wherever they are in the type.

    Arrow's own casts know only some types inside others, and fail on what lies below a null. Raises ValueError for an
    array that is not sound.
    """
    if not _has_dictionaries(array.type):
        return array
    try:
        return _decoded(array)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"an array with dictionaries is no sound Arrow array: {error}") from None


def _decoded(array: pa.Array) -> pa.Array:
    types, kind = pa.types, array.type
    if not _has_dictionaries(kind):
        return array
    if types.is_dictionary(kind):
        check_sound(array.dictionary, "a dictionary")
        return take(_decoded(array.dictionary), array.indices)
    nulls = pc.is_null(array)
    if types.is_struct(kind):
        children = [_decoded(child) for child in array.flatten()]
        fields = [kind.field(i).with_type(child.type) for i, child in enumerate(children)]
        return pa.StructArray.from_arrays(children, fields=fields, mask=nulls)
    if types.is_fixed_size_list(kind):
        rows = np.arange(array.offset * kind.list_size, (array.offset + len(array)) * kind.list_size)
        below_null = np.repeat(nulls.to_numpy(zero_copy_only=False), kind.list_size)
        values = _decoded(take(array.values, pa.array(rows, mask=below_null)))
        return pa.FixedSizeListArray.from_arrays(values, kind.list_size, mask=nulls)
    if types.is_map(kind):
        array = map_as_list(array)
    lengths = pc.list_value_length(array).fill_null(0).to_numpy()
    ends = np.append(0, np.cumsum(lengths, dtype=np.int64))
    rows = np.arange(ends[-1]) + np.repeat(array.offsets.to_numpy()[:-1] - ends[:-1], lengths)
    values = _decoded(take(array.values, pa.array(rows)))
    below_null = np.append(nulls.to_numpy(zero_copy_only=False), False)
    offsets = pa.array(ends, pa.int64() if types.is_large_list(kind) else pa.int32(), mask=below_null)
    if types.is_map(kind):
        return pa.MapArray.from_arrays(offsets, *values.flatten())
    return (pa.LargeListArray if types.is_large_list(kind) else pa.ListArray).from_arrays(offsets, values)


def plain_chunks(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without dictionaries: those of its chunks may differ, and Arrow cannot always make one of them."""
    if not _has_dictionaries(column.type):
        return column
    return pa.chunked_array([decode_dictionaries(chunk) for chunk in column.chunks or [pa.nulls(0, column.type)]])


def map_as_list(array: pa.MapArray) -> pa.ListArray:
    """Maps as lists of entries: Arrow flattens no maps, and its cast of some slices to lists aborts the process."""
    if len(array) == 0:
        return pa.ListArray.from_arrays(pa.array([0], pa.int32()), array.values.slice(0, 0))
    offsets = pa.array(array.offsets.to_numpy())  # a copy: with nulls they must not be a slice
    return pa.ListArray.from_arrays(offsets, array.values, mask=array.is_null())


def _entries(kind: pa.MapType) -> pa.StructType:
    """What the lists of entries are of."""
    return pa.struct([pa.field("key", kind.key_type), kind.item_field.with_name("value")])


def take(array: pa.Array, rows: pa.Array) -> pa.Array:
    """Some rows of an array of any type."""
    try:
        return array.take(rows)
    except pa.ArrowNotImplementedError:  # views, somewhere inside
        return array.cast(_without_views(array.type)).take(rows).cast(array.type)


def _without_views(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_map(kind):
        return pa.map_(_without_views(kind.key_type), kind.item_field.with_type(_without_views(kind.item_type)))
    if types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return pa.struct([field.with_type(_without_views(field.type)) for field in fields])
    if types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_without_views(kind.value_type)), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind):
        make = pa.list_ if types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_without_views(kind.value_type)))
    return kind


def binary_array(values: Any, name: str) -> pa.Array | None:
    """Bytes of a list, NumPy `S` array or Arrow array of binary or strings; None when all are null."""
    if isinstance(values, (list, tuple)):
        array = pa.array([_bytes_of(value, name, i) for i, value in enumerate(values)], pa.binary())
        if isinstance(array, pa.ChunkedArray):
            raise ValueError(f"{name} has more than 2 GiB of bytes: append it in parts")
        return array
    if isinstance(values, np.ndarray) and values.dtype.kind not in "SO":
        raise TypeError(f"{name} is an array of {values.dtype}; NumPy bytes (dtype S) are needed")
    array = decode_dictionaries(arrow_array(values, name))
    kind = array.type
    types = pa.types
    if types.is_null(kind):
        return None
    if types.is_fixed_size_binary(kind) or types.is_binary(kind) or types.is_string(kind):
        return array.cast(pa.binary())
    if types.is_large_binary(kind) or types.is_large_string(kind) or _is_view(kind):
        return _to_binary(array)
    raise TypeError(f"{name} is an Arrow array of {kind}; binary or string of any kind is needed")


def _bytes_of(value: Any, name: str, row: int) -> bytes | None:
    if value is None or type(value) is bytes:
        return value
    try:
        return bytes(memoryview(value))
    except TypeError:
        hint = ": encode it, for example .encode()" if isinstance(value, str) else ""
        raise TypeError(
            f"{name}[{row}] is {type(value).__name__}; bytes, another bytes-like object or None is needed{hint}"
        ) from None


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary_view(kind) or pa.types.is_string_view(kind))


def _to_binary(array: pa.Array) -> pa.Array:
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    try:
        return array.cast(pa.binary())
    except pa.ArrowInvalid as error:
        raise ValueError(f"more than 2 GiB of bytes in one array: append it in parts ({error})") from error


def headers_array(headers: Any, count: int) -> pa.Array | None:
    """Headers as list<struct<key: utf8, value: binary>>; None when no record has any."""
    if headers is None:
        return None
    if is_arrow_like(headers) and not isinstance(headers, np.ndarray):
        array = arrow_array(headers, "headers")
        try:
            array = array.cast(HEADERS)
        except (pa.ArrowException, TypeError) as error:
            raise TypeError(f"headers are {array.type}; {HEADERS} is needed") from error
    else:
        array = pa.array([_header_list(one, i) for i, one in enumerate(headers)], HEADERS)
    if len(array) != count:
        raise ValueError(f"{len(array)} headers for {count} values")
    return None if array.null_count == count else array


def _header_list(headers: Any, row: int) -> list[dict[str, Any]] | None:
    if headers is None:
        return None
    pairs: Iterable[Any] = headers.items() if isinstance(headers, Mapping) else headers
    result = []
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"headers[{row}] has {pair!r}; (str, bytes or None) pairs or a dict are needed")
        key, value = pair
        if not isinstance(key, str) or not (value is None or isinstance(value, (bytes, bytearray, memoryview))):
            raise TypeError(f"headers[{row}] has {pair!r}; (str, bytes or None) pairs or a dict are needed")
        result.append({"key": key, "value": None if value is None else bytes(value)})
    return result or None


# ---- typed values ----------------------------------------------------------------------------------------------


def _family(kind: pa.DataType) -> Any:
    """Types that differ only in how they are laid out have the same family."""
    types = pa.types
    if types.is_dictionary(kind):
        return _family(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "string"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return "binary"
    if types.is_list(kind) or types.is_large_list(kind):
        return ("list", _family(kind.value_type))
    if types.is_struct(kind):
        return ("struct", tuple((kind.field(i).name, _family(kind.field(i).type)) for i in range(kind.num_fields)))
    if types.is_map(kind):
        return ("map", _family(kind.key_type), _family(kind.item_type))
    if types.is_fixed_size_list(kind):
        return ("fixed", kind.list_size, _family(kind.value_type))
    return kind


def _conform(array: pa.Array, field: pa.Field, tombstones: pa.Array | None) -> pa.Array:
    """A column in exactly the field's type. Only the layout may differ: strings stay strings, lists stay lists."""
    _check_offset(array, f"column {field.name!r}")
    if array.type != field.type:
        if not pa.types.is_null(array.type) and _family(array.type) != _family(field.type):
            raise TypeError(f"column {field.name!r} is {array.type}; the topic's schema has {field.type}")
        try:
            array = decode_dictionaries(array).cast(field.type)
        except (pa.ArrowException, NotImplementedError) as error:
            raise TypeError(
                f"column {field.name!r} is {array.type}, which cannot become {field.type}: {error}"
            ) from error
    if not field.nullable and array.null_count:
        nulls = pc.is_null(array)
        count = pc.sum(nulls if tombstones is None else pc.and_not(nulls, tombstones)).as_py()
        if count:
            raise ValueError(f"column {field.name!r} has {count} nulls; the topic's schema says that it has none")
    _check_required(array, field.type, field.name)
    return array


@functools.lru_cache(maxsize=1024)
def _has_required(kind: pa.DataType) -> bool:
    """Whether something inside the type must not be null (map keys apart: Arrow sees to those)."""
    if pa.types.is_map(kind):
        return not kind.item_field.nullable or _has_required(kind.key_type) or _has_required(kind.item_type)
    if not pa.types.is_nested(kind):
        return False
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return any(not field.nullable or _has_required(field.type) for field in fields)


def _check_required(array: pa.Array, kind: pa.DataType, path: str) -> None:
    """ValueError for a null where a nested field is not nullable."""
    if not _has_required(kind):
        return
    if pa.types.is_map(kind):
        kind = pa.list_(_entries(kind))
        array = map_as_list(array)
    if pa.types.is_struct(kind):
        inner = [(array.flatten()[i], kind.field(i), array.null_count) for i in range(kind.num_fields)]
    else:
        inner = [(array.flatten(), kind.value_field, 0)]
    for values, field, nulls_above in inner:
        name = f"{path}.{field.name}"
        count = values.null_count - nulls_above
        if not field.nullable and count:
            raise ValueError(f"column {name!r} has {count} nulls; the topic's schema says that it has none")
        _check_required(values, field.type, name)


def struct_of_columns(
    columns: Mapping[str, pa.Array], schema: pa.Schema, count: int, tombstones: pa.Array | None = None
) -> pa.StructArray:
    """The value column of a typed topic from one array per field; nullable fields may be left out.

    tombstones: true where the whole value is null; whatever the columns have there does not matter.
    """
    for name in columns:
        if name not in schema.names:
            raise ValueError(f"column {name!r} is not in the topic's schema, which has {', '.join(schema.names)}")
    arrays = []
    for field in schema:
        array = columns.get(field.name)
        if array is None:
            if not field.nullable:
                raise ValueError(f"column {field.name!r} ({field.type}) is missing, and it is not nullable")
            array = pa.nulls(count, field.type)
        arrays.append(_conform(array, field, tombstones))
    return pa.StructArray.from_arrays(arrays, fields=list(schema), mask=tombstones)


def struct_of_array(array: pa.Array, schema: pa.Schema) -> pa.StructArray:
    """The value column from a struct array, whose null structs are tombstones."""
    _check_offset(array, "values")
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), pa.struct(list(schema)))
    if not pa.types.is_struct(array.type):
        raise TypeError(f"values are {array.type}; a struct array of {', '.join(schema.names)} is needed")
    names = [array.type.field(i).name for i in range(array.type.num_fields)]
    if len(set(names)) != len(names):
        raise ValueError(f"values have a field twice: {', '.join(names)}")
    columns = {name: array.field(i) for i, name in enumerate(names)}
    return struct_of_columns(columns, schema, len(array), pc.is_null(array) if array.null_count else None)


def struct_of_dicts(values: Sequence[Any], schema: pa.Schema) -> pa.StructArray:
    """The value column from dicts; None is a tombstone."""
    for i, value in enumerate(values):
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise TypeError(f"values[{i}] is {type(value).__name__}; a dict of the topic's fields or None is needed")
        for name in value:
            if name not in schema.names:
                raise ValueError(
                    f"values[{i}] has {name!r}, which is not in the topic's schema: {', '.join(schema.names)}"
                )
    mask = pa.array([value is None for value in values], pa.bool_())
    arrays = []
    for field in schema:
        column = [None if value is None else value.get(field.name) for value in values]
        arrays.append(_array_of_objects(column, field, values))
    return pa.StructArray.from_arrays(arrays, fields=list(schema), mask=mask)


def _array_of_objects(column: list[Any], field: pa.Field, values: Sequence[Any]) -> pa.Array:
    try:
        array = pa.array(column, field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError) as error:
        row = _first_bad(column, field.type)
        found = f"{type(column[row]).__name__} {column[row]!r}"
        raise TypeError(
            f"values[{row}][{field.name!r}] is {found}; the topic's schema has {field.type} ({error})"
        ) from error
    if not field.nullable:
        for i, item in enumerate(column):
            if item is None and values[i] is not None:
                raise ValueError(f"values[{i}] has no {field.name!r}, which the topic's schema says is not null")
    _check_required(array, field.type, field.name)
    return array


def _first_bad(column: list[Any], kind: pa.DataType) -> int:
    for i, item in enumerate(column):
        try:
            pa.array([item], kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
            return i
    return 0

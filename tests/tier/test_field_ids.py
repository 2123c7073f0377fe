"""Columns have the same numbers in all objects of a topic, whatever its schema gains."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import streamcore as sc
from streamcore import schema as schemas
from streamcore.tier import parquet
from streamcore.tier.field_ids import id_of


def ids_of(fields: pa.Schema | pa.DataType) -> dict[str, int]:
    """The numbers of fields, by name."""
    return {field.name: id_of(field) for field in fields}


def test_numbers_follow_the_order_in_which_fields_came() -> None:
    point = pa.struct([("x", pa.int32()), ("y", pa.list_(pa.int32()))])
    first = pa.schema([("a", point), ("b", pa.map_(pa.string(), pa.int8()))])
    second = pa.schema([("c", pa.string()), ("b", first.field("b").type), ("a", point)])
    versions = {number: schemas.make_version("0" * 16, number, user) for number, user in ((1, first), (2, second))}
    old, new = (parquet.file_schema(versions, number) for number in (1, 2))
    assert ids_of(old) == {"partition": 1, "offset": 2, "timestamp": 3, "key": 4, "value": 5, "headers": 6}
    assert ids_of(new) == ids_of(old)
    assert ids_of(old.field("value").type) == {"a": 10, "b": 14}
    assert ids_of(new.field("value").type) == {"a": 10, "b": 14, "c": 17}
    assert ids_of(old.field("value").type.field("a").type) == {"x": 11, "y": 12}
    assert id_of(old.field("headers").type.value_field) == 7


def test_objects_have_the_numbers_and_not_those_that_a_schema_brought_along(store_path: Path, tmp_path: Path) -> None:
    own = pa.field("a", pa.int32(), metadata={"PARQUET:field_id": "3", "unit": "m"})
    with sc.open(store_path, maintenance=False, tier=f"file://{tmp_path}/tier") as store:
        topic = store.create_topic("clicks", schema=pa.schema([own]), tier=True)
        topic.append([{"a": 1}])
        topic.roll()
        topic.offload()
        assert topic.schema is not None
        assert topic.schema.field("a").equals(own, check_metadata=True)
    [path] = (tmp_path / "tier").rglob("*.parquet")
    schema = pq.read_schema(path)
    assert id_of(schema.field("value").type.field("a")) == 10
    assert "field_id=10 a" in str(pq.read_metadata(path).schema)

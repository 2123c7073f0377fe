"""SQL over topics: right answers, and only what a query needs is read."""

from __future__ import annotations

import datetime as dt
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import streamcore as sc

duckdb = pytest.importorskip("duckdb")

from streamcore.sql import QueryMetrics, query  # noqa: E402  # needs duckdb
from streamcore.sql.dataset import TopicDataset  # noqa: E402

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SECOND = 1000
BATCH = 50
BATCHES = 40
QUAKES = pa.schema(
    [
        ("magnitude", pa.float64()),
        ("Place", pa.string()),
        ("loc", pa.struct([("lat", pa.float64()), ("lon", pa.float64())])),
        ("depth", pa.int32()),
    ]
)


def milliseconds(moment: dt.datetime) -> int:
    return int(moment.timestamp() * 1000)


def fill(topic: sc.Topic) -> None:
    """40 batches of 50 records, one a second, with keys k0 to k6, spread over the partitions in turn."""
    for batch in range(BATCHES):
        numbers = range(batch * BATCH, (batch + 1) * BATCH)
        topic.append(
            [b"value %d" % number for number in numbers],
            keys=[b"k%d" % (number % 7) for number in numbers],
            timestamps=[milliseconds(EPOCH) + number * SECOND for number in numbers],
            partition=batch % len(topic.partitions),
        )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sc.Store]:
    with sc.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def clicks(store: sc.Store) -> sc.Topic:
    """A plain topic of three partitions with several segments each."""
    topic = store.create_topic("web-clicks", partitions=3, segment_bytes=1 << 16)
    fill(topic)
    return topic


@pytest.fixture
def quakes(store: sc.Store) -> sc.Topic:
    topic = store.create_topic("quakes", partitions=2, schema=QUAKES)
    for batch in range(20):
        numbers = range(batch * BATCH, (batch + 1) * BATCH)
        topic.append(
            [
                {"magnitude": n % 80 / 10, "Place": f"p{n % 9}", "loc": {"lat": n / 10, "lon": -n / 10}, "depth": n}
                for n in numbers
            ],
            timestamps=[milliseconds(EPOCH) + number * SECOND for number in numbers],
            partition=batch % 2,
        )
    topic.append([None], keys=[b"dead"], timestamps=[milliseconds(EPOCH)], partition=0)
    return topic


def rows(store: sc.Store, sql: str) -> list[dict[str, object]]:
    return query(store, sql).to_pylist()


def test_a_topic_is_a_table_with_the_columns_of_a_record(store: sc.Store, clicks: sc.Topic) -> None:
    table = query(store, 'select * from "web-clicks" order by partition, "offset" limit 1')
    assert table.column_names == ["partition", "offset", "timestamp", "key", "value", "headers"]
    assert table.to_pylist() == [
        {"partition": 0, "offset": 0, "timestamp": EPOCH, "key": b"k0", "value": b"value 0", "headers": None}
    ]


def test_every_record_is_counted_once(store: sc.Store, clicks: sc.Topic) -> None:
    assert rows(store, 'select count(*) as n from "web-clicks"') == [{"n": BATCH * BATCHES}]
    assert rows(store, 'select partition, count(*) as n from "web-clicks" group by 1 order by 1') == [
        {"partition": 0, "n": 700},
        {"partition": 1, "n": 650},
        {"partition": 2, "n": 650},
    ]


def test_text_gives_the_text_of_bytes_and_null_for_what_is_none(store: sc.Store) -> None:
    store.create_topic("t").append([b"caf\xc3\xa9", b"\xff\xfe", None])
    assert [row["v"] for row in rows(store, 'select text(value) as v from t order by "offset"')] == ["café", None, None]


def test_headers_are_a_list_of_key_and_value(store: sc.Store) -> None:
    store.create_topic("t").append([b"x"], headers=[{"host": b"web-1"}])
    assert rows(store, "select headers[1].key as k, text(headers[1].value) as v from t") == [
        {"k": "host", "v": "web-1"}
    ]


def test_parameters_are_bound(store: sc.Store, clicks: sc.Topic) -> None:
    sql = 'select count(*) as n from "web-clicks" where text(key) = $key'
    assert query(store, sql, params={"key": "k3"}).to_pylist() == [{"n": 286}]


def test_fields_of_a_typed_value_are_columns(store: sc.Store, quakes: sc.Topic) -> None:
    assert rows(
        store, "select max(value.magnitude) as m, min(value.loc.lat) as l, max(VALUE.place) as p from quakes"
    ) == [{"m": 7.9, "l": 0.0, "p": "p8"}]


def test_a_typed_value_is_a_struct_as_a_whole(store: sc.Store, quakes: sc.Topic) -> None:
    value = rows(store, 'select value from quakes where partition = 0 and "offset" = 1')[0]["value"]
    assert value == {"magnitude": 0.1, "Place": "p1", "loc": {"lat": 0.1, "lon": -0.1}, "depth": 1}


def test_a_tombstone_of_a_typed_topic_is_null(store: sc.Store, quakes: sc.Topic) -> None:
    assert rows(store, "select text(key) as k, value.magnitude as m from quakes where value is null") == [
        {"k": "dead", "m": None}
    ]


FORMS_OF_THE_SAME = [
    "select sum(value.magnitude) as s from quakes",
    "select sum(q.value.magnitude) as s from quakes q",
    "select sum(value['magnitude']) as s from quakes",
    "select sum((value).magnitude) as s from quakes",
    "select sum(struct_extract(value, 'magnitude')) as s from quakes",
    "select sum(v.magnitude) as s from (select value as v from quakes)",
    "select sum(m) as s from (select value.magnitude as m from quakes)",
    "with q as (select * from quakes) select sum(value.magnitude) as s from q",
    "select sum(q.value.magnitude) as s from (select q from quakes q)",
    "select sum(e.magnitude) as s from quakes as r(a, b, c, d, e, f)",
    "from quakes select sum(value.magnitude) as s",
    "select sum(value.magnitude) as s from query_table('quakes')",
    "select sum(value.magnitude) as s from query('from quakes')",
    "select sum(magnitude) as s from (select unnest(value) from quakes)",
    "select sum(value.magnitude) as s from quakes a natural join quakes b",
    'select sum(a.value.magnitude) as s from quakes a join quakes b using (partition, "offset", value)',
]


@pytest.mark.parametrize("sql", FORMS_OF_THE_SAME)
def test_each_way_to_name_a_field_gives_the_same_answer(store: sc.Store, sql: str) -> None:
    topic = store.create_topic("quakes", schema=QUAKES)
    place = {"Place": "x", "loc": {"lat": 1.0, "lon": 1.0}, "depth": 1}
    topic.append(
        [{"magnitude": 1.5, **place}, {"magnitude": 2.0, **place}], keys=[b"a", b"b"], headers=[{"h": b"1"}] * 2
    )
    assert rows(store, sql) == [{"s": 3.5}]


OTHER_VALUES = [
    "select (select value.magnitude from (select {'magnitude': 99.0} as value)) as x, value.magnitude as y from quakes",
    "select list_transform([{'magnitude': 9.0}], lambda value: value.magnitude) as x, value.magnitude as y from quakes",
    "select q.value.magnitude as x, value.m as y from quakes q, (select 5 as m) value",
    "select value.magnitude as x from (select {'magnitude': 1.0} as value)",
    "select magnitude from (select value.magnitude from quakes) order by magnitude",
    "select Value.Magnitude, avg(value.depth) from quakes group by all order by all",
    "select value.magnitude from quakes order by magnitude desc limit 3",
    "select value.loc.lat + value.loc.lon as x from quakes order by x limit 3",
    "select x.value.depth, y.value.depth from quakes x join quakes y on x.value.depth = y.value.depth - 1 order by all",
    "select value.depth as d, count(*) over (partition by value.magnitude) as n from quakes order by all",
    "select count(*) filter (where value.magnitude > 3) as n, sum(value.depth) as s from quakes having s > 0",
    "select value.magnitude as m from quakes where value.depth in (select value.depth from quakes limit 5)",
    "select distinct value.place as p from quakes order by value.place",
    "select value.magnitude union all select 1.0 from quakes",
    "with value as (select 3 as magnitude) select value.magnitude from value, quakes limit 1",
    'select sum(value.depth), sum(value.depth), "offset" % 2 as o from quakes group by o order by o',
]


@pytest.mark.parametrize("sql", OTHER_VALUES)
def test_names_mean_what_they_mean_over_a_table_in_memory(store: sc.Store, quakes: sc.Topic, sql: str) -> None:
    """Fields are read as columns of their own: the answer, its columns and its errors must not show it."""
    memory = duckdb.connect()
    columns = ["partition", "offset", "timestamp", "key", "value", "headers"]
    memory.register("quakes", quakes.scan(columns=columns, limit=200).to_arrow())
    store.delete_topic("quakes")
    copy = store.create_topic("quakes", schema=QUAKES)
    copy.append_table(memory.sql("select value from quakes").to_arrow_table())
    try:
        expected = memory.sql(sql).to_arrow_table()
    except duckdb.Error as error:
        with pytest.raises(type(error)):
            query(store, sql)
        return
    for _ in range(2):  # bound anew, and bound before
        found = query(store, sql)
        assert found.column_names == expected.column_names
        assert found.to_pylist() == expected.to_pylist()


@pytest.mark.parametrize(
    "sql",
    [
        'select max("offset") from quakes',
        'select max("offset") from quakes where value.depth > 0',
        "select count(*) from quakes",
        "select count(*) from quakes where partition = 0",
    ],
)
def test_what_the_log_raises_is_raised(
    store: sc.Store, quakes: sc.Topic, sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TopicDataset._scan

    def delete_behind(self: TopicDataset, columns: list[str]) -> sc.Scan:
        made = real(self, columns)
        quakes.delete_records("latest")
        return made

    query(store, sql)  # in a session that has it bound
    monkeypatch.setattr(TopicDataset, "_scan", delete_behind)
    with pytest.raises(sc.OffsetOutOfRangeError):
        query(store, sql)


def test_a_field_that_does_not_exist_is_an_error_that_names_it(store: sc.Store, quakes: sc.Topic) -> None:
    with pytest.raises(duckdb.BinderException, match="nope"):
        query(store, "select value.nope from quakes")


def test_a_table_that_does_not_exist_is_an_error_that_names_it(store: sc.Store, quakes: sc.Topic) -> None:
    with pytest.raises(duckdb.CatalogException, match="missing"):
        query(store, "select * from missing")


def test_variables_of_the_program_are_no_tables(store: sc.Store) -> None:
    topics = pa.table({"a": [1]})
    with pytest.raises(duckdb.CatalogException):
        query(store, "select * from topics")
    assert topics.num_rows == 1


def test_what_a_statement_creates_is_gone_with_it(store: sc.Store, clicks: sc.Topic) -> None:
    query(store, 'create table copied as select * from "web-clicks"')
    with pytest.raises(duckdb.CatalogException):
        query(store, "select * from copied")


def test_topics_are_listed_as_tables(store: sc.Store, clicks: sc.Topic, quakes: sc.Topic) -> None:
    assert [row["name"] for row in rows(store, "show tables")] == ["quakes", "web-clicks"]


def test_a_deleted_topic_is_no_table_any_more(store: sc.Store, clicks: sc.Topic) -> None:
    query(store, 'select count(*) from "web-clicks"')
    store.delete_topic("web-clicks")
    with pytest.raises(duckdb.CatalogException):
        query(store, 'select count(*) from "web-clicks"')


def test_topics_that_differ_in_case_alone_are_refused_by_name(store: sc.Store) -> None:
    store.create_topic("Clicks")
    store.create_topic("clicks")
    with pytest.raises(ValueError, match="'Clicks' and 'clicks'"):
        query(store, "select * from clicks")


def test_a_topic_of_the_same_name_with_other_columns_is_seen_as_it_is(store: sc.Store) -> None:
    store.create_topic("t", schema=pa.schema([("a", pa.int64())])).append([{"a": 1}])
    assert rows(store, "select value.a as a from t") == [{"a": 1}]
    store.delete_topic("t")
    store.create_topic("t", schema=pa.schema([("a", pa.string())])).append([{"a": "x"}])
    assert rows(store, "select value.a as a from t") == [{"a": "x"}]
    store.delete_topic("t")
    store.create_topic("t").append([b"plain"])
    assert rows(store, "select text(value) as a from t") == [{"a": "plain"}]


def test_records_appended_between_queries_are_seen(store: sc.Store, clicks: sc.Topic) -> None:
    before = query(store, 'select count(*) as n from "web-clicks"').to_pylist()[0]["n"]
    clicks.append([b"new"], partition=0)
    assert rows(store, 'select count(*) as n from "web-clicks"') == [{"n": before + 1}]


def test_two_scans_in_one_query_see_the_same_log(store: sc.Store, clicks: sc.Topic) -> None:
    sql = 'select (select count(*) from "web-clicks") - (select count("offset") from "web-clicks") as d'
    assert rows(store, sql) == [{"d": 0}]


def test_queries_run_from_several_threads_at_once(store: sc.Store, clicks: sc.Topic, quakes: sc.Topic) -> None:
    counts: set[str] = set()
    sums: set[str] = set()

    def ask() -> None:
        for _ in range(5):
            counts.add(str(rows(store, 'select count(*) as n, count(distinct key) as k from "web-clicks"')))
            sums.add(str(rows(store, "select round(sum(value.magnitude), 3) as s from quakes")))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {"[{'n': 2000, 'k': 7}]"}
    assert sums == {"[{'s': 3870.0}]"}


FORKED = """
import os, sys
import streamcore as sc
from streamcore.sql import query
store = sc.open(sys.argv[1])
store.create_topic("t").append([b"x"] * 100_000)
sql = "select count(*) as n, count(value) as v from t"
assert query(store, sql).to_pylist() == [{"n": 100_000, "v": 100_000}]
child = os.fork()
if child == 0:
    with sc.open(sys.argv[1], mode="r") as again:
        assert query(again, sql).to_pylist() == [{"n": 100_000, "v": 100_000}]
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert query(store, sql).to_pylist() == [{"n": 100_000, "v": 100_000}]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_query_too(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORKED, str(tmp_path / "store")], check=True, timeout=60)


# What is not asked for is not read.


def test_a_column_that_is_not_named_is_not_read(store: sc.Store, clicks: sc.Topic) -> None:
    metrics = QueryMetrics()
    query(store, 'select count(distinct key) from "web-clicks"', metrics)
    assert metrics.columns == ("web-clicks.key",)
    assert metrics.rows == 2000
    everything = QueryMetrics()
    query(store, 'select * from "web-clicks"', everything)
    assert metrics.bytes_exported < everything.bytes_exported / 3


@pytest.mark.parametrize(
    "sql",
    [
        "select sum(value.magnitude) from quakes",
        "select sum(value['magnitude']) from quakes",
        "select avg(q.value.magnitude) from quakes q where q.value.magnitude > 3",
        "select value.magnitude from quakes order by 1 limit 3",
    ],
)
def test_of_a_typed_value_only_the_named_field_is_read(store: sc.Store, quakes: sc.Topic, sql: str) -> None:
    metrics = QueryMetrics()
    query(store, sql, metrics)
    assert metrics.columns == ("quakes.value.magnitude",)


def test_checksums_are_passed_over_once_and_in_the_segments_that_are_opened_alone(tmp_path: Path) -> None:
    with sc.open(tmp_path / "store", durability="disk") as store:  # an open checks what was not known to be durable
        topic = store.create_topic("t", segment_bytes=1 << 16)
        for number in range(60):
            topic.append([b"%01000d" % place for place in range(number * 20, number * 20 + 20)])
        size = topic.partitions[0].size_bytes
    sql = 'select count(key) as n, sum(octet_length(value)) as bytes from t where "offset" between 500 and 519'
    with sc.open(tmp_path / "store", mode="r") as store:
        first, again = QueryMetrics(), QueryMetrics()
        assert query(store, sql, first).to_pylist() == query(store, sql, again).to_pylist()
        assert 20 * 1000 < first.bytes_verified < size // 5
        assert again.bytes_verified == 0
        assert again.bytes_exported == first.bytes_exported > 0


def test_counting_reads_no_column(store: sc.Store, clicks: sc.Topic, quakes: sc.Topic) -> None:
    metrics = QueryMetrics()
    query(store, "select count(*) from quakes", metrics)
    assert metrics.bytes_exported == 0
    assert metrics.rows == 1001


def test_bounds_on_offset_decide_which_segments_are_opened(store: sc.Store) -> None:
    topic = store.create_topic("t", segment_bytes=1 << 16)
    for number in range(60):
        topic.append([b"%01000d" % place for place in range(number * 20, number * 20 + 20)])
    metrics = QueryMetrics()
    found = query(
        store, 'select min("offset") as low, max("offset") as high from t where "offset" between 500 and 519', metrics
    )
    assert found.to_pylist() == [{"low": 500, "high": 519}]
    assert metrics.segments_total > 5
    assert metrics.segments_opened <= 2
    assert metrics.rows == 20


def test_bounds_on_time_decide_which_segments_are_opened(store: sc.Store) -> None:
    topic = store.create_topic("t", segment_bytes=1 << 16)
    for number in range(60):
        places = range(number * 20, number * 20 + 20)
        topic.append(
            [b"%01000d" % place for place in places], timestamps=[milliseconds(EPOCH) + p * SECOND for p in places]
        )
    metrics = QueryMetrics()
    sql = """select count(*) as n, min("timestamp") as first, sum(octet_length(value)) as bytes from t
             where "timestamp" >= '2026-01-01 00:10:00' and "timestamp" < '2026-01-01 00:11:00'"""
    assert query(store, sql, metrics).to_pylist() == [
        {"n": 60, "first": EPOCH + dt.timedelta(minutes=10), "bytes": 60_000}
    ]
    assert metrics.segments_opened <= 2 < metrics.segments_total
    assert metrics.rows == 60


def test_a_bound_outside_the_log_opens_nothing(store: sc.Store, clicks: sc.Topic) -> None:
    metrics = QueryMetrics()
    sql = """select count(*) as n from "web-clicks" where "timestamp" < '2020-01-01' or "offset" > 100000"""
    assert query(store, sql, metrics).to_pylist() == [{"n": 0}]
    assert metrics.segments_opened == 0
    assert metrics.rows == 0


def test_a_condition_on_the_partition_leaves_the_others_closed(store: sc.Store, clicks: sc.Topic) -> None:
    metrics = QueryMetrics()
    assert query(store, 'select count(key) as n from "web-clicks" where partition = 1', metrics).to_pylist() == [
        {"n": 650}
    ]
    assert metrics.rows == 650
    own = sum(segment.partition == 1 for segment in clicks.segments())
    assert metrics.segments_opened <= own < metrics.segments_total


CONDITIONS = [
    "partition = {p}",
    "partition in (0, 2)",
    "partition <> 1",
    '"offset" = {o}',
    '"offset" between {o} and {o} + 77',
    '"offset" in (1, {o}, 600)',
    'not "offset" < {o}',
    '"offset" <> {o}',
    "\"timestamp\" >= '{t}'",
    "\"timestamp\" < '{t}'",
    "\"timestamp\" = '{t}'",
    "key = 'k3'",
    "key is not null",
    "value > 'value 5'",
    "headers is null",
]


def test_conditions_give_the_rows_that_the_same_query_over_a_table_gives(store: sc.Store) -> None:
    """Against DuckDB over the whole topic in memory, for random combinations of conditions."""
    topic = store.create_topic("t", partitions=3, segment_bytes=1 << 16)
    fill(topic)
    topic.append([None, b"x"], keys=[None, None], timestamps=[milliseconds(EPOCH) - 5, milliseconds(EPOCH) + 9])
    everything = topic.scan(columns=["partition", "offset", "timestamp", "key", "value", "headers"]).to_arrow()
    memory = duckdb.connect()
    memory.execute("set TimeZone = 'UTC'")
    memory.register("t", everything)
    chance = random.Random(11)
    for _ in range(120):
        terms = []
        for template in chance.sample(CONDITIONS, chance.randint(1, 3)):
            moment = EPOCH + dt.timedelta(seconds=chance.randint(-10, 2010))
            terms.append("(" + template.format(p=chance.randint(0, 3), o=chance.randint(0, 750), t=moment) + ")")
        joined = chance.choice([" and ", " or "]).join(terms)
        sql = f"""select count(*) as n, sum("offset") as o, max("timestamp") as t, min(key) as k,
                  sum(octet_length(value)) as v from t where {joined}"""
        assert rows(store, sql) == memory.sql(sql).to_arrow_table().to_pylist(), joined
        counted = f"select count(*) as n from t where {joined}"
        assert rows(store, counted) == memory.sql(counted).to_arrow_table().to_pylist(), joined


def test_fields_of_view_types_are_filtered_and_returned(store: sc.Store) -> None:
    topic = store.create_topic("t", schema=pa.schema([("name", pa.string_view()), ("data", pa.binary_view())]))
    topic.append([{"name": "a", "data": b"1"}, {"name": "b", "data": b"2"}])
    metrics = QueryMetrics()
    sql = """select value.name as n from t where value.data = '2' and "offset" = 1"""
    assert query(store, sql, metrics).to_pylist() == [{"n": "b"}]
    assert metrics.rows == 1


def test_joins_push_their_bounds_into_each_topic(store: sc.Store, clicks: sc.Topic, quakes: sc.Topic) -> None:
    sql = """select count(*) as n from "web-clicks" c join quakes q on c.partition = q.partition
             and c."offset" = q."offset" where c."offset" < 10"""
    metrics = QueryMetrics()
    assert query(store, sql, metrics).to_pylist() == [{"n": 20}]
    assert metrics.topics == ("quakes", "web-clicks")
    assert metrics.rows <= 10 * 5

"""Text and numbers to timestamps, whole columns at once.

`parse_times` gives null where a value is not a time of the format, so that a caller can name the rows.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from streamcore.ingest.conversion import convert_text, isolated

ISO = "iso"  # 2016-01-01 00:30:04.91, 2016/01/01T00:30Z, 2016-01-01 10:00:00+02:00, 2016-01-01
EPOCHS = {"s": 10**6, "ms": 10**3, "us": 1, "ns": -(10**3)}  # microseconds per unit, negative: units per microsecond

_CANDIDATES = (
    ISO,
    "%d/%b/%Y:%H:%M:%S %z",
    "%d/%b/%Y:%H:%M:%S",
    "%a, %d %b %Y %H:%M:%S %z",
    "%a %b %d %H:%M:%S %Y",
    "%Y%m%dT%H%M%S%z",
    "%Y%m%d%H%M%S",
)
_SAMPLE = 1000
_ZONE = r":\d{2}(\.\d+)? ?(Z|[+-]\d{2}(:?\d{2})?)$"
_ISO_SHAPE = r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}(:?\d{2})?)?)?$"
_DIGITS = {"s": 0, "ms": 3, "us": 6}


def detect_format(column: pa.Array) -> str | None:
    """The format of a column's times, judged by its first values: for numbers `s` to `ns`, None if none fits most."""
    sample = column.drop_null().slice(0, _SAMPLE)
    if pa.types.is_timestamp(sample.type) or pa.types.is_date(sample.type) or len(sample) == 0:
        return ISO
    if pa.types.is_binary(sample.type):
        sample = sample.cast(pa.string())
    if not pa.types.is_string(sample.type) and not pa.types.is_large_string(sample.type):
        return _epoch_unit(sample.cast(pa.float64()))
    numbers = convert_text(sample, pa.float64())
    if numbers.null_count == 0 and pc.all(pc.greater(numbers, 1e8)).as_py() and len(sample[0].as_py()) != 14:
        return _epoch_unit(numbers)
    misses = {candidate: parse_times(sample, candidate, "us").null_count for candidate in _CANDIDATES}
    best = min(misses, key=lambda candidate: misses[candidate])
    return best if misses[best] <= len(sample) // 2 else None


def _epoch_unit(numbers: pa.Array) -> str:
    """Seconds, milliseconds ... since 1970, by size: a reading between 1973 and 5138 in seconds, and so on."""
    largest = pc.max(pc.abs(numbers)).as_py() or 0
    return next((unit for unit, limit in (("s", 1e11), ("ms", 1e14), ("us", 1e17)) if largest < limit), "ns")


def parse_times(column: pa.Array, form: str, unit: str = "ms") -> pa.Array:
    """`column` as timestamps in UTC; null where it is null or does not fit. Finer digits than `unit` are cut."""
    kind = pa.timestamp(unit, tz="UTC")
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return pc.cast(pc.cast(column, pa.timestamp(getattr(column.type, "unit", unit), tz="UTC")), kind, safe=False)
    if form in EPOCHS:
        return _from_epoch(column, form).cast(kind, safe=False)
    text = column.cast(pa.string())
    if form == ISO:
        return _from_iso(text).cast(kind, safe=False)
    return _from_format(text, form).cast(kind, safe=False)


def _from_epoch(column: pa.Array, unit: str) -> pa.Array:
    """Numbers since 1970, also as text, also with a fraction, as microseconds."""
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        column = convert_text(column.cast(pa.string()), pa.float64())
    scale = EPOCHS[unit]
    if pa.types.is_floating(column.type):
        scaled = pc.multiply(column, float(scale)) if scale > 0 else pc.divide(column, float(-scale))
        micros = pc.cast(pc.round(scaled), pa.int64(), safe=False)
    else:
        whole = column.cast(pa.int64())
        micros = pc.multiply(whole, scale) if scale > 0 else pc.divide(whole, -scale)
    return micros.cast(pa.timestamp("us", tz="UTC"))


def _from_iso(text: pa.Array) -> pa.Array:
    """ISO 8601 and its common relatives (a space for the T, slashes in the date) as microseconds."""
    text = pc.utf8_trim_whitespace(text)
    text = pc.replace_substring(text, "/", "-")
    if pc.any(pc.match_substring_regex(text, r"\.\d{7}")).as_py():
        text = pc.replace_substring_regex(text, r"(\.\d{6})\d+", r"\1")
    text = pc.if_else(pc.match_substring_regex(text, _ISO_SHAPE), text, pa.scalar(None, pa.string()))
    zoned = pc.match_substring_regex(text, _ZONE)
    utc = pa.timestamp("us", tz="UTC")
    if not pc.any(zoned).as_py():
        return isolated(lambda part: part.cast(pa.timestamp("us")), text, pa.timestamp("us")).cast(utc)
    nothing = pa.scalar(None, pa.string())
    with_zone = isolated(lambda part: part.cast(utc), pc.if_else(zoned, text, nothing), utc)
    naive = pc.if_else(zoned, nothing, text)
    without = isolated(lambda part: part.cast(pa.timestamp("us")), naive, pa.timestamp("us"))
    return pc.coalesce(with_zone, without.cast(utc))


def _from_format(text: pa.Array, form: str) -> pa.Array:
    """A strptime format, with `%f` (which pyarrow's strptime does not know) taken apart, as microseconds."""
    fraction: pa.Array | None = None
    if "%f" in form:
        text, fraction, form = _without_fraction(text, form)
    parsed = pc.strptime(text, format=form, unit="us", error_is_null=True)
    micros = parsed.cast(pa.int64())
    if fraction is not None:
        micros = pc.add(micros, fraction)
    return micros.cast(pa.timestamp("us", tz="UTC"))


def _without_fraction(text: pa.Array, form: str) -> tuple[pa.Array, pa.Array, str]:
    """Text and format without `.%f`, and the fraction in microseconds."""
    match = re.fullmatch(r"(.*)([.,])%f(.*)", form)
    if match is None:
        raise ValueError(f"timestamp format {form!r}: %f must follow a point or a comma")
    before, mark, after = match.groups()
    other = f"[^{mark}]*"
    dots = before.count(mark)
    found = pc.extract_regex(
        text, rf"^(?P<start>(?:{other}[{mark}]){{{dots}}}{other})[{mark}](?P<digits>\d+)(?P<rest>.*)$"
    )
    start, digits, rest = (found.field(number) for number in range(3))
    whole = pc.binary_join_element_wise(start, rest, "")
    whole = pc.if_else(found.is_valid(), whole, pa.scalar(None, pa.string()))
    micros = pc.utf8_slice_codeunits(pc.utf8_rpad(digits, 6, "0"), 0, 6)
    micros = pc.if_else(found.is_valid(), micros, pa.scalar(None, pa.string()))
    return whole, micros.cast(pa.int64()), before + after


def unit_needed(text: pa.Array) -> str:
    """`us` if any of these times has more than three digits after the second, otherwise `ms`."""
    finer = pc.any(pc.match_substring_regex(text, r":\d{2}[.,]\d{4,}")).as_py()
    return "us" if finer else "ms"

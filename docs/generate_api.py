"""Writes docs/api.md from the docstrings and signatures of the package.

    python docs/generate_api.py            writes the page
    python docs/generate_api.py --check    exits with 1 when the page is not what it would write

The output depends on the package alone, not on the Python version, so that a test can compare it.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ForwardRef

import streamcore
import streamcore.ingest
import streamcore.retention
import streamcore.sql

PAGE = Path(__file__).with_name("api.md")
LINE_MAX = 110

INTRODUCTION = """\
# API reference

Written by `docs/generate_api.py` from the docstrings; a test keeps it fresh. The [tutorial](tutorial.md) shows the
same names in use, the [command line](cli.md) has a page of its own, [format.md](format.md) has the files.

Everything below is typed (`py.typed`) and may be used from any thread, except that one iterator of a scan belongs to
one thread at a time. Wrong types are `TypeError`, wrong values `ValueError`, all else is a `StreamcoreError`.

Names that signatures use:

| name | what it is |
|---|---|
| `Bound` | an int offset, an aware `datetime`, `"earliest"`, `"latest"`, or a mapping {partition: any of these} |
| `Before` | an int offset, an aware `datetime`, `"latest"`, or a mapping {partition: any of these} |
| `Stop` | a callable that returns True when the work is to end |
| `Start` | `"earliest"`, `"latest"` or an aware `datetime` |
| `Place` | an int offset, an aware `datetime`, `"earliest"` or `"latest"` |
| `Isolation` | `"committed"` or `"uncommitted"` |
| `Callback` | a callable with a `Consumer` and a list of `TopicPartition` |
| `Handler` | a callable with a `Record` |
| `Durability` | `"os"` or `"disk"`; None leaves it to the topic, and the topic to the store |
| `Mode` | `"rw"` or `"r"` |
| `Unpack[TopicSettings]` | the fields of [TopicConfig](#topicconfig), by name |
"""

# (heading, module, names). The order is that in which a reader meets them.
SECTIONS = (
    ("Opening a store", streamcore, ("open",)),
    ("Store", streamcore, ("Store",)),
    ("Topic", streamcore, ("Topic", "TopicConfig")),
    (
        "The tier",
        streamcore,
        ("Tier", "TierStatus", "PartitionStatus", "Offloaded", "Collected", "restore", "Restored", "open_tier"),
    ),
    ("Producer", streamcore, ("Producer",)),
    ("Scan and records", streamcore, ("Scan", "Record")),
    (
        "Consumers and groups",
        streamcore,
        (
            "Consumer",
            "Group",
            "Member",
            "TopicPartition",
            "CommittedOffset",
            "Processed",
            "Backoff",
            "ConsumerMetrics",
        ),
    ),
    (
        "Values that calls return",
        streamcore,
        (
            "Span",
            "Delivery",
            "Lost",
            "Partition",
            "Segment",
            "Removed",
            "Rewritten",
            "RetentionReport",
            "ScanMetrics",
            "Problem",
            "Digest",
        ),
    ),
    ("Retention", streamcore.retention, ("apply_retention",)),
    ("SQL", streamcore.sql, ("query", "QueryMetrics")),
    ("Ingesting files", streamcore.ingest, ("ingest", "IngestOptions", "IngestReport", "BadRow", "IngestError")),
)

# Attributes that are set per object and have no docstring of their own.
ATTRIBUTES = {
    "Store": (
        ("path", "pathlib.Path", "the store's directory"),
        ("mode", "Mode", "as it was opened"),
        ("durability", "Durability", "of appends that say nothing else, on topics that say nothing else"),
        ("closed", "bool", "whether it is closed"),
    ),
    "Producer": (("closed", "bool", "whether it is closed"),),
    "ProducerError": (("lost", "tuple[Lost, ...]", "what was given up"),),
    "CorruptionError": (
        ("path", "str | None", "the file"),
        ("offset", "int | None", "the first record that cannot be read"),
        ("position", "int | None", "the byte in the file"),
    ),
    "OffsetOutOfRangeError": (
        ("earliest", "int", "the first offset of the log"),
        ("latest", "int", "the offset behind its last one"),
    ),
}

# Methods of the binding that are the class's own to a reader.
INHERITED = {"Producer": ("send",)}

# Public only because the package's own classes call each other through them; as is what says "called by".
PLUMBING = {
    "Producer": {"find_topic", "is_worker", "plan_topic", "raise_failures"},
    "Store": {"call_when_closed", "check_open", "check_tiered", "consuming", "forget", "look_for_tier"},
    "Topic": {
        "append_sealed",
        "cold",
        "delete_local",
        "durable_target",
        "extents",
        "folder",
        "note_appended",
        "open",
        "open_rewrite",
        "local_start",
        "producers",
        "partition_count",
        "row",
        "send_plan",
        "verify_partition",
        "versions",
    },
    "Scan": {"begin", "prefetch"},
    "Tier": {
        "check_owner",
        "claim",
        "forget",
        "groups",
        "has",
        "knows",
        "log",
        "note_pass",
        "objects",
        "requests",
        "uploads",
    },
    "TopicConfig": {"changed", "compacts", "deletes"},
    "IngestOptions": {"meaning"},
}


# ---- signatures ----


def annotation_text(annotation: Any) -> str:
    """An annotation as it was written."""
    if annotation is inspect.Parameter.empty:
        return ""
    if isinstance(annotation, ForwardRef):
        return annotation.__forward_arg__
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def parameter_text(parameter: inspect.Parameter) -> str:
    """`name: type = default`, with the stars of *args and **kwargs."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = stars + parameter.name
    kind = annotation_text(parameter.annotation)
    if kind:
        text += f": {kind}"
    if parameter.default is not inspect.Parameter.empty:
        shown = "..." if "factory" in repr(parameter.default).lower() else repr(parameter.default)
        text += f" = {shown}" if kind else f"={shown}"
    return text


def signature_text(name: str, function: Any, *, method: bool = False, returns: bool = True) -> str:
    """A call as it is written, on several lines when it is long."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1 if method else 0 :]
    texts = []
    for before, parameter in zip([None, *parameters], parameters, strict=False):
        keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if keyword_only and (before is None or before.kind is not inspect.Parameter.KEYWORD_ONLY):
            texts.append("*")
        texts.append(parameter_text(parameter))
    kind = annotation_text(signature.return_annotation) if returns else ""
    arrow = f" -> {kind}" if kind else ""
    line = f"{name}({', '.join(texts)}){arrow}"
    if len(line) <= LINE_MAX:
        return line
    return f"{name}(\n" + "".join(f"    {text},\n" for text in texts) + f"){arrow}"


# ---- pieces of the page ----


def docstring(thing: Any) -> str:
    """A docstring without its indentation; an error when there is none."""
    text = inspect.getdoc(thing)
    if not text:
        raise SystemExit(f"{thing!r} has no docstring")
    return text


def code(text: str) -> str:
    """A block that shows a signature and is not run."""
    return f"```python norun\n{text}\n```\n"


def cell(text: str) -> str:
    """Text as it stands in a table."""
    return " ".join(text.split()).replace("|", "\\|")


def function_part(name: str, function: Any) -> Iterator[str]:
    """A function."""
    yield f"### `{name}`\n"
    yield code(signature_text(name, function))
    yield docstring(function) + "\n"


def attribute_rows(class_name: str, cls: type) -> Iterator[str]:
    """Rows of the table of attributes: set per object, properties, fields."""
    for name, kind, what in ATTRIBUTES.get(class_name, ()):
        yield f"| `{name}` | `{cell(kind)}` | {what} |"
    for name, member in vars(cls).items():
        if isinstance(member, property) and not name.startswith("_") and name not in PLUMBING.get(class_name, ()):
            kind = annotation_text(inspect.signature(member.fget).return_annotation) if member.fget else ""
            yield f"| `{name}` | `{cell(kind)}` | {cell(docstring(member)).rstrip('.')} |"


def method_parts(class_name: str, cls: type) -> Iterator[str]:
    """The public methods, in the order of the source."""
    inherited = [(name, getattr(cls, name)) for name in INHERITED.get(class_name, ())]
    for name, member in [*inherited, *vars(cls).items()]:
        special = name in ("__iter__", "__arrow_c_stream__")
        if (name.startswith("_") and not special) or not (inspect.isfunction(member) or (name, member) in inherited):
            continue
        if name in PLUMBING.get(class_name, ()) or "called by" in docstring(member).lower():
            continue
        yield f"#### `{class_name}.{name}`\n"
        yield code(signature_text(name, member, method=True))
        yield docstring(member) + "\n"


def class_parts(name: str, cls: type) -> Iterator[str]:
    """A class: its fields or attributes, then its methods."""
    yield f"### `{name}`\n"
    has_fields = dataclasses.is_dataclass(cls) or hasattr(cls, "_fields")
    if has_fields:
        yield code(signature_text(name, cls, returns=False))
    yield docstring(cls) + "\n"
    rows = list(attribute_rows(name, cls))
    if rows:
        yield "| attribute | type | what |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    yield from method_parts(name, cls)


def error_rows() -> Iterator[str]:
    """The errors, each with what it is a kind of."""
    for name in streamcore.__all__:
        error = getattr(streamcore, name)
        if not (isinstance(error, type) and issubclass(error, Exception)):
            continue
        bases = ", ".join(f"`{base.__name__}`" for base in error.__bases__)
        what = cell(docstring(error).split("\n\n")[0])
        names = ", ".join(f"`.{attribute}`" for attribute, _, _ in ATTRIBUTES.get(name, ()))
        yield f"| `{name}` | {bases} | {what}{f' Has {names}.' if names else ''} |"


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for heading, module, names in SECTIONS:
        parts.append(f"## {heading}\n")
        for name in names:
            thing = getattr(module, name)
            parts += class_parts(name, thing) if isinstance(thing, type) else function_part(name, thing)
    parts.append("## Errors\n")
    parts.append("| error | is a | when |\n|---|---|---|\n" + "\n".join(error_rows()) + "\n")
    return "\n".join(parts)


def publish(path: Path, text: str) -> None:
    """Writes a page, or with --check compares it."""
    if "--check" not in sys.argv[1:]:
        path.write_text(text, encoding="utf-8")
        return
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        sys.exit(f"docs/{path.name} is stale: run python docs/{Path(sys.argv[0]).name}")


if __name__ == "__main__":
    publish(PAGE, page())

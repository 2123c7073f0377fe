# Where a log begins: deleting records, rolling segments. Included by _core.pyx.

def delete_before(Topic topic, uint32_t partition, int64_t offset):
    """(start offset of the log now, segments removed, bytes removed)."""
    cdef sc_error error
    cdef sc_removal removal
    cdef int code
    with nogil:
        code = sc_partition_delete_before(topic.ptr, partition, offset, &removal, &error)
    check(code, &error)
    return (removal.start_offset, removal.segments, removal.bytes)


def begin(Topic topic, uint32_t partition, int64_t offset, uint32_t schema_version, bytes producers=b""):
    """Has a log that never had a record begin at an offset; with what `producers` gave elsewhere."""
    cdef sc_error error
    cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(producers)
    cdef int64_t size = PyBytes_GET_SIZE(producers)
    cdef int code
    with nogil:
        code = sc_partition_begin(topic.ptr, partition, offset, schema_version, data, size, &error)
    check(code, &error)


def producers(Topic topic, uint32_t partition, int64_t offset, int64_t known_offset=-1, bytes known=b""):
    """What the records below an offset, where a segment ends, say of producers, encoded; b"": there is no producer.

    known: the same as of `known_offset` (-1: nothing is known), which saves reading what lies before that.
    """
    cdef sc_error error
    cdef const uint8_t *before = <const uint8_t *>PyBytes_AS_STRING(known)
    cdef int64_t before_size = PyBytes_GET_SIZE(known), size
    cdef uint8_t *data
    cdef int code
    with nogil:
        code = sc_partition_producers(
            topic.ptr, partition, offset, known_offset, before, before_size, &data, &size, &error)
    try:
        check(code, &error)
        return PyBytes_FromStringAndSize(<const char *>data, size) if size else b""
    finally:
        free(data)


def look_at_producers(bytes data):
    """(offset that they are as of, how many, greatest id) of what `producers` gave. Raises CorruptionError."""
    cdef sc_error error
    cdef sc_producers found
    check(sc_producers_look(<const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &found, &error), &error)
    return (found.offset, found.count, found.greatest_id)


def roll(Topic topic, uint32_t partition):
    """Seals the active segment, if it has records, and makes a new one: its base offset, None when there is none."""
    cdef sc_error error
    cdef int64_t base_offset
    cdef int code
    with nogil:
        code = sc_partition_roll(topic.ptr, partition, &base_offset, &error)
    check(code, &error)
    return base_offset if base_offset >= 0 else None

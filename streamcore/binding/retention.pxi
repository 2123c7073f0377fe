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


def begin(Topic topic, uint32_t partition, int64_t offset, uint32_t schema_version):
    """Has a log that never had a record begin at an offset."""
    cdef sc_error error
    cdef int code
    with nogil:
        code = sc_partition_begin(topic.ptr, partition, offset, schema_version, &error)
    check(code, &error)


def roll(Topic topic, uint32_t partition):
    """Seals the active segment, if it has records, and makes a new one: its base offset, None when there is none."""
    cdef sc_error error
    cdef int64_t base_offset
    cdef int code
    with nogil:
        code = sc_partition_roll(topic.ptr, partition, &base_offset, &error)
    check(code, &error)
    return base_offset if base_offset >= 0 else None

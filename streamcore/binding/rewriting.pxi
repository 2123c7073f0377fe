# Segments that are replaced, and the map of keys that says which of their records stay. Included by _core.pyx.

BATCH_MUST_COPY = SC_BATCH_MUST_COPY
FLAG_LOG_APPEND_TIME = 1 << 2


cdef class KeyMap:
    """The greatest offset of each key, by 128-bit digests. memory_bytes 0: as much as it takes."""
    cdef sc_key_map *ptr

    def __cinit__(self, int64_t memory_bytes, bytes secret):
        cdef sc_error error
        if len(secret) != 16:
            raise ValueError("the secret has 16 bytes")
        check(sc_key_map_new(memory_bytes, <const uint8_t *>PyBytes_AS_STRING(secret), &self.ptr, &error), &error)

    def __dealloc__(self):
        sc_key_map_free(self.ptr)

    def __len__(self):
        return sc_key_map_count(self.ptr)

    def clear(self):
        sc_key_map_clear(self.ptr)

    def put(self, keys, const int64_t[::1] offsets, int64_t start, int64_t end):
        """Takes the keys of an Arrow binary array whose offsets are in [start, end). Returns the offset of the first
        one that found no room, or -1."""
        cdef object capsule = keys.__arrow_c_array__()[1]
        cdef const ArrowArray *array = <const ArrowArray *>PyCapsule_GetPointer(capsule, "arrow_array")
        cdef const uint8_t *validity = <const uint8_t *>array.buffers[0]
        cdef const int32_t *ends = <const int32_t *>array.buffers[1]
        cdef const uint8_t *data = <const uint8_t *>array.buffers[2]
        cdef int64_t i, at
        if array.length != offsets.shape[0]:
            raise ValueError("as many offsets as keys are needed")
        with nogil:
            for i in range(array.length):
                at = array.offset + i
                if offsets[i] < start or offsets[i] >= end or (
                        validity != NULL and not (validity[at >> 3] >> (at & 7)) & 1):
                    continue
                if not sc_key_map_put(self.ptr, data + ends[at], ends[at + 1] - ends[at], offsets[i]):
                    with gil:
                        return offsets[i]
        return -1

    def latest(self, keys, int64_t[::1] out):
        """Fills `out` with the offset of each key of an Arrow binary array; -1 where there is none, or no key."""
        cdef object capsule = keys.__arrow_c_array__()[1]
        cdef const ArrowArray *array = <const ArrowArray *>PyCapsule_GetPointer(capsule, "arrow_array")
        cdef const uint8_t *validity = <const uint8_t *>array.buffers[0]
        cdef const int32_t *ends = <const int32_t *>array.buffers[1]
        cdef const uint8_t *data = <const uint8_t *>array.buffers[2]
        cdef int64_t i, at
        if array.length != out.shape[0]:
            raise ValueError("as much room as keys is needed")
        with nogil:
            for i in range(array.length):
                at = array.offset + i
                if validity != NULL and not (validity[at >> 3] >> (at & 7)) & 1:
                    out[i] = -1
                else:
                    out[i] = sc_key_map_get(self.ptr, data + ends[at], ends[at + 1] - ends[at])


cdef struct ProgressContext:
    PyObject *progress
    PyObject *failures


cdef int on_rewrite_progress(void *context, int64_t size) noexcept with gil:
    cdef ProgressContext *self = <ProgressContext *>context
    try:
        PyErr_CheckSignals()
        return 1 if <object>self.progress is not None and (<object>self.progress)(size) else 0
    except BaseException as error:
        (<list>self.failures).append(error)
        return 1


cdef class Rewrite:
    """A sealed segment that is being replaced, by one thread. `close` leaves the old one if nothing was committed."""
    cdef sc_rewrite *ptr
    cdef sc_batch batch

    def __cinit__(self, Topic topic, uint32_t partition, int64_t base_offset):
        cdef sc_error error
        cdef int code
        with nogil:
            code = sc_rewrite_open(topic.ptr, partition, base_offset, &self.ptr, &error)
        if code == SC_CONFLICT:
            raise RewriteConflict(error_of(&error))
        check(code, &error)

    def __dealloc__(self):
        sc_rewrite_free(self.ptr)

    def close(self):
        cdef sc_rewrite *ptr = self.ptr
        self.ptr = NULL
        with nogil:
            sc_rewrite_free(ptr)

    cdef int check_open(self) except -1:
        if self.ptr == NULL:
            raise ValueError("the rewriting was closed")
        return 0

    def look(self):
        """(whether values are bytes, batches, their bytes, rows, aborted rows, compressed batches, batches that may
        have headers)."""
        cdef sc_error error
        cdef sc_rewrite_contents contents
        cdef int code
        self.check_open()
        with nogil:
            code = sc_rewrite_look(self.ptr, &contents, &error)
        check(code, &error)
        return (contents.plain, contents.batches, contents.batch_bytes, contents.rows, contents.aborted_rows,
                contents.compressed, contents.with_headers)

    def rewind(self):
        self.check_open()
        sc_rewrite_rewind(self.ptr)

    def collect(self, KeyMap keys, int64_t from_offset, int64_t end_offset):
        """Puts keys into the map; the offset where it was full, or -1."""
        cdef sc_error error
        cdef int64_t full_at
        cdef int code
        self.check_open()
        with nogil:
            code = sc_rewrite_collect(self.ptr, keys.ptr, from_offset, end_offset, &full_at, &error)
        check(code, &error)
        return full_at

    def mark(self, KeyMap keys, int64_t tombstones_before, int64_t from_offset, int64_t end_offset):
        """Marks the rows that stay: (how many do not, the time of the oldest tombstone that does or None)."""
        cdef sc_error error
        cdef int64_t dropped, oldest
        cdef int code
        self.check_open()
        with nogil:
            code = sc_rewrite_mark(
                self.ptr, keys.ptr, tombstones_before, from_offset, end_offset, &dropped, &oldest, &error)
        check(code, &error)
        return (dropped, None if oldest == INT64_MAX else oldest)

    def plain(self, int64_t batch_bytes, progress):
        """Writes all of a plain segment; False when progress(bytes) stopped it by returning True."""
        cdef sc_error error
        cdef list failures = []
        cdef ProgressContext context
        cdef int code
        self.check_open()
        context.progress = <PyObject *>progress
        context.failures = <PyObject *>failures
        with nogil:
            code = sc_rewrite_plain(self.ptr, batch_bytes, on_rewrite_progress, &context, &error)
        if failures:
            raise failures[0]
        if code == SC_END:
            return False
        check(code, &error)
        return True

    def next(self):
        """The next Batch of the old segment, or None."""
        cdef sc_error error
        cdef int code
        self.check_open()
        with nogil:
            code = sc_rewrite_next(self.ptr, &self.batch, &error)
        if code == SC_END:
            return None
        check(code, &error)
        return batch_of(&self.batch, True)

    def kept(self, uint8_t[::1] out):
        """Fills `out` with 1 for each row of the current batch that stays, else 0."""
        cdef int64_t i
        self.check_open()
        for i in range(out.shape[0]):
            out[i] = sc_rewrite_keeps(self.ptr, i)

    def export_batch(self, Columns columns):
        """The rows of the current batch, which is not compressed, as an "arrow_array" capsule."""
        cdef sc_error error
        cdef int64_t unused = 0
        cdef ArrowArray *array = <ArrowArray *>PyMem_RawCalloc(1, sizeof(ArrowArray))
        if array == NULL:
            raise MemoryError()
        cdef int code = sc_batch_export(&self.batch, columns.items, columns.count, &unused, array, &error)
        if code != SC_OK:
            PyMem_RawFree(array)
            raise error_of(&error)
        return PyCapsule_New(array, "arrow_array", release_array)

    def add(self, key, value, headers, const int64_t[::1] times, const int64_t[::1] offsets, int64_t last_offset,
            int flags):
        """Adds a batch: Arrow arrays of the layout's types or None, times in ms, and the offset of each row."""
        cdef sc_batch_input batch
        cdef list kept = []
        memset(&batch, 0, sizeof(batch))
        batch.count = offsets.shape[0]
        if times.shape[0] != batch.count or batch.count == 0:
            raise ValueError("as many times as offsets are needed, and at least one")
        batch.key = array_in(key, kept)
        batch.value = array_in(value, kept)
        batch.headers = array_in(headers, kept)
        batch.timestamps = &times[0]
        batch.offsets = &offsets[0]
        self.add_batch(&batch, last_offset, flags)

    def add_message(self, const uint8_t[::1] message, tuple times, bint has_headers, const int64_t[::1] offsets,
                    int64_t last_offset, int flags):
        """Adds a batch as a compressed IPC message."""
        cdef sc_batch_input batch
        memset(&batch, 0, sizeof(batch))
        batch.count = offsets.shape[0]
        batch.message = &message[0]
        batch.message_size = message.shape[0]
        batch.min_timestamp, batch.max_timestamp = times
        batch.has_headers = has_headers
        batch.offsets = &offsets[0]
        self.add_batch(&batch, last_offset, flags)

    cdef int add_batch(self, const sc_batch_input *batch, int64_t last_offset, int flags) except -1:
        cdef sc_error error
        cdef int code
        self.check_open()
        with nogil:
            code = sc_rewrite_add(self.ptr, batch, last_offset, <uint16_t>flags, &error)
        return check(code, &error)

    def copy(self):
        """Copies the current batch, which has no rows, as it is."""
        cdef sc_error error
        self.check_open()
        check(sc_rewrite_copy(self.ptr, &self.batch, &error), &error)

    def commit(self):
        """Puts the new segment in the place of the old one: (whether it did, bytes before, after, batches before,
        after, rows before, after)."""
        cdef sc_error error
        cdef sc_rewrite_report report
        cdef int code
        self.check_open()
        with nogil:
            code = sc_rewrite_commit(self.ptr, &report, &error)
        check(code, &error)
        return (report.replaced, report.bytes_before, report.bytes_after, report.batches_before, report.batches_after,
                report.rows_before, report.rows_after)


cdef const ArrowArray *array_in(object column, list kept) except? NULL:
    if column is None:
        return NULL
    capsules = column.__arrow_c_array__()
    kept.append(capsules)
    return <const ArrowArray *>PyCapsule_GetPointer(capsules[1], "arrow_array")

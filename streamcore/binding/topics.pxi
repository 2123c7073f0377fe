# Topics: looking, waiting, verifying, appending. Included by _core.pyx.

cdef enum:
    OPEN_TRANSACTIONS_MAX = 256  # that are returned at once


cdef struct VerifyContext:
    PyObject *problems
    PyObject *progress


cdef void on_problem(void *context, const sc_error *problem) noexcept with gil:
    cdef list problems = <list>(<VerifyContext *>context).problems
    problems.append((
        problem.path.decode("utf-8", "surrogateescape"),
        problem.offset if problem.offset >= 0 else None,
        problem.position if problem.position >= 0 else None,
        problem.message.decode("utf-8", "replace"),
    ))


cdef int on_progress(void *context, int64_t size) noexcept with gil:
    cdef object progress = <object>(<VerifyContext *>context).progress
    try:
        PyErr_CheckSignals()
        if progress is not None:
            progress(size)
        return 0
    except BaseException as error:
        problems = <list>(<VerifyContext *>context).problems
        problems.append(error)
        return 1


def check_schema(schema_capsule, const uint8_t[::1] message, int64_t partition_digits_at):
    """Raises ValueError for a schema of a topic's files that the core cannot store: a field's type, or their number."""
    cdef sc_error error
    cdef sc_layout *layout
    cdef const ArrowSchema *schema = <const ArrowSchema *>PyCapsule_GetPointer(schema_capsule, "arrow_schema")
    check(sc_layout_new(schema, &message[0], message.shape[0], partition_digits_at, 1, &layout, &error), &error)
    sc_layout_free(layout)


cdef class Topic:
    """A topic's folder, opened. Settings are (segment_bytes, segment_ms, max_record_bytes, generation, partitions,
    producer_expiry_ms)."""
    cdef sc_topic *ptr
    cdef readonly uint32_t generation
    cdef int64_t max_record_bytes

    def __cinit__(self, bytes path, bint writable, tuple settings):
        cdef sc_error error
        cdef sc_topic_settings native = settings_of(settings)
        cdef const char *folder = path
        cdef int code
        self.generation = native.generation
        self.max_record_bytes = native.max_record_bytes
        with nogil:
            code = sc_topic_open(folder, writable, &native, &self.ptr, &error)
        check(code, &error)

    def __dealloc__(self):
        if self.ptr != NULL:
            with nogil:
                sc_topic_free(self.ptr)

    def add_schema(self, schema_capsule, const uint8_t[::1] message, int64_t partition_digits_at, uint32_t version):
        """Compiles a schema; `message` is its encapsulated IPC message, padded to 64 bytes."""
        cdef sc_error error
        cdef sc_layout *layout
        cdef const ArrowSchema *schema = <const ArrowSchema *>PyCapsule_GetPointer(schema_capsule, "arrow_schema")
        cdef int code = sc_layout_new(
            schema, &message[0], message.shape[0], partition_digits_at, version, &layout, &error)
        check(code, &error)
        check(sc_topic_add_layout(self.ptr, layout, &error), &error)

    def use_journal(self, Journal journal):
        """Durable appends share syncs with other partitions of the store. Before the first append."""
        cdef sc_error error
        check(sc_topic_use_journal(self.ptr, journal.ptr, &error), &error)

    def read_journal(self, bytes folder):
        """Reads also what is only in the journal, until somebody opens the store for writing. Before the first read."""
        cdef sc_error error
        cdef const char *path = folder
        cdef int code
        with nogil:
            code = sc_topic_read_journal(self.ptr, path, &error)
        check(code, &error)

    def alter(self, tuple settings, bint publish):
        cdef sc_error error
        cdef sc_topic_settings native = settings_of(settings)
        cdef int code
        with nogil:
            code = sc_topic_alter(self.ptr, &native, publish, &error)
        check(code, &error)
        self.generation = native.generation
        self.max_record_bytes = native.max_record_bytes

    def published_generation(self):
        return sc_topic_generation(self.ptr)

    def is_deleted(self):
        return sc_topic_is_deleted(self.ptr)

    def mark_deleted(self):
        cdef sc_error error
        check(sc_topic_mark_deleted(self.ptr, &error), &error)

    def close(self):
        cdef sc_error error
        cdef int code
        with nogil:
            code = sc_topic_close(self.ptr, &error)
        check(code, &error)

    def flush(self, partition=None):
        """Makes what this handle appended durable; of one partition, all that anyone appended."""
        cdef sc_error error
        cdef int code
        cdef uint32_t number = 0 if partition is None else partition
        cdef bint every = partition is None
        with nogil:
            code = sc_topic_flush(self.ptr, &error) if every else sc_partition_flush(self.ptr, number, &error)
        check(code, &error)

    def found_unflushed(self):
        """True, once, when recovery found data that may not be on the drive."""
        return sc_topic_found_unflushed(self.ptr)

    def note_durable(self):
        """Notes in logs that rest, and are durable, that they are."""
        cdef sc_error error
        cdef int code
        with nogil:
            code = sc_topic_note_durable(self.ptr, &error)
        check(code, &error)

    def describe(self, uint32_t partition, bint with_size):
        """(start offset, end offset, durable offset, size in bytes or -1, last stable offset, segments or -1)."""
        cdef sc_error error
        cdef sc_partition_info info
        cdef int code
        with nogil:
            code = sc_partition_describe(self.ptr, partition, with_size, &info, &error)
        check(code, &error)
        return (info.start_offset, info.end_offset, info.durable_offset, info.size_bytes, info.stable_offset,
                info.segment_count)

    def rewrites(self, uint32_t partition):
        """Another number whenever a segment of the partition was replaced."""
        cdef sc_error error
        cdef uint32_t found
        check(sc_partition_rewrites(self.ptr, partition, &found, &error), &error)
        return found

    def counters(self):
        """What was done through this handle, by name; the two histograms are lists (see sc_counters)."""
        cdef sc_counters found
        sc_topic_count(self.ptr, &found)
        return {
            "appends": found.appends,
            "records": found.records,
            "bytes": found.bytes,
            "syncs": found.syncs,
            "sync_ns": found.sync_ns,
            "scanned_batches": found.scanned_batches,
            "scanned_rows": found.scanned_rows,
            "scanned_bytes": found.scanned_bytes,
            "verified_bytes": found.verified_bytes,
            "append_records": [found.append_records[i] for i in range(SC_HISTOGRAM_BUCKETS)],
            "sync_us": [found.sync_us[i] for i in range(SC_HISTOGRAM_BUCKETS)],
        }

    def segment(self, uint32_t partition, int64_t n):
        """The n-th segment's description, or None."""
        cdef sc_error error
        cdef sc_segment_info info
        cdef int code
        with nogil:
            code = sc_partition_segment(self.ptr, partition, n, &info, &error)
        if code == SC_END:
            return None
        check(code, &error)
        empty = info.count == 0
        return (info.base_offset, info.end_offset, info.path.decode("utf-8", "surrogateescape"), info.size_bytes,
                info.sealed, None if empty else info.min_timestamp, None if empty else info.max_timestamp, info.count)

    def wait(self, list partitions, list offsets, int64_t timeout_ms, bint stable=False):
        """True when an end offset (`stable`: a last stable offset) passed the one given; False when the time is over.
        timeout_ms < 0: for ever."""
        cdef sc_error error
        cdef int64_t count = len(partitions), left = timeout_ms, piece
        cdef uint32_t *numbers = <uint32_t *>PyMem_RawMalloc((count + 1) * sizeof(uint32_t))
        cdef int64_t *known = <int64_t *>PyMem_RawMalloc((count + 1) * sizeof(int64_t))
        cdef int code = SC_END
        try:
            if numbers == NULL or known == NULL:
                raise MemoryError()
            for i in range(count):
                numbers[i] = partitions[i]
                known[i] = offsets[i]
            while True:
                piece = 500 if left < 0 or left > 500 else left
                with nogil:
                    code = sc_topic_wait(self.ptr, numbers, known, count, stable, piece, &error)
                if code != SC_END:
                    break
                PyErr_CheckSignals()
                if left >= 0:
                    left -= piece
                    if left <= 0:
                        break
        finally:
            PyMem_RawFree(numbers)
            PyMem_RawFree(known)
        if code == SC_END:
            return False
        check(code, &error)
        return True

    def verify(self, uint32_t partition, progress):
        """[(path, offset, position, message), …]; progress(bytes) is called now and then."""
        cdef sc_error error
        cdef list problems = []
        cdef VerifyContext context
        cdef int code
        context.problems = <PyObject *>problems
        context.progress = <PyObject *>progress
        with nogil:
            code = sc_partition_verify(self.ptr, partition, on_problem, on_progress, &context, &error)
        for problem in problems:
            if isinstance(problem, BaseException):
                raise problem
        check(code, &error)
        return problems

    def append_marker(self, uint32_t partition, int64_t producer_id, int16_t epoch, bint commit, bint fence=False,
                      bint durable=False):
        """Ends a producer's transaction here; returns the marker's offset, None when there was nothing to end."""
        cdef sc_error error
        cdef sc_marker marker
        cdef int64_t offset
        cdef int code
        marker.producer_id = producer_id
        marker.epoch = epoch
        marker.commit = commit
        marker.fence = fence
        marker.durable = durable
        with nogil:
            code = sc_partition_append_marker(self.ptr, partition, &marker, &offset, &error)
        check(code, &error)
        return offset if offset >= 0 else None

    def open_transactions(self, uint32_t partition):
        """The open transactions of a partition: [(producer id, epoch, first offset), …]."""
        cdef sc_error error
        cdef sc_open_transaction[OPEN_TRANSACTIONS_MAX] found
        cdef int64_t count, i
        cdef int code
        with nogil:
            code = sc_partition_open_transactions(self.ptr, partition, found, OPEN_TRANSACTIONS_MAX, &count, &error)
        check(code, &error)
        return [(found[i].producer_id, found[i].epoch, found[i].first_offset) for i in range(count)]

    cdef tuple append(self, uint32_t partition, sc_batch_input *inputs, int64_t batches, uint32_t version,
                      int64_t expected, bint log_append_time, bint durable, bint begun=False, producer=None):
        """`begun`: the call has appended to other partitions already, so a change of settings does not stop it.
        `producer`: (id, epoch, sequence of the first record, whether it is part of a transaction), or None."""
        cdef sc_error error
        cdef sc_append request
        cdef int64_t first, end
        cdef int code
        memset(&request, 0, sizeof(request))
        request.batches = inputs
        request.batch_count = batches
        request.schema_version = version
        request.generation = self.generation
        request.expected_offset = expected
        request.log_append_time = log_append_time
        request.durable = durable
        if producer is not None:
            request.producer.id, request.producer.epoch, request.producer.sequence, request.transactional = producer
        with nogil:
            code = sc_partition_append(self.ptr, partition, &request, &first, &end, &error)
            while begun and code == SC_STALE:
                request.generation = sc_topic_generation(self.ptr)
                code = sc_partition_append(self.ptr, partition, &request, &first, &end, &error)
        check(code, &error)
        return (partition, first, end)

    def append_rows(self, partition, ByteColumn values, ByteColumn keys, const int64_t[::1] timestamps,
                    int64_t timestamp, headers, uint32_t version, uint32_t partitions, uint32_t without_key,
                    bint log_append_time, bint durable):
        """Appends rows of bytes. `partition` None: by key. Returns [(partition, first offset, end offset), …]."""
        cdef const int64_t *times = &timestamps[0] if timestamps is not None else NULL
        cdef int64_t total = values.total + (keys.total if keys is not None else 0)
        if (keys is not None and keys.count != values.count) or (times != NULL and timestamps.shape[0] != values.count):
            raise ValueError("the lists changed while they were appended")
        if values.count == 0:
            return []
        if partition is not None or keys is None or partitions == 1:
            target = without_key if partition is None else partition
            return [self.append_range(target, values.items, keys.items if keys is not None else NULL, times, timestamp,
                                      headers, values.count, total, version, log_append_time, durable)]
        return self.append_by_key(values, keys, times, timestamp, version, partitions, without_key, log_append_time,
                                  durable)

    cdef tuple append_range(self, uint32_t partition, const sc_bytes *values, const sc_bytes *keys,
                            const int64_t *times, int64_t timestamp, headers, int64_t count, int64_t total,
                            uint32_t version, bint log_append_time, bint durable, bint begun=False):
        """`total`: not less than the bytes of the values and keys."""
        cdef int64_t batches = 0, start = 0, rows
        cdef bint single = count <= BATCH_ROWS_MAX and total < BATCH_BYTES_GOAL
        cdef int64_t most = 1 if single else count // BATCH_ROWS_MAX + total // BATCH_BYTES_GOAL + 2
        cdef object array_capsule
        cdef const ArrowArray *header_array = NULL
        cdef sc_batch_input first
        cdef sc_batch_input *inputs = &first
        if headers is not None:
            array_capsule = headers.__arrow_c_array__()[1]
            header_array = <const ArrowArray *>PyCapsule_GetPointer(array_capsule, "arrow_array")
        if not single:
            inputs = <sc_batch_input *>PyMem_RawMalloc(most * sizeof(sc_batch_input))
            if inputs == NULL:
                raise MemoryError()
        try:
            while start < count:
                rows = count if single else rows_of_batch(values, keys, start, count)
                memset(&inputs[batches], 0, sizeof(sc_batch_input))
                inputs[batches].count = rows
                inputs[batches].values = values + start
                inputs[batches].keys = keys + start if keys != NULL else NULL
                inputs[batches].timestamps = times + start if times != NULL else NULL
                inputs[batches].timestamp = timestamp
                inputs[batches].headers = header_array
                inputs[batches].first_row = start
                batches += 1
                start += rows
            return self.append(partition, inputs, batches, version, -1, log_append_time, durable, begun)
        finally:
            if not single:
                PyMem_RawFree(inputs)

    cdef list append_by_key(self, ByteColumn values, ByteColumn keys, const int64_t *times, int64_t timestamp,
                            uint32_t version, uint32_t partitions, uint32_t without_key, bint log_append_time,
                            bint durable):
        cdef Py_ssize_t count = values.count, i, place
        cdef int64_t longest = 0, total = values.total + keys.total
        cdef uint32_t p
        cdef list spans = []
        cdef sc_bytes *sorted_values = <sc_bytes *>PyMem_RawMalloc((count + 1) * sizeof(sc_bytes))
        cdef sc_bytes *sorted_keys = <sc_bytes *>PyMem_RawMalloc((count + 1) * sizeof(sc_bytes))
        cdef int64_t *sorted_times = <int64_t *>PyMem_RawMalloc((count + 1) * sizeof(int64_t))
        cdef uint32_t *targets = <uint32_t *>PyMem_RawMalloc((count + 1) * sizeof(uint32_t))
        cdef int64_t *starts = <int64_t *>PyMem_RawCalloc(partitions + 2, sizeof(int64_t))
        try:
            if (sorted_values == NULL or sorted_keys == NULL or sorted_times == NULL or targets == NULL
                    or starts == NULL):
                raise MemoryError()
            with nogil:
                for i in range(count):
                    longest = max(longest, values.items[i].size, keys.items[i].size)
                    if keys.items[i].data == NULL:
                        targets[i] = without_key
                    else:
                        targets[i] = sc_partition_of_key(keys.items[i].data, keys.items[i].size, partitions)
                    starts[targets[i] + 2] += 1
                for i in range(1, <Py_ssize_t>partitions + 2):
                    starts[i] += starts[i - 1]
                for i in range(count):
                    place = starts[targets[i] + 1]
                    starts[targets[i] + 1] += 1
                    sorted_values[place] = values.items[i]
                    sorted_keys[place] = keys.items[i]
                    sorted_times[place] = times[i] if times != NULL else timestamp
            if longest > self.max_record_bytes:  # before some of the partitions have their part
                raise errors.RecordTooLargeError(
                    f"a record of {longest} bytes is above max_record_bytes ({self.max_record_bytes})")
            for p in range(partitions):
                if starts[p + 1] > starts[p]:
                    spans.append(self.append_range(
                        p, sorted_values + starts[p], sorted_keys + starts[p],
                        sorted_times + starts[p] if times != NULL else NULL, timestamp, None,
                        starts[p + 1] - starts[p], total, version, log_append_time, False, len(spans) > 0))
            if durable:
                wait_durable([(self, span[0], span[2]) for span in spans])
            return spans
        finally:
            PyMem_RawFree(sorted_values)
            PyMem_RawFree(sorted_keys)
            PyMem_RawFree(sorted_times)
            PyMem_RawFree(targets)
            PyMem_RawFree(starts)

    def append_arrays(self, uint32_t partition, list chunks, int64_t timestamp, int64_t rows_per_batch,
                      uint32_t version, bint log_append_time, bint durable, producer=None):
        """Appends Arrow arrays of exactly the layout's types: [(rows, key, value, headers, times), …], where each of
        key, value and headers has __arrow_c_array__ or is None, and times is int64 milliseconds or None."""
        cdef list kept = []
        cdef const int64_t[::1] times
        cdef int64_t batches = 0, most = 1, start, count, step = max(1, min(rows_per_batch, BATCH_ROWS_MAX))
        cdef sc_batch_input *inputs
        cdef sc_batch_input *one
        for chunk in chunks:
            most += <int64_t>chunk[0] // step + 1
        inputs = <sc_batch_input *>PyMem_RawCalloc(most, sizeof(sc_batch_input))
        if inputs == NULL:
            raise MemoryError()
        try:
            for count, key, value, headers, chunk_times in chunks:
                start = 0
                times = chunk_times
                kept.append(times)
                while start < count:
                    one = &inputs[batches]
                    one.count = min(step, count - start)
                    if start == 0:
                        one.key = self.array_of(key, kept)
                        one.value = self.array_of(value, kept)
                        one.headers = self.array_of(headers, kept)
                    else:
                        one.key = inputs[batches - 1].key
                        one.value = inputs[batches - 1].value
                        one.headers = inputs[batches - 1].headers
                    one.first_row = start
                    one.timestamps = &times[start] if times is not None else NULL
                    one.timestamp = timestamp
                    batches += 1
                    start += step
            return self.append(partition, inputs, batches, version, -1, log_append_time, durable, False, producer)
        finally:
            PyMem_RawFree(inputs)

    def append_sorted(self, const int64_t[::1] targets, const int64_t[::1] bounds, tuple chunk, int64_t timestamp,
                      int64_t rows_per_batch, uint32_t version, bint log_append_time):
        """Appends rows [bounds[i], bounds[i + 1]) of a chunk, as in append_arrays, to partition targets[i], for each i.
        Returns the spans; waits for no sync."""
        cdef list kept = [], spans = []
        cdef int64_t start, end, batches, step = max(1, min(rows_per_batch, BATCH_ROWS_MAX)), rows = chunk[0]
        cdef const int64_t[::1] times = chunk[4]
        cdef const ArrowArray *key = self.array_of(chunk[1], kept)
        cdef const ArrowArray *value = self.array_of(chunk[2], kept)
        cdef const ArrowArray *headers = self.array_of(chunk[3], kept)
        cdef Py_ssize_t i
        cdef sc_batch_input *inputs = <sc_batch_input *>PyMem_RawCalloc(rows // step + 2, sizeof(sc_batch_input))
        if inputs == NULL:
            raise MemoryError()
        try:
            for i in range(targets.shape[0]):
                batches, start, end = 0, bounds[i], bounds[i + 1]
                if not 0 <= start < end <= rows:
                    raise ValueError(f"rows {start} to {end} of {rows}")
                while start < end:
                    inputs[batches].count = min(step, end - start)
                    inputs[batches].key = key
                    inputs[batches].value = value
                    inputs[batches].headers = headers
                    inputs[batches].first_row = start
                    inputs[batches].timestamps = &times[start] if times is not None else NULL
                    inputs[batches].timestamp = timestamp
                    batches += 1
                    start += step
                spans.append(self.append(targets[i], inputs, batches, version, -1, log_append_time, False, i > 0))
            return spans
        finally:
            PyMem_RawFree(inputs)

    cdef const ArrowArray *array_of(self, object column, list kept) except? NULL:
        if column is None:
            return NULL
        capsules = column.__arrow_c_array__()
        kept.append(capsules)
        return <const ArrowArray *>PyCapsule_GetPointer(capsules[1], "arrow_array")

    def append_messages(self, uint32_t partition, list messages, int64_t expected_offset, uint32_t version,
                        bint log_append_time, bint durable, producer=None):
        """Appends compressed IPC messages: [(buffer, rows, min ms, max ms, has headers), …], made for this offset."""
        cdef const uint8_t[::1] view
        cdef list views = []
        cdef int64_t batches = len(messages), i
        cdef sc_batch_input *inputs = <sc_batch_input *>PyMem_RawCalloc(batches + 1, sizeof(sc_batch_input))
        if inputs == NULL:
            raise MemoryError()
        try:
            for i in range(batches):
                buffer, rows, low, high, has_headers = messages[i]
                view = buffer
                views.append(view)
                inputs[i].count = rows
                inputs[i].message = &view[0]
                inputs[i].message_size = view.shape[0]
                inputs[i].min_timestamp = low
                inputs[i].max_timestamp = high
                inputs[i].has_headers = has_headers
            return self.append(
                partition, inputs, batches, version, expected_offset, log_append_time, durable, False, producer)
        finally:
            PyMem_RawFree(inputs)


cdef int64_t rows_of_batch(const sc_bytes *values, const sc_bytes *keys, int64_t start, int64_t count) noexcept:
    """How many of the rows from `start` on go into one batch."""
    cdef int64_t end = start, size = 0
    while end < count and end - start < BATCH_ROWS_MAX and (size < BATCH_BYTES_GOAL or end == start):
        size += values[end].size + (keys[end].size if keys != NULL else 0)
        end += 1
    return end - start


cdef sc_topic_settings settings_of(tuple settings):
    cdef sc_topic_settings native
    native.segment_bytes = settings[0]
    native.segment_ms = settings[1]
    native.max_record_bytes = settings[2]
    native.generation = settings[3]
    native.partitions = settings[4]
    native.producer_expiry_ms = settings[5]
    return native

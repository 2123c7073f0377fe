# Scans, what they stand on, and the memory that they hand out. Included by _core.pyx.

cdef class MappedBytes:
    """Bytes of a segment file where they lie, read-only; keeps the mapping alive."""
    cdef sc_mapping *mapping
    cdef const uint8_t *data
    cdef Py_ssize_t size
    cdef Py_ssize_t shape[1]

    def __dealloc__(self):
        if self.mapping != NULL:
            sc_mapping_release(self.mapping)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if flags & 1:
            raise BufferError("a log is read-only")
        self.shape[0] = self.size
        buffer.buf = <void *>self.data
        buffer.obj = self
        buffer.len = self.size
        buffer.itemsize = 1
        buffer.readonly = 1
        buffer.ndim = 1
        buffer.format = NULL
        buffer.shape = self.shape
        buffer.strides = NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL


cdef class Batch:
    """What a scan stands on. `dense`: every row from `first_row` on, `row_count` of them, is wanted."""
    cdef readonly int64_t base_offset, last_offset, record_count, first_row, row_count, position
    cdef readonly int partition, codec, flags
    cdef readonly uint32_t schema_version
    cdef readonly bint has_headers, dense
    cdef readonly object message  # MappedBytes of a compressed batch, or None


cdef Batch batch_of(const sc_batch *found, bint dense):
    cdef Batch batch = Batch.__new__(Batch)
    cdef MappedBytes message
    batch.base_offset = found.base_offset
    batch.last_offset = found.last_offset
    batch.record_count = found.record_count
    batch.first_row = found.first_row
    batch.row_count = found.row_count
    batch.position = found.position
    batch.partition = <int>found.partition
    batch.codec = found.codec
    batch.flags = found.flags
    batch.schema_version = found.schema_version
    batch.has_headers = found.has_headers
    batch.dense = dense
    if found.codec != 0:
        message = MappedBytes.__new__(MappedBytes)
        message.mapping = found.mapping
        sc_mapping_retain(message.mapping)
        message.data = found.message
        message.size = found.message_size
        batch.message = message
    return batch


cdef void release_array(object capsule) noexcept:
    cdef ArrowArray *array = <ArrowArray *>PyCapsule_GetPointer(capsule, "arrow_array")
    if array.release != NULL:
        array.release(array)
    PyMem_RawFree(array)


cdef void release_stream(object capsule) noexcept:
    cdef ArrowArrayStream *stream = <ArrowArrayStream *>PyCapsule_GetPointer(capsule, "arrow_array_stream")
    if stream.release != NULL:
        stream.release(stream)
    PyMem_RawFree(stream)


cdef class Columns:
    """The columns that a scan hands out: (column number, path of child numbers) pairs."""
    cdef sc_column *items
    cdef int64_t count

    def __cinit__(self, list columns):
        self.count = len(columns)
        self.items = <sc_column *>PyMem_RawCalloc(self.count + 1, sizeof(sc_column))
        if self.items == NULL:
            raise MemoryError()
        cdef int64_t i, level
        for i in range(self.count):
            number, path = columns[i]
            if len(path) > SC_DEPTH_MAX:
                raise ValueError("the column lies too deep")
            self.items[i].column = number
            self.items[i].depth = <int32_t>len(path)
            for level in range(<int64_t>len(path)):
                self.items[i].path[level] = path[level]

    def __dealloc__(self):
        PyMem_RawFree(self.items)


cdef class Scan:
    """A bounded read of ranges of partitions. One thread at a time."""
    cdef sc_scan *ptr
    cdef sc_batch batch
    cdef int64_t low, high
    cdef bint time_bounded
    cdef int64_t bytes_exported  # by this object, the tally's left out
    cdef sc_tally *tally
    cdef public object explain  # makes a better error of a StoreFormatError, or None
    cdef public object topic_name  # that records tell, or None

    def __cinit__(self, Topic topic, list ranges, int64_t low, int64_t high, int64_t limit, bint verify,
                  bint committed=False):
        cdef sc_error error
        cdef sc_scan_options options
        cdef sc_range *items = <sc_range *>PyMem_RawCalloc(len(ranges) + 1, sizeof(sc_range))
        if items == NULL:
            raise MemoryError()
        for i, (partition, start, end) in enumerate(ranges):
            items[i].partition = partition
            items[i].start_offset = start
            items[i].end_offset = end
        memset(&options, 0, sizeof(options))
        options.ranges = items
        options.range_count = len(ranges)
        options.min_timestamp = self.low = low
        options.max_timestamp = self.high = high
        options.limit = -1 if low != INT64_MIN or high != INT64_MAX else limit
        options.verify = verify
        options.committed = committed
        self.time_bounded = low != INT64_MIN or high != INT64_MAX
        cdef int code = sc_scan_open(topic.ptr, &options, &self.ptr, &error)
        PyMem_RawFree(items)
        check(code, &error)
        self.tally = sc_scan_tally(self.ptr)

    def __dealloc__(self):
        sc_scan_free(self.ptr)
        sc_tally_release(self.tally)

    cdef int check(self, int code, const sc_error *error) except -1:
        if code == SC_FORMAT and self.explain is not None:
            raise self.explain(error_of(error))
        return check(code, error)

    cdef bint advance(self, bint *dense) except -1:
        """Moves to the next batch with wanted rows; False at the end."""
        cdef sc_error error
        cdef int code
        cdef bool is_dense = True
        while True:
            with nogil:
                code = sc_scan_next(self.ptr, &self.batch, &error)
                if code == SC_OK and self.time_bounded and self.batch.codec == 0:
                    code = sc_batch_narrow_to_timestamps(&self.batch, self.low, self.high, &is_dense, &error)
            if code == SC_END:
                return False
            self.check(code, &error)
            if self.batch.row_count > 0:
                break
        if self.batch.codec != 0 and self.time_bounded:
            is_dense = self.batch.min_timestamp >= self.low and self.batch.max_timestamp <= self.high
        dense[0] = is_dense
        return True

    def next_batch(self):
        """The next Batch, or None at the end."""
        cdef bint dense
        return self.current(dense) if self.advance(&dense) else None

    cdef Batch current(self, bint dense):
        cdef Batch batch = batch_of(&self.batch, dense)
        if self.batch.codec != 0:
            self.bytes_exported += self.batch.message_size
        return batch

    def export_batch(self, Columns columns):
        """The rows of the current batch as an "arrow_array" capsule."""
        cdef sc_error error
        cdef ArrowArray *array = <ArrowArray *>PyMem_RawCalloc(1, sizeof(ArrowArray))
        if array == NULL:
            raise MemoryError()
        cdef int code
        with nogil:
            code = sc_batch_export(&self.batch, columns.items, columns.count, &self.bytes_exported, array, &error)
        if code != SC_OK:
            PyMem_RawFree(array)
            raise error_of(&error)
        return PyCapsule_New(array, "arrow_array", release_array)

    def export_stream(self, Columns columns, schema_capsule, uint32_t schema_version):
        """The whole scan as an "arrow_array_stream" capsule; this object is empty afterwards."""
        cdef sc_error error
        cdef const ArrowSchema *schema = <const ArrowSchema *>PyCapsule_GetPointer(schema_capsule, "arrow_schema")
        cdef ArrowArrayStream *stream = <ArrowArrayStream *>PyMem_RawCalloc(1, sizeof(ArrowArrayStream))
        if stream == NULL:
            raise MemoryError()
        cdef sc_scan *scan = self.ptr
        self.ptr = NULL
        cdef int code = sc_scan_export(scan, columns.items, columns.count, schema, schema_version, stream, &error)
        if code != SC_OK:
            PyMem_RawFree(stream)
            raise error_of(&error)
        return PyCapsule_New(stream, "arrow_array_stream", release_stream)

    def count(self):
        """The rows in the ranges, from batch headers alone."""
        cdef sc_error error
        cdef int64_t count
        cdef int code
        with nogil:
            code = sc_scan_count(self.ptr, &count, &error)
        self.check(code, &error)
        return count

    def counters(self):
        """(segments opened, batches, rows, bytes exported, bytes verified) so far."""
        cdef sc_scan_counters counters
        sc_tally_read(self.tally, &counters)
        return (counters.segments, counters.batches, counters.rows, counters.bytes_exported + self.bytes_exported,
                counters.bytes_verified)

    def records(self, decode, int64_t limit=-1):
        """An iterator of Record. `decode(batch)` makes the records of batches that are not plain."""
        cdef Records iterator = Records.__new__(Records)
        iterator.scan = self
        iterator.decode = decode
        iterator.left = limit
        return iterator


cdef class Records:
    """Iterates over the records of a scan."""
    cdef Scan scan
    cdef object decode
    cdef object decoded
    cdef sc_batch batch  # that `rows` are of
    cdef sc_rows rows  # in the mapped file
    cdef sc_rows copy  # of rows [copied, copy_end), which no read error can touch any more
    cdef void *memory
    cdef sc_mapping *mapping
    cdef int64_t row, end, copied, copy_end, left
    cdef bint filtered
    cdef bint busy  # somebody is in fill(), where others run
    cdef readonly object failure  # the error that ended it, or None
    cdef Record last, spare  # those made last; a loop drops each when it has taken the next

    def __dealloc__(self):
        free(self.memory)
        if self.mapping != NULL:
            sc_mapping_release(self.mapping)

    def __iter__(self):
        return self

    cdef bint fill(self) except -1:
        """Takes the next batch; False at the end."""
        cdef bint dense
        cdef sc_error error
        if self.mapping != NULL:
            sc_mapping_release(self.mapping)
            self.mapping = NULL
        if self.scan is None:
            return False
        cdef sc_batch *found = &self.scan.batch
        if not self.scan.advance(&dense):
            return False
        if found.codec == 0 and not found.has_headers and sc_batch_rows(found, &self.rows, &error) == SC_OK:
            sc_mapping_retain(found.mapping)
            self.mapping = found.mapping
            self.batch = found[0]
            self.copy_end = 0
            self.row = found.first_row
            self.end = found.first_row + found.row_count
            self.filtered = not dense
            return True
        self.decoded = iter(self.decode(self.scan.current(dense)))
        return True

    def __next__(self):
        cdef Record record = self.next()
        if record is None:
            raise StopIteration
        return record

    cdef Record next(self):
        """The next record, or None at the end."""
        cdef int64_t row
        cdef Record found
        while self.busy:  # another thread is in fill(): a matter of microseconds
            time.sleep(1e-5)
        if self.failure is not None:
            raise self.failure
        while True:
            if self.left == 0:
                return None
            if self.decoded is not None:
                found = self.next_decoded()
                if self.left == 0:  # stopped meanwhile: nobody will ask for the place of this one
                    return None
                if found is not None:
                    self.left -= 1
                    self.last = found
                    return found
                self.decoded = None
            while self.row < self.end:
                if self.row >= self.copy_end:
                    self.refresh(True)
                row = self.row - self.copied
                self.row += 1
                if self.filtered and not self.scan.low <= self.copy.timestamps[row] <= self.scan.high:
                    continue
                self.left -= 1
                return self.make(row)
            if not self.refresh(False):
                return None

    cdef Record next_decoded(self):
        self.busy = True
        try:
            return next(self.decoded, None)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self.busy = False

    cdef bint refresh(self, bint rows) except -1:
        """Takes the next rows of the batch, or the next batch; False at the end. What fails once fails again."""
        self.busy = True
        try:
            if rows:
                self.copy_rows()
                return True
            return self.fill()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self.busy = False

    def take(self, int64_t count):
        """The next records, as many as there are, `count` at most; an error behind some of them is raised next time."""
        cdef list found = []
        cdef Record record
        while count > 0:
            try:
                record = self.next()
            except BaseException:
                if not found:
                    raise
                break
            if record is None:
                break
            found.append(record)
            count -= 1
        return found

    def place(self):
        """(partition, offset) behind the last record that was handed out; None when there was none."""
        return None if self.last is None else (self.last.partition, self.last.offset + 1)

    def stop(self):
        """Ends the iteration, from any thread: no more records are handed out. Returns the place."""
        self.left = 0
        return self.place()

    cdef int copy_rows(self) except -1:
        """Takes the next rows of the batch out of the file."""
        cdef sc_error error
        self.copy_end = self.end
        cdef int code = sc_rows_copy(
            &self.batch, &self.rows, self.row, &self.copy_end, &self.copy, &self.memory, &error)
        if code != SC_OK:
            self.copy_end = 0
        check(code, &error)
        self.copied = self.row // 8 * 8
        return 0

    cdef Record make(self, int64_t row):
        """The last but one record, if nobody else has it any more, or a new one."""
        if is_shared(<PyObject *>self.spare):
            self.spare = Record.__new__(Record)
            PyObject_GC_UnTrack(<PyObject *>self.spare)  # it holds bytes alone: lists of a million are not walked
        cdef Record record = self.spare
        cdef sc_rows *rows = &self.copy
        record.partition = <int>self.batch.partition
        record.offset = rows.offsets[row]
        record.timestamp_ms = rows.timestamps[row]
        record.headers = ()
        record.topic = self.scan.topic_name
        record.value = None  # its memory is the next value's
        record.key = bytes_or_none(rows.key_validity, rows.key_ends, rows.keys, row)
        record.value = bytes_or_none(rows.value_validity, rows.value_ends, rows.values, row)
        prefetch(self.rows.values + rows.value_ends[row] + COPIED_BYTES,
                 rows.value_ends[row + 1] - rows.value_ends[row])
        self.spare = self.last
        self.last = record
        return record


def records_of(decoded, int64_t limit=-1):
    """Records that somebody else makes, as an iterator of the same kind."""
    cdef Records records = Records.__new__(Records)
    records.decoded = iter(decoded)
    records.left = limit
    return records


cdef class RecordStream:
    """Iterates over one iterator of records after the other: `refill(the one that ended)` gives the next, or None."""
    cdef public Records records
    cdef object refill
    cdef object __weakref__

    def __init__(self, refill):
        self.refill = refill

    def __iter__(self):
        return self

    def __next__(self):
        cdef Record record
        cdef Records records = self.records  # kept: another thread may put others in its place meanwhile
        while True:
            if records is not None:
                record = records.next()
                if record is not None:
                    return record
            records = self.records = self.refill(records)
            if records is None:
                raise StopIteration

    def take(self):
        """The next record that is there without refilling, or None."""
        cdef Records records = self.records
        return None if records is None else records.next()

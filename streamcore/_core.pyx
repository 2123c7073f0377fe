# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
# cython: auto_pickle=False, autotestdict=False
"""The only way from Python into csrc/: thin classes that own one C object each. Policy lives in the Python modules."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport Py_EQ, Py_NE
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memset

from streamcore._core cimport *

import datetime

from streamcore import errors

cdef int64_t BATCH_ROWS_MAX = 1 << 16
cdef int64_t BATCH_BYTES_GOAL = 1 << 20
cdef int64_t COPIED_BYTES = 1 << 16  # by one sc_rows_copy, about
MAX_PARTITIONS = SC_PARTITIONS_MAX

cdef object EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
cdef object MILLISECOND = datetime.timedelta(milliseconds=1)


class StaleTopic(Exception):
    """The topic's settings changed under this handle: read them again and repeat."""


class OffsetConflict(Exception):
    """The log does not end at the offset that the append expected."""


cdef object error_of(const sc_error *error):
    """The Python exception for a C error."""
    cdef object message = error.message.decode("utf-8", "replace")
    cdef object path = error.path.decode("utf-8", "surrogateescape") or None
    cdef object offset = error.offset if error.offset >= 0 else None
    cdef object position = error.position if error.position >= 0 else None
    cdef int code = error.code
    if code == SC_OS or code == SC_POISONED:
        return errors.StorageError(error.number, message, path)
    if code == SC_CORRUPT:
        return errors.CorruptionError(message, path, offset, position)
    if code == SC_FORMAT:
        return errors.StoreFormatError(f"{message} (file {path})", path, offset, position)
    if code == SC_RANGE:
        return errors.OffsetOutOfRangeError(message, error.offset, error.position)
    if code == SC_TOO_LARGE:
        return errors.RecordTooLargeError(message)
    if code == SC_INVALID:
        return ValueError(message)
    if code == SC_READ_ONLY:
        return errors.StoreReadOnlyError(message)
    if code == SC_DELETED:
        return errors.TopicNotFoundError(message)
    if code == SC_STALE:
        return StaleTopic(message)
    if code == SC_CONFLICT:
        return OffsetConflict(message)
    if code == SC_MEMORY:
        return MemoryError(message)
    return errors.StreamcoreError(message)


cdef int check(int code, const sc_error *error) except -1:
    if code != SC_OK:
        raise error_of(error)
    return 0


# ---- columns of bytes ------------------------------------------------------------------------------------------

cdef extern from *:
    """
    enum { PREFETCHED_OBJECTS = 12 };

    #define BYTES_OF(data) ((PyObject *)((data) - offsetof(PyBytesObject, ob_sval)))

    /* Points items[i] to the i-th object, with a reference to it, until one is neither bytes nor None; returns its
     * number, and adds to the total of bytes. Runs no Python code. */
    static Py_ssize_t take_bytes(PyObject *objects, Py_ssize_t i, Py_ssize_t count, sc_bytes *items, int64_t *total)
    {
        PyObject **from = PySequence_Fast_ITEMS(objects);
        int64_t sum = 0;
        for (; i < count; i++) {
            if (i + PREFETCHED_OBJECTS < count)
                __builtin_prefetch(from[i + PREFETCHED_OBJECTS], 1);
            if (PyBytes_CheckExact(from[i])) {
                Py_INCREF(from[i]);
                items[i] = (sc_bytes){(const uint8_t *)PyBytes_AS_STRING(from[i]), PyBytes_GET_SIZE(from[i])};
            } else if (from[i] == Py_None) {
                items[i] = (sc_bytes){NULL, 0};
            } else {
                break;
            }
            sum += items[i].size;
        }
        *total += sum;
        return i;
    }

    static void drop_bytes(const sc_bytes *items, Py_ssize_t count)
    {
        for (Py_ssize_t i = 0; i < count; i++)
            if (items[i].data != NULL)
                Py_DECREF(BYTES_OF(items[i].data));
    }

    static int can_change(PyObject *objects)
    {
    #ifdef Py_GIL_DISABLED
        return !PyTuple_CheckExact(objects);
    #else
        return !PyTuple_CheckExact(objects) && !PyList_CheckExact(objects);
    #endif
    }
    """
    Py_ssize_t take_bytes(object objects, Py_ssize_t i, Py_ssize_t count, sc_bytes *items, int64_t *total)
    void drop_bytes(const sc_bytes *items, Py_ssize_t count)
    bint can_change(object objects)  # while no Python code runs in this thread


cdef class ByteColumn:
    """Pointers to the bytes of a list of objects. Each holds a reference to the bytes object that it points into."""
    cdef sc_bytes *items
    cdef Py_ssize_t count
    cdef int64_t total

    def __cinit__(self, objects, str name):
        if can_change(objects):
            objects = tuple(objects)
        cdef Py_ssize_t count = len(objects)
        self.items = <sc_bytes *>PyMem_RawMalloc((count + 1) * sizeof(sc_bytes))
        if self.items == NULL:
            raise MemoryError()
        self.count = take_bytes(objects, 0, count, self.items, &self.total)
        if self.count < count:
            self.take_others(tuple(objects), name)

    cdef int take_others(self, tuple objects, str name) except -1:
        """Takes the rest, where objects may run code of their own, which may change the list that they came in."""
        cdef Py_ssize_t count = len(objects)
        cdef bytes copied
        while self.count < count:
            copied = bytes_of(objects[self.count], self.count, name)
            Py_INCREF(copied)
            self.items[self.count].data = <const uint8_t *>PyBytes_AS_STRING(copied)
            self.items[self.count].size = PyBytes_GET_SIZE(copied)
            self.total += PyBytes_GET_SIZE(copied)
            self.count = take_bytes(objects, self.count + 1, count, self.items, &self.total)
        return 0

    def __dealloc__(self):
        drop_bytes(self.items, self.count)
        PyMem_RawFree(self.items)

    def __len__(self):
        return self.count


cdef bytes bytes_of(object item, Py_ssize_t i, str name):
    try:
        return bytes(memoryview(item))
    except TypeError:
        hint = ": encode it, for example .encode()" if isinstance(item, str) else ""
        raise TypeError(
            f"{name}[{i}] is {type(item).__name__}; bytes, another bytes-like object or None is needed{hint}"
        ) from None


def partition_of_key(const uint8_t[::1] key, uint32_t partitions):
    """The partition where Kafka's default partitioner puts a key (murmur2)."""
    cdef const uint8_t *data = &key[0] if key.shape[0] > 0 else NULL
    return sc_partition_of_key(data, key.shape[0], partitions)


def crc32c(const uint8_t[::1] data, uint32_t crc=0):
    """CRC32C of bytes, or of more bytes behind those that `crc` covers."""
    if data.shape[0] == 0:
        return crc
    with nogil:
        crc = sc_crc32c(crc, &data[0], data.shape[0])
    return crc


def partitions_of_keys(array, int32_t[::1] out, uint32_t partitions, int32_t without_key):
    """Fills `out` with the partition of each key of an Arrow binary array."""
    cdef object array_capsule = array.__arrow_c_array__()[1]
    cdef const ArrowArray *keys = <const ArrowArray *>PyCapsule_GetPointer(array_capsule, "arrow_array")
    cdef const uint8_t *validity = <const uint8_t *>keys.buffers[0]
    cdef const int32_t *ends = <const int32_t *>keys.buffers[1]
    cdef const uint8_t *data = <const uint8_t *>keys.buffers[2]
    cdef int64_t i, at
    with nogil:
        for i in range(keys.length):
            at = keys.offset + i
            if validity != NULL and not (validity[at >> 3] >> (at & 7)) & 1:
                out[i] = without_key
            else:
                out[i] = <int32_t>sc_partition_of_key(data + ends[at], ends[at + 1] - ends[at], partitions)


# ---- records ---------------------------------------------------------------------------------------------------

cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030C0000
    #include <structmember.h>
    #define Py_T_INT T_INT
    #define Py_T_LONGLONG T_LONGLONG
    #define Py_T_OBJECT_EX T_OBJECT_EX
    #define Py_READONLY READONLY
    #endif

    enum { RECORD_MEMBERS = 6 };
    static PyMemberDef record_members[RECORD_MEMBERS] = {
        {.name = "partition", .type = Py_T_INT, .flags = Py_READONLY},
        {.name = "offset", .type = Py_T_LONGLONG, .flags = Py_READONLY},
        {.name = "timestamp_ms", .type = Py_T_LONGLONG, .flags = Py_READONLY},
        {.name = "key", .type = Py_T_OBJECT_EX, .flags = Py_READONLY},
        {.name = "value", .type = Py_T_OBJECT_EX, .flags = Py_READONLY},
        {.name = "headers", .type = Py_T_OBJECT_EX, .flags = Py_READONLY},
    };

    /* Where in its owner the pointer to a member lies; it must be there. */
    static Py_ssize_t place_of(PyObject *owner, PyObject *member)
    {
        PyObject **words = (PyObject **)owner;
        Py_ssize_t place = 0;
        while (words[place] != member)
            place++;
        return place * (Py_ssize_t)sizeof *words;
    }

    static int add_members(PyObject *type, PyMemberDef *members, const Py_ssize_t *places, int count)
    {
        PyTypeObject *owner = (PyTypeObject *)type;
        for (int i = 0; i < count; i++) {
            members[i].offset = places[i];
            PyObject *descriptor = PyDescr_NewMember(owner, &members[i]);
            int code = descriptor == NULL ? -1 : PyDict_SetItemString(owner->tp_dict, members[i].name, descriptor);
            Py_XDECREF(descriptor);
            if (code != 0)
                return -1;
        }
        PyType_Modified(owner);
        return 0;
    }

    enum { LINE = 64, PREFETCHED_MAX = 4096 };

    /* Any address will do: nothing is read. */
    static inline void prefetch(const uint8_t *data, Py_ssize_t size)
    {
        for (Py_ssize_t i = 0; i < size && i < PREFETCHED_MAX; i += LINE)
            __builtin_prefetch(data + i, 0, 2);
    }

    /* Whether anybody but the caller may have it; without a GIL nobody can say. */
    static inline int is_shared(PyObject *object)
    {
    #ifdef Py_GIL_DISABLED
        (void)object;
        return 1;
    #else
        return Py_REFCNT(object) != 1;
    #endif
    }
    """
    bint is_shared(PyObject *object)
    void prefetch(const uint8_t *data, Py_ssize_t size)
    ctypedef struct PyMemberDef:
        pass
    enum:
        RECORD_MEMBERS
    PyMemberDef *record_members
    Py_ssize_t place_of(object owner, object member)
    int add_members(object type, PyMemberDef *members, const Py_ssize_t *places, int count) except -1


@cython.final
@cython.freelist(64)
cdef class Record:
    """One record of a topic. Immutable; equal when all fields are equal.

    partition: int; offset: int; timestamp: aware datetime in UTC; timestamp_ms: int, milliseconds since 1970;
    key: bytes or None; value: bytes, None (a tombstone) or, of a typed topic, a dict; headers: tuple of
    (str, bytes or None) pairs.
    """
    cdef int partition
    cdef int64_t offset
    cdef int64_t timestamp_ms
    cdef object key
    cdef object value
    cdef tuple headers

    def __init__(self, int partition, int64_t offset, int64_t timestamp_ms, key, value, headers=()):
        self.partition = partition
        self.offset = offset
        self.timestamp_ms = timestamp_ms
        self.key = key
        self.value = value
        self.headers = tuple(headers)

    @property
    def timestamp(self):
        return EPOCH + self.timestamp_ms * MILLISECOND

    cdef tuple as_tuple(self):
        return (self.partition, self.offset, self.timestamp_ms, self.key, self.value, self.headers)

    def __richcmp__(self, other, int op):
        if not isinstance(other, Record) or (op != Py_EQ and op != Py_NE):
            return NotImplemented
        return ((<Record>self).as_tuple() == (<Record>other).as_tuple()) == (op == Py_EQ)

    def __hash__(self):
        return hash((self.partition, self.offset, self.timestamp_ms, self.key))

    def __reduce__(self):
        return Record, self.as_tuple()

    def __repr__(self):
        headers = f", headers={self.headers!r}" if self.headers else ""
        try:
            time = self.timestamp.isoformat()
        except OverflowError:
            time = f"{self.timestamp_ms} ms"
        return (
            f"Record(partition={self.partition}, offset={self.offset}, timestamp='{time}', "
            f"key={self.key!r}, value={self.value!r}{headers})"
        )


cdef int make_members_of_record() except -1:
    """Members instead of properties: the interpreter specialises reads of `key`, `value` and `headers`."""
    cdef Record record = Record(0, 0, 0, object(), object(), (object(),))
    cdef const char *start = <const char *><PyObject *>record
    cdef Py_ssize_t[RECORD_MEMBERS] places = [
        <const char *>&record.partition - start,
        <const char *>&record.offset - start,
        <const char *>&record.timestamp_ms - start,
        place_of(record, record.key),
        place_of(record, record.value),
        place_of(record, record.headers),
    ]
    return add_members(Record, record_members, places, RECORD_MEMBERS)


make_members_of_record()


cdef inline object bytes_or_none(const uint8_t *validity, const int32_t *ends, const uint8_t *data, int64_t row):
    if validity != NULL and not (validity[row >> 3] >> (row & 7)) & 1:
        return None
    return PyBytes_FromStringAndSize(<const char *>data + ends[row], ends[row + 1] - ends[row])


# ---- memory of a segment as a Python buffer --------------------------------------------------------------------

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
    cdef readonly int64_t base_offset, record_count, first_row, row_count, position
    cdef readonly int partition, codec
    cdef readonly uint32_t schema_version
    cdef readonly bint has_headers, dense
    cdef readonly object message  # MappedBytes of a compressed batch, or None


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


# ---- scans -----------------------------------------------------------------------------------------------------

cdef class Scan:
    """A bounded read of ranges of partitions. One thread at a time."""
    cdef sc_scan *ptr
    cdef sc_batch batch
    cdef int64_t low, high
    cdef bint time_bounded
    cdef int64_t bytes_exported  # by this object, the tally's left out
    cdef sc_tally *tally
    cdef public object explain  # makes a better error of a StoreFormatError, or None

    def __cinit__(self, Topic topic, list ranges, int64_t low, int64_t high, int64_t limit, bint verify):
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
        cdef Batch batch = Batch.__new__(Batch)
        cdef MappedBytes message
        batch.base_offset = self.batch.base_offset
        batch.record_count = self.batch.record_count
        batch.first_row = self.batch.first_row
        batch.row_count = self.batch.row_count
        batch.position = self.batch.position
        batch.partition = <int>self.batch.partition
        batch.codec = self.batch.codec
        batch.schema_version = self.batch.schema_version
        batch.has_headers = self.batch.has_headers
        batch.dense = dense
        if self.batch.codec != 0:
            message = MappedBytes.__new__(MappedBytes)
            message.mapping = self.batch.mapping
            sc_mapping_retain(message.mapping)
            message.data = self.batch.message
            message.size = self.batch.message_size
            batch.message = message
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
        cdef int64_t row
        while True:
            if self.left == 0:
                raise StopIteration
            if self.decoded is not None:
                found = next(self.decoded, None)
                if found is not None:
                    self.left -= 1
                    return found
                self.decoded = None
            while self.row < self.end:
                if self.row >= self.copy_end:
                    self.copy_rows()
                row = self.row - self.copied
                self.row += 1
                if self.filtered and not self.scan.low <= self.copy.timestamps[row] <= self.scan.high:
                    continue
                self.left -= 1
                return self.make(row)
            if not self.fill():
                raise StopIteration

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
        cdef Record record = self.spare
        cdef sc_rows *rows = &self.copy
        record.partition = <int>self.batch.partition
        record.offset = rows.offsets[row]
        record.timestamp_ms = rows.timestamps[row]
        record.headers = ()
        record.value = None  # its memory is the next value's
        record.key = bytes_or_none(rows.key_validity, rows.key_ends, rows.keys, row)
        record.value = bytes_or_none(rows.value_validity, rows.value_ends, rows.values, row)
        prefetch(self.rows.values + rows.value_ends[row] + COPIED_BYTES,
                 rows.value_ends[row + 1] - rows.value_ends[row])
        self.spare = self.last
        self.last = record
        return record


# ---- topics ----------------------------------------------------------------------------------------------------

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
    """A topic's folder, opened. Settings are (segment_bytes, segment_ms, max_record_bytes, generation, partitions)."""
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
        """(start offset, end offset, durable offset, size in bytes or -1)."""
        cdef sc_error error
        cdef sc_partition_info info
        cdef int code
        with nogil:
            code = sc_partition_describe(self.ptr, partition, with_size, &info, &error)
        check(code, &error)
        return (info.start_offset, info.end_offset, info.durable_offset, info.size_bytes)

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

    def wait(self, list partitions, list offsets, int64_t timeout_ms):
        """True when an end offset passed the one given; False when the time is over. timeout_ms < 0: for ever."""
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
                    code = sc_topic_wait(self.ptr, numbers, known, count, piece, &error)
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

    cdef tuple append(self, uint32_t partition, sc_batch_input *inputs, int64_t batches, uint32_t version,
                      int64_t expected, bint log_append_time, bint durable, bint begun=False):
        """`begun`: the call has appended to other partitions already, so a change of settings does not stop it."""
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
                        starts[p + 1] - starts[p], total, version, log_append_time, durable, len(spans) > 0))
            return spans
        finally:
            PyMem_RawFree(sorted_values)
            PyMem_RawFree(sorted_keys)
            PyMem_RawFree(sorted_times)
            PyMem_RawFree(targets)
            PyMem_RawFree(starts)

    def append_arrays(self, uint32_t partition, list chunks, int64_t timestamp, int64_t rows_per_batch,
                      uint32_t version, bint log_append_time, bint durable):
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
            return self.append(partition, inputs, batches, version, -1, log_append_time, durable)
        finally:
            PyMem_RawFree(inputs)

    cdef const ArrowArray *array_of(self, object column, list kept) except? NULL:
        if column is None:
            return NULL
        capsules = column.__arrow_c_array__()
        kept.append(capsules)
        return <const ArrowArray *>PyCapsule_GetPointer(capsules[1], "arrow_array")

    def append_messages(self, uint32_t partition, list messages, int64_t expected_offset, uint32_t version,
                        bint log_append_time, bint durable):
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
            return self.append(partition, inputs, batches, version, expected_offset, log_append_time, durable)
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
    return native

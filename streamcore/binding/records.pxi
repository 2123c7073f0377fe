# Record: one row as a Python object. Included by _core.pyx.

cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030C0000
    #include <structmember.h>
    #define Py_T_INT T_INT
    #define Py_T_LONGLONG T_LONGLONG
    #define Py_T_OBJECT_EX T_OBJECT_EX
    #define Py_READONLY READONLY
    #endif

    enum { RECORD_MEMBERS = 7 };
    static PyMemberDef record_members[RECORD_MEMBERS] = {
        {.name = "partition", .type = Py_T_INT, .flags = Py_READONLY},
        {.name = "offset", .type = Py_T_LONGLONG, .flags = Py_READONLY},
        {.name = "timestamp_ms", .type = Py_T_LONGLONG, .flags = Py_READONLY},
        {.name = "key", .type = Py_T_OBJECT_EX, .flags = Py_READONLY},
        {.name = "value", .type = Py_T_OBJECT_EX, .flags = Py_READONLY},
        {.name = "headers", .type = Py_T_OBJECT_EX, .flags = Py_READONLY},
        {.name = "topic", .type = Py_T_OBJECT_EX, .flags = Py_READONLY},
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
    """One record of a topic. Immutable; equal when all fields but the topic are equal.

    partition: int; offset: int; timestamp: aware datetime in UTC; timestamp_ms: int, milliseconds since 1970;
    key: bytes or None; value: bytes, None (a tombstone) or, of a typed topic, a dict; headers: tuple of
    (str, bytes or None) pairs; topic: its name, None for a record that was made by hand.
    """
    cdef int partition
    cdef int64_t offset
    cdef int64_t timestamp_ms
    cdef object key
    cdef object value
    cdef tuple headers
    cdef object topic

    def __init__(self, int partition, int64_t offset, int64_t timestamp_ms, key, value, headers=(), topic=None):
        self.partition = partition
        self.offset = offset
        self.timestamp_ms = timestamp_ms
        self.key = key
        self.value = value
        self.headers = tuple(headers)
        self.topic = topic

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
        return Record, (*self.as_tuple(), self.topic)

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
    cdef Record record = Record(0, 0, 0, object(), object(), (object(),), object())
    cdef const char *start = <const char *><PyObject *>record
    cdef Py_ssize_t[RECORD_MEMBERS] places = [
        <const char *>&record.partition - start,
        <const char *>&record.offset - start,
        <const char *>&record.timestamp_ms - start,
        place_of(record, record.key),
        place_of(record, record.value),
        place_of(record, record.headers),
        place_of(record, record.topic),
    ]
    return add_members(Record, record_members, places, RECORD_MEMBERS)


make_members_of_record()


cdef inline object bytes_or_none(const uint8_t *validity, const int32_t *ends, const uint8_t *data, int64_t row):
    if validity != NULL and not (validity[row >> 3] >> (row & 7)) & 1:
        return None
    return PyBytes_FromStringAndSize(<const char *>data + ends[row], ends[row + 1] - ends[row])

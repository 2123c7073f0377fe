# Lists of bytes as pointers and sizes; keys and checksums. Included by _core.pyx.

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

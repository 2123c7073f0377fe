# Waiting for records of many topics, and signals that interrupt it. Included by _core.pyx.

cdef int64_t WAIT_PIECE_MS = 500  # how often ^C is looked for, should it come just before a thread falls asleep


cdef class Signal:
    """A count that anybody raises to end waits: of this process, or, with a path, of all that open that file."""
    cdef sc_signal *ptr

    def __cinit__(self, path=None, bint writable=True):
        cdef sc_error error
        cdef int code
        if path is None:
            code = sc_signal_new(&self.ptr, &error)
        else:
            code = sc_signal_open(<const char *>(<bytes>path), writable, &self.ptr, &error)
        check(code, &error)

    def __dealloc__(self):
        sc_signal_free(self.ptr)

    def count(self):
        """How often it was raised (modulo 2**32)."""
        return sc_signal_count(self.ptr)

    def set(self):
        """Raises it: waits that know another count end."""
        sc_signal_raise(self.ptr)


@cython.final
cdef class Waits:
    """What a wait is for, as the core takes it: [(Topic, partitions, offsets), …] and [(Signal, count), …]."""
    cdef list kept
    cdef sc_wait *waits
    cdef sc_watch *watches
    cdef uint32_t *partitions
    cdef int64_t *offsets
    cdef int64_t wait_count, watch_count

    def __cinit__(self, list waits, list watches):
        cdef int64_t total = 0, place = 0, i
        cdef Signal signal
        cdef Topic topic
        self.kept = [waits, watches]
        self.wait_count = len(waits)
        self.watch_count = len(watches)
        for _, partitions, _ in waits:
            total += len(partitions)
        self.waits = <sc_wait *>PyMem_RawCalloc(self.wait_count + 1, sizeof(sc_wait))
        self.watches = <sc_watch *>PyMem_RawCalloc(self.watch_count + 1, sizeof(sc_watch))
        self.partitions = <uint32_t *>PyMem_RawCalloc(total + 1, sizeof(uint32_t))
        self.offsets = <int64_t *>PyMem_RawCalloc(total + 1, sizeof(int64_t))
        if self.waits == NULL or self.watches == NULL or self.partitions == NULL or self.offsets == NULL:
            raise MemoryError()
        for i in range(self.wait_count):
            topic, partitions, offsets = waits[i]
            self.waits[i].topic = topic.ptr
            self.waits[i].count = len(partitions)
            self.waits[i].partitions = self.partitions + place
            self.waits[i].offsets = self.offsets + place
            for partition, offset in zip(partitions, offsets, strict=True):
                self.partitions[place] = partition
                self.offsets[place] = offset
                place += 1
        for i in range(self.watch_count):
            signal, seen = watches[i]
            self.watches[i].signal = signal.ptr
            self.watches[i].seen = seen

    def __dealloc__(self):
        PyMem_RawFree(self.waits)
        PyMem_RawFree(self.watches)
        PyMem_RawFree(self.partitions)
        PyMem_RawFree(self.offsets)


def wait_many(list waits, list watches, timeout_ms=None):
    """Waits, using no CPU, until an end offset passes the one given for it, or a signal's count is another one.

    waits: [(Topic, partitions, offsets), …]; watches: [(Signal, known count), …]; timeout_ms: None is for ever. False
    when the time is over; raises what a handler of signals raises, and when a topic is closed or deleted.
    """
    cdef sc_error error
    cdef Waits given = Waits(waits, watches)
    cdef int code
    cdef int64_t piece = 0
    deadline = None if timeout_ms is None else time.monotonic_ns() + int(timeout_ms * 1_000_000)
    while True:
        piece = WAIT_PIECE_MS
        if deadline is not None:
            piece = max(0, min(piece, -(-(deadline - time.monotonic_ns()) // 1_000_000)))
        with nogil:
            code = sc_wait_many(given.waits, given.wait_count, given.watches, given.watch_count, piece, &error)
        if code != SC_END:
            check(code, &error)
            return True
        PyErr_CheckSignals()
        if deadline is not None and time.monotonic_ns() >= deadline:
            return False


def boot_id():
    """Identifies the running kernel; 16 zeros where that is not known."""
    cdef uint8_t[16] found
    sc_os_boot_id(found)
    return PyBytes_FromStringAndSize(<const char *>found, 16)

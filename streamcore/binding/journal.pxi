# The journal of a store, and waiting for many partitions to be durable. Included by _core.pyx.


cdef class Journal:
    """The journal of the store in a folder, opened for writing: replays what an earlier session left."""
    cdef sc_journal *ptr

    def __cinit__(self, bytes folder, int64_t area=0):
        cdef sc_error error
        cdef const char *path = folder
        cdef int code
        with nogil:
            code = sc_journal_open(path, area, &self.ptr, &error)
        check(code, &error)

    def __dealloc__(self):
        if self.ptr != NULL:
            sc_journal_release(self.ptr)

    def checkpoint(self):
        """Syncs the segments whose records the journal holds."""
        cdef sc_error error
        cdef int code
        with nogil:
            code = sc_journal_checkpoint(self.ptr, &error)
        check(code, &error)

    def empty(self):
        """The same, and durably forgets the records: before a segment file is replaced by another of its name."""
        cdef sc_error error
        cdef int code
        with nogil:
            code = sc_journal_empty(self.ptr, &error)
        check(code, &error)

    def damage(self):
        """(position, message) when it was found damaged where it had been synced, else None."""
        cdef sc_error found
        if not sc_journal_damage(self.ptr, &found):
            return None
        return (found.position, found.message.decode("utf-8", "replace"))

    def close(self):
        """Empties it when no other process has it open."""
        cdef sc_error error
        cdef int code
        with nogil:
            code = sc_journal_close(self.ptr, &error)
        check(code, &error)


def wait_durable(list targets):
    """Returns when each of [(Topic, partition, offset), …] is durable up to its offset: one sync for all of them."""
    cdef sc_error error
    cdef Py_ssize_t count = len(targets), i
    cdef Topic topic
    cdef int code
    cdef sc_durable_target *natives = <sc_durable_target *>PyMem_RawMalloc((count + 1) * sizeof(sc_durable_target))
    if natives == NULL:
        raise MemoryError()
    try:
        for i in range(count):
            topic, natives[i].partition, natives[i].offset = targets[i]
            natives[i].topic = topic.ptr
        with nogil:
            code = sc_wait_durable(natives, count, &error)
        check(code, &error)
    finally:
        PyMem_RawFree(natives)

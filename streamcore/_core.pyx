# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
# cython: auto_pickle=False, autotestdict=False
"""The only way from Python into csrc/: thin classes that own one C object each. Policy lives in the Python modules."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport Py_EQ, Py_NE
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport INT64_MAX, INT64_MIN, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memset

cdef extern from "Python.h":
    void PyObject_GC_UnTrack(PyObject *object)

from streamcore._core cimport *

import datetime
import time
import warnings

from streamcore import errors

CONTROLS = SC_HAS_CONTROLS != 0
if CONTROLS:
    warnings.warn("this build of streamcore has deliberate bugs: it is for tests alone", RuntimeWarning, stacklevel=2)

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


class RewriteConflict(Exception):
    """Another thread or process rewrites segments of the partition."""


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
    if code == SC_FENCED:
        return errors.FencedError(message)
    if code == SC_SEQUENCE:
        return errors.SequenceError(message)
    if code == SC_MEMORY:
        return MemoryError(message)
    return errors.StreamcoreError(message)


cdef int check(int code, const sc_error *error) except -1:
    if code != SC_OK:
        raise error_of(error)
    return 0


include "binding/byte_columns.pxi"
include "binding/records.pxi"
include "binding/scans.pxi"
include "binding/topics.pxi"
include "binding/retention.pxi"
include "binding/rewriting.pxi"
include "binding/waiting.pxi"
include "binding/producers.pxi"
include "binding/journal.pxi"

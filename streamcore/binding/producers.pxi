# Producers: records one by one into a native buffer, batches out of it. Included by _core.pyx.

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    enum { HAS_GIL = 0 };
    #else
    enum { HAS_GIL = 1 };
    #endif
    """
    const bint HAS_GIL

cdef int64_t FLUSH_PIECE_MS = 200  # between looks for signals


@cython.final
cdef class SendTopic:
    """A topic as a producer sends to it. `topic` is the Python object, `convert` makes (object, size) of a value."""
    cdef sc_send_topic *ptr
    cdef Topic core
    cdef readonly object topic
    cdef readonly object convert
    cdef readonly str name
    cdef readonly bint durable

    def next_sequence(self, uint32_t partition):
        """The sequence of the next record to this partition that is not in the log yet."""
        return sc_send_topic_next_sequence(self.ptr, partition)

    def take_appended(self):
        """True, once, when the producer's thread appended something since this was last asked."""
        return sc_send_topic_take_appended(self.ptr)


cdef class SendBuffer:
    """The native part of a producer. A subclass says how topics are found, what failed, and sees to the batches."""
    cdef sc_send_buffer *ptr
    cdef dict topics
    cdef list kept  # every SendTopic: batches point to them
    cdef object last_name  # of the last send, and its SendTopic: most go to the same topic by the same str object
    cdef SendTopic last_topic
    cdef readonly int64_t max_block_ms
    cdef bint failed, held
    cdef bint stopped  # a look at one of them is enough

    def __cinit__(self, *arguments, **settings):
        self.topics = {}
        self.kept = []
        self.make(0, 1, 1 << 20, 0)

    def make(self, int64_t linger_ms, int64_t batch_bytes, int64_t buffer_bytes, int64_t max_block_ms):
        """Makes the buffer anew; called once, before all else."""
        cdef sc_error error
        cdef sc_send_options options
        options.linger_ms = linger_ms
        options.batch_bytes = batch_bytes
        options.buffer_bytes = buffer_bytes
        self.max_block_ms = max_block_ms
        if self.kept:
            raise RuntimeError("the buffer is in use")
        sc_send_buffer_free(self.ptr)
        self.ptr = NULL
        check(sc_send_buffer_new(&options, &self.ptr, &error), &error)

    def __dealloc__(self):
        cdef sc_send_batch *left
        if self.ptr == NULL:
            return
        if not sc_send_buffer_is_forked(self.ptr):
            left = sc_send_buffer_take_left(self.ptr)
            while left != NULL:
                drop_objects(left)
                drop_tags(left)
                left = sc_send_buffer_take_left(self.ptr)
        sc_send_buffer_free(self.ptr)

    # ---- for the subclass ----

    def find_topic(self, name):
        """Returns a SendTopic for a name that is new, made by add_topic. Raises what is wrong with the name."""
        raise NotImplementedError

    def plan_topic(self, SendTopic topic):
        """Takes over what changed: calls replan, or forget_topic when the topic is gone."""
        raise NotImplementedError

    def raise_failures(self):
        """Raises what happened to earlier records; called when note_failure was."""
        raise NotImplementedError

    def raise_held(self):
        """Raises why nothing can be sent now; called while `hold` says so."""
        raise NotImplementedError

    def is_worker(self):
        """Whether this is the thread that appends, which cannot wait for itself."""
        raise NotImplementedError

    def add_topic(self, str name, topic, convert, Topic core, tuple plan):
        """plan: (partitions, schema version, generation, max record bytes, native, log append time, durable,
        needs a key)."""
        cdef sc_error error
        cdef sc_send_plan native = plan_of(plan)
        cdef SendTopic made = SendTopic.__new__(SendTopic)
        made.core = core
        made.topic = topic
        made.convert = convert
        made.name = name
        made.durable = native.durable
        check(sc_send_buffer_add_topic(self.ptr, core.ptr, &native, <void *>made, &made.ptr, &error), &error)
        self.kept.append(made)
        self.topics[name] = made
        return made

    def replan(self, SendTopic topic, tuple plan):
        """Takes another plan for a topic."""
        cdef sc_error error
        cdef sc_send_plan native = plan_of(plan)
        topic.durable = native.durable
        check(sc_send_topic_plan(topic.ptr, &native, &error), &error)

    def forget_topic(self, str name):
        """Has the name looked up anew by the next send."""
        self.last_name = self.last_topic = None
        self.topics.pop(name, None)

    def known_topic(self, str name):
        """The SendTopic of a name, or None."""
        return self.topics.get(name)

    def known_topics(self):
        """Every SendTopic, also those whose name was forgotten."""
        return list(self.kept)

    def identify(self, int64_t producer_id, int16_t epoch):
        """Stamps a producer id, an epoch and sequences into the batches from now on."""
        sc_send_buffer_identify(self.ptr, producer_id, epoch)

    def producer_number(self):
        """The producer id, 0 before identify."""
        return sc_send_buffer_producer_id(self.ptr)

    def note_failure(self, bint failed):
        """Has the next send call raise_failures."""
        self.failed = failed
        self.stopped = self.failed or self.held

    def hold(self, bint held):
        """Has every send call raise_held."""
        self.held = held
        self.stopped = self.failed or self.held

    def memory(self):
        """Bytes that the buffer takes now."""
        return sc_send_buffer_memory(self.ptr)

    def unfinished(self):
        """Batches that are neither in the log nor given up."""
        return sc_send_buffer_unfinished(self.ptr)

    def begin_flush(self):
        """Makes what was sent due; the number is for await_flush."""
        return sc_send_buffer_flush(self.ptr)

    def await_flush(self, int64_t number, int64_t timeout_ms):
        """False when the time is over. timeout_ms < 0: for ever."""
        cdef int64_t left = timeout_ms, piece
        cdef bint done
        while True:
            piece = FLUSH_PIECE_MS if left < 0 or left > FLUSH_PIECE_MS else left
            with nogil:
                done = sc_send_buffer_wait_flushed(self.ptr, number, piece)
            if done:
                return True
            PyErr_CheckSignals()
            if left >= 0:
                left -= piece
                if left <= 0:
                    return False

    def stop(self):
        """Refuses records from now on, and makes what was sent due."""
        sc_send_buffer_close(self.ptr)

    def ask_room(self):
        """Has `work` return None when there may be room again."""
        sc_send_buffer_ask_room(self.ptr)

    def work(self):
        """For the one thread that appends: a SealedBatch to see to, None from time to time, False at the end."""
        cdef sc_send_batch *batch
        cdef bool closed
        cdef SealedBatch sealed
        with nogil:
            batch = sc_send_buffer_work(self.ptr, &closed)
        if batch == NULL:
            return False if closed else None
        sealed = SealedBatch.__new__(SealedBatch)
        sealed.buffer = self
        sealed.ptr = batch
        return sealed

    # ---- sending ----

    def send(self, topic, value, key=None, timestamp=None, headers=None, partition=None, on_delivery=None, *,
             bint block=True):
        """Sends a record: it lies in the producer's memory when this returns, and is appended soon, by another thread.

        value: bytes-like, or None (a tombstone); of a typed topic a dict. key: bytes-like or None. timestamp: aware
        datetime or int milliseconds; default now. headers: a dict or (str, bytes or None) pairs. partition: default by
        key (murmur2, as Apache Kafka does); records without a key stay in one partition until its batch is sealed
        (KIP-480).

        on_delivery(error, delivery): called once from the producer's thread, in the order of each partition, when the
        record is in the log, and on the drive if the durability says so, or when it was given up. delivery:
        Delivery(topic, partition, offset); on an error its offset is None.

        block: when buffer_bytes are in use, wait for room, max_block_ms at most; False raises BufferFullError at once.

        Raises TypeError, ValueError, TopicNotFoundError and RecordTooLargeError at once; BufferFullError; ProducerError
        when records sent earlier without on_delivery were lost, and then this one was not taken.
        """
        cdef sc_send_record record
        cdef sc_error error
        cdef SendTopic entry = None
        if self.stopped:
            self.raise_why_stopped()
        if HAS_GIL and topic is self.last_name:
            entry = self.last_topic
        elif type(topic) is str:
            entry = <SendTopic>self.topics.get(topic)
            if HAS_GIL and entry is not None:
                self.last_name = topic
                self.last_topic = entry
        if entry is None:
            entry = <SendTopic?>self.find_topic(topic)
        if (type(value) is not bytes or (key is not None and type(key) is not bytes) or headers is not None
                or timestamp is not None or partition is not None or on_delivery is not None
                or entry.convert is not None):
            self.send_any(entry, value, key, timestamp, headers, partition, on_delivery, block)
            return
        memset(&record, 0, sizeof(record))
        record.partition = -1
        record.value.data = <const uint8_t *>PyBytes_AS_STRING(value)
        record.value.size = PyBytes_GET_SIZE(value)
        if key is not None:
            record.key.data = <const uint8_t *>PyBytes_AS_STRING(key)
            record.key.size = PyBytes_GET_SIZE(key)
        cdef int code = sc_send_buffer_add(self.ptr, entry.ptr, &record, &error)
        if code != SC_OK:
            self.add_slowly(entry, &record, code, &error, block)

    cdef int raise_why_stopped(self) except -1:
        if self.failed:
            self.raise_failures()
        if self.held:
            self.raise_held()
        return 0

    cdef int send_any(self, SendTopic entry, object value, object key, object timestamp, object headers,
                      object partition, object on_delivery, bint block) except -1:
        """Everything but bytes and nothing else."""
        cdef sc_send_record record
        cdef sc_error error
        cdef sc_send_header *pairs = NULL
        cdef object made = None
        cdef bytes own_value = None, own_key = None
        cdef list kept
        cdef int code
        memset(&record, 0, sizeof(record))
        record.partition = -1
        if on_delivery is not None and not callable(on_delivery):
            raise TypeError(f"on_delivery is {type(on_delivery).__name__}; a callable or None is needed")
        if entry.convert is not None:
            made, record.object_bytes = entry.convert(value)
            record.object = <void *>made
        elif value is not None:
            own_value = value if type(value) is bytes else copied_bytes(value, "value")
            record.value.data = <const uint8_t *>PyBytes_AS_STRING(own_value)
            record.value.size = PyBytes_GET_SIZE(own_value)
        if key is not None:
            own_key = key if type(key) is bytes else copied_bytes(key, "key")
            record.key.data = <const uint8_t *>PyBytes_AS_STRING(own_key)
            record.key.size = PyBytes_GET_SIZE(own_key)
        if timestamp is not None:
            record.timestamp = milliseconds_of(timestamp)
            record.has_timestamp = True
        if partition is not None:
            record.partition = partition_number(partition)
        if headers is not None:
            kept = header_pairs(headers)
            record.header_count = len(kept)
        try:
            if record.header_count > 0:
                pairs = <sc_send_header *>PyMem_RawCalloc(record.header_count, sizeof(sc_send_header))
                if pairs == NULL:
                    raise MemoryError()
                fill_headers(kept, pairs)
                record.headers = pairs
            if on_delivery is not None:
                record.tag = <void *>on_delivery
                Py_INCREF(on_delivery)
            if made is not None:
                Py_INCREF(made)
            try:
                code = sc_send_buffer_add(self.ptr, entry.ptr, &record, &error)
                if code != SC_OK:
                    self.add_slowly(entry, &record, code, &error, block)
            except BaseException:
                if on_delivery is not None:
                    Py_DECREF(on_delivery)
                if made is not None:
                    Py_DECREF(made)
                raise
        finally:
            PyMem_RawFree(pairs)
        return 0

    cdef int add_slowly(self, SendTopic entry, sc_send_record *record, int code, sc_error *error, bint block) except -1:
        """Goes on after a code that is not SC_OK: waits for room, looks at the topic again, or raises."""
        cdef int64_t left = self.max_block_ms, piece, size = 0
        cdef int32_t i
        cdef bint looked = False
        for i in range(record.header_count):
            size += record.headers[i].key.size + record.headers[i].value.size + 16
        size += record.key.size + record.value.size + record.object_bytes + 64
        while code != SC_OK:
            if code == SC_STALE or ((code == SC_RANGE or code == SC_TOO_LARGE) and not looked):
                looked = True
                entry = self.looked_at_again(entry)
            elif code == SC_RANGE:
                raise ValueError(
                    f"partition is {record.partition}; topic {entry.name!r} has partitions 0 to "
                    f"{entry.topic.partition_count - 1}")
            elif code == SC_INVALID:
                from streamcore.append import keyless
                raise ValueError(keyless(entry.name))
            elif code != SC_END:
                raise error_of(error)
            elif not block or left <= 0 or self.is_worker():
                raise errors.BufferFullError(
                    f"no room for a record of {size} bytes within buffer_bytes"
                    + (f", {self.max_block_ms} ms long" if block and not self.is_worker() else ""))
            else:
                piece = FLUSH_PIECE_MS if left > FLUSH_PIECE_MS else left
                with nogil:
                    code = sc_send_buffer_wait_room(self.ptr, size, piece)
                PyErr_CheckSignals()
                if code == SC_END:
                    left -= piece
                if self.failed:
                    self.raise_failures()
            code = sc_send_buffer_add(self.ptr, entry.ptr, record, error)
        return 0

    cdef SendTopic looked_at_again(self, SendTopic entry):
        cdef object plain = entry.convert is None
        self.plan_topic(entry)
        if entry.name not in self.topics:  # it is gone, perhaps another one has its name
            entry = <SendTopic?>self.find_topic(entry.name)
            if (entry.convert is None) is not plain:
                raise errors.TopicNotFoundError(f"topic {entry.name!r} was replaced by one of another kind: send again")
        return entry


cdef class SealedBatch:
    """A batch in the hands of the producer's thread, until it calls `finish` or `retry`."""
    cdef SendBuffer buffer
    cdef sc_send_batch *ptr

    @property
    def topic(self):
        """The SendTopic."""
        return <SendTopic>sc_send_topic_context(self.ptr.topic)

    @property
    def partition(self):
        """The partition's number."""
        return self.ptr.partition

    @property
    def count(self):
        """How many records."""
        return self.ptr.count

    @property
    def first_offset(self):
        """The offset of the first record; -1: not in the log."""
        return self.ptr.first_offset

    @property
    def attempts(self):
        """How often it was tried."""
        return self.ptr.attempts

    @property
    def opened_ns(self):
        """When it was begun, on the monotonic clock."""
        return self.ptr.opened_ns

    @property
    def tag_count(self):
        """How many records want to be told."""
        return self.ptr.tag_count

    @property
    def producer(self):
        """(id, epoch, sequence, False), or None."""
        cdef sc_producer producer = sc_send_batch_producer(self.buffer.ptr, self.ptr)
        return (producer.id, producer.epoch, producer.sequence, False) if producer.id != 0 else None

    def is_unheard(self):
        """True when it was not tried, or failed for what the topic sees to: changed settings, foreign files."""
        cdef int code = self.ptr.error.code
        return self.ptr.first_offset < 0 and (
            code == SC_OK or code == SC_STALE or code == SC_FORMAT or code == SC_DELETED)

    def error(self):
        """The exception of the last attempt, or None."""
        return error_of(&self.ptr.error) if self.ptr.error.code != SC_OK else None

    def is_poisoned(self):
        """Whether the partition refuses appends after a sync that failed."""
        return self.ptr.error.code == SC_POISONED

    def append_to(self, Topic core, uint32_t version, bint log_append_time, int64_t now, producer):
        """Appends it as it is: (partition, first offset, end offset)."""
        cdef sc_send_arrays arrays
        cdef sc_batch_input batch
        sc_send_batch_input(self.ptr, log_append_time, &arrays, &batch)
        batch.timestamp = now
        return core.append(self.ptr.partition, &batch, 1, version, -1, log_append_time, False, False, producer)

    def columns(self):
        """Copies of the buffers: {name: (count, nulls, validity, ends, data) or None} for key, value, headers,
        header_key and header_value, and `timestamps` as bytes."""
        return {
            "key": column_buffers(&self.ptr.key),
            "value": column_buffers(&self.ptr.value),
            "headers": column_buffers(&self.ptr.headers),
            "header_key": column_buffers(&self.ptr.header_key),
            "header_value": column_buffers(&self.ptr.header_value),
            "timestamps": PyBytes_FromStringAndSize(<const char *>self.ptr.timestamps.data, self.ptr.count * 8),
        }

    def objects(self):
        """The converted values of a typed topic, or None."""
        cdef void *const *objects = sc_send_batch_objects(self.ptr)
        cdef int64_t i
        if objects == NULL:
            return None
        return [<object>objects[i] for i in range(self.ptr.count)]

    def appended(self, int64_t first_offset, int64_t end_offset):
        """Notes that it is in the log."""
        sc_send_batch_appended(self.ptr, first_offset, end_offset)

    def take_tags(self):
        """[(row, on_delivery), …]; at most once."""
        cdef const sc_send_tag *tags = sc_send_batch_tags(self.ptr)
        cdef list taken = []
        cdef int64_t i
        for i in range(self.ptr.tag_count):
            taken.append((tags[i].row, <object>tags[i].tag))
        drop_tags(self.ptr)
        return taken

    def finish(self):
        """It is in the log, or given up."""
        cdef sc_send_batch *batch = self.ptr
        self.ptr = NULL
        drop_tags(batch)
        drop_objects(batch)
        sc_send_buffer_finish(self.buffer.ptr, batch)

    def retry(self, int64_t delay_ms):
        """It will be tried again, and what is behind it in its partition waits."""
        cdef sc_send_batch *batch = self.ptr
        self.ptr = NULL
        sc_send_buffer_retry(self.buffer.ptr, batch, delay_ms)


cdef void drop_tags(sc_send_batch *batch) noexcept:
    cdef const sc_send_tag *tags = sc_send_batch_tags(batch)
    cdef int64_t i, count = batch.tag_count
    batch.tag_count = 0
    for i in range(count):
        Py_DECREF(<object>tags[i].tag)


cdef void drop_objects(sc_send_batch *batch) noexcept:
    cdef void *const *objects = sc_send_batch_objects(batch)
    cdef int64_t i
    if objects == NULL:
        return
    batch.has_objects = False
    for i in range(batch.count):
        Py_DECREF(<object>objects[i])


cdef object column_buffers(const sc_send_column *column):
    cdef bytes validity = None
    if not column.present:
        return None
    if column.nulls > 0:
        validity = PyBytes_FromStringAndSize(<const char *>column.validity.data, (column.count + 7) // 8)
    return (
        column.count,
        column.nulls,
        validity,
        PyBytes_FromStringAndSize(<const char *>column.ends.data, (column.count + 1) * 4),
        PyBytes_FromStringAndSize(<const char *>column.data.data, column.size) if column.size > 0 else b"",
    )


cdef sc_send_plan plan_of(tuple plan):
    cdef sc_send_plan native
    native.partitions = plan[0]
    native.schema_version = plan[1]
    native.generation = plan[2]
    native.max_record_bytes = plan[3]
    native.native = plan[4]
    native.log_append_time = plan[5]
    native.durable = plan[6]
    native.needs_key = plan[7]
    return native


cdef bytes copied_bytes(object item, str name):
    try:
        return bytes(memoryview(item))
    except TypeError:
        hint = ": encode it, for example .encode()" if isinstance(item, str) else ""
        raise TypeError(
            f"{name} is {type(item).__name__}; bytes, another bytes-like object or None is needed{hint}") from None


cdef int64_t milliseconds_of(object moment) except? -1:
    if type(moment) is int:
        try:
            return moment
        except OverflowError:
            raise ValueError(f"timestamp is {moment}, which does not fit into 64 bits of milliseconds") from None
    from streamcore.columns import milliseconds
    return milliseconds(moment, "timestamp")


cdef int64_t partition_number(object partition) except? -1:
    cdef object number
    if partition is True or partition is False or not hasattr(partition, "__index__"):
        raise TypeError(f"partition is {partition!r}; an int is needed")
    number = partition.__index__()
    if not 0 <= number < SC_PARTITIONS_MAX:
        raise ValueError(f"partition is {partition}; partitions are numbered from 0 to {SC_PARTITIONS_MAX - 1} at most")
    return number


cdef list header_pairs(object headers):
    """[(bytes, bytes or None), …]."""
    cdef list pairs = []
    for pair in headers.items() if hasattr(headers, "items") else headers:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str) or not (
                pair[1] is None or isinstance(pair[1], (bytes, bytearray, memoryview))):
            raise TypeError(f"headers has {pair!r}; (str, bytes or None) pairs or a dict are needed")
        pairs.append((pair[0].encode(), None if pair[1] is None else bytes(pair[1])))
    return pairs


cdef int fill_headers(list pairs, sc_send_header *headers) except -1:
    cdef Py_ssize_t i
    cdef bytes key, value
    for i in range(len(pairs)):
        key, value = pairs[i]
        headers[i].key.data = <const uint8_t *>PyBytes_AS_STRING(key)
        headers[i].key.size = PyBytes_GET_SIZE(key)
        if value is not None:
            headers[i].value.data = <const uint8_t *>PyBytes_AS_STRING(value)
            headers[i].value.size = PyBytes_GET_SIZE(value)
    return 0

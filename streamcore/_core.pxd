# The declarations of csrc/streamcore.h that the binding uses.
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t


cdef extern from "stdbool.h":
    ctypedef bint bool


cdef extern from "arrow_abi.h" nogil:
    struct ArrowSchema:
        void (*release)(ArrowSchema *)

    struct ArrowArray:
        int64_t length
        int64_t null_count
        int64_t offset
        int64_t n_buffers
        int64_t n_children
        const void **buffers
        ArrowArray **children
        void (*release)(ArrowArray *)

    struct ArrowArrayStream:
        void (*release)(ArrowArrayStream *)


cdef extern from "control.h" nogil:
    enum:
        SC_HAS_CONTROLS


cdef extern from "os.h" nogil:
    void sc_os_boot_id(uint8_t *id)


cdef extern from "streamcore.h" nogil:
    enum:
        SC_OK
        SC_END
        SC_OS
        SC_CORRUPT
        SC_FORMAT
        SC_RANGE
        SC_TOO_LARGE
        SC_INVALID
        SC_READ_ONLY
        SC_POISONED
        SC_CLOSED
        SC_FORKED
        SC_DELETED
        SC_CONFLICT
        SC_STALE
        SC_MEMORY
        SC_FENCED
        SC_SEQUENCE
        SC_PATH_MAX
        SC_DEPTH_MAX
        SC_PARTITIONS_MAX
        SC_COLUMN_PARTITION

    struct sc_error:
        int code
        int number
        int64_t offset
        int64_t position
        char path[1024]
        char message[256]

    struct sc_layout
    struct sc_topic
    struct sc_scan
    struct sc_mapping

    int sc_layout_new(const ArrowSchema *, const uint8_t *, int64_t, int64_t, uint32_t, sc_layout **, sc_error *)
    void sc_layout_free(sc_layout *)
    bint sc_layout_is_plain(const sc_layout *)

    struct sc_topic_settings:
        int64_t segment_bytes
        int64_t segment_ms
        int64_t max_record_bytes
        uint32_t generation
        uint32_t partitions
        int64_t producer_expiry_ms

    int sc_topic_open(const char *, bint, const sc_topic_settings *, sc_topic **, sc_error *)
    int sc_topic_add_layout(sc_topic *, sc_layout *, sc_error *)
    int sc_topic_alter(sc_topic *, const sc_topic_settings *, bint, sc_error *)
    uint32_t sc_topic_generation(sc_topic *)
    bint sc_topic_is_deleted(sc_topic *)
    int sc_topic_mark_deleted(sc_topic *, sc_error *)
    int sc_topic_close(sc_topic *, sc_error *)
    void sc_topic_free(sc_topic *)
    int sc_topic_flush(sc_topic *, sc_error *)
    bool sc_topic_found_unflushed(sc_topic *)
    int sc_topic_note_durable(sc_topic *, sc_error *)

    struct sc_bytes:
        const uint8_t *data
        int64_t size

    struct sc_batch_input:
        int64_t count
        const sc_bytes *keys
        const sc_bytes *values
        const ArrowArray *key
        const ArrowArray *value
        const ArrowArray *headers
        int64_t first_row
        const int64_t *timestamps
        int64_t timestamp
        const int64_t *offsets
        const uint8_t *message
        int64_t message_size
        int64_t min_timestamp
        int64_t max_timestamp
        bint has_headers

    struct sc_producer:
        int64_t id
        int16_t epoch
        int32_t sequence

    struct sc_append:
        const sc_batch_input *batches
        int64_t batch_count
        uint32_t schema_version
        uint32_t generation
        int64_t expected_offset
        sc_producer producer
        bint transactional
        bint log_append_time
        bint durable

    int sc_partition_append(sc_topic *, uint32_t, const sc_append *, int64_t *, int64_t *, sc_error *)

    struct sc_marker:
        int64_t producer_id
        int16_t epoch
        bint commit
        bint fence
        bint durable

    int sc_partition_append_marker(sc_topic *, uint32_t, const sc_marker *, int64_t *, sc_error *)

    struct sc_open_transaction:
        int64_t producer_id
        int64_t first_offset
        int16_t epoch

    int sc_partition_open_transactions(sc_topic *, uint32_t, sc_open_transaction *, int64_t, int64_t *, sc_error *)
    int sc_partition_flush(sc_topic *, uint32_t, sc_error *)

    struct sc_journal

    int sc_journal_open(const char *, int64_t, sc_journal **, sc_error *)
    int sc_journal_checkpoint(sc_journal *, sc_error *)
    int sc_journal_empty(sc_journal *, sc_error *)
    bint sc_journal_damage(const sc_journal *, sc_error *)
    int sc_journal_close(sc_journal *, sc_error *)
    void sc_journal_release(sc_journal *)
    int sc_topic_use_journal(sc_topic *, sc_journal *, sc_error *)
    int sc_topic_read_journal(sc_topic *, const char *, sc_error *)

    struct sc_durable_target:
        sc_topic *topic
        uint32_t partition
        int64_t offset

    int sc_wait_durable(const sc_durable_target *, int64_t, sc_error *)

    struct sc_partition_info:
        int64_t start_offset
        int64_t end_offset
        int64_t durable_offset
        int64_t size_bytes
        int64_t segment_count
        int64_t stable_offset

    ctypedef struct sc_removal:
        int64_t start_offset
        int64_t segments
        int64_t bytes

    int sc_partition_delete_before(sc_topic *topic, uint32_t partition, int64_t offset, sc_removal *removal,
                                   sc_error *error)
    int sc_partition_begin(sc_topic *topic, uint32_t partition, int64_t offset, uint32_t schema_version,
                           const uint8_t *producers, int64_t producers_size, sc_error *error)
    int sc_partition_producers(sc_topic *topic, uint32_t partition, int64_t offset, int64_t known_offset,
                               const uint8_t *known, int64_t known_size, uint8_t **data, int64_t *size, sc_error *error)

    ctypedef struct sc_producers:
        int64_t offset
        int64_t count
        int64_t greatest_id

    int sc_producers_look(const uint8_t *data, int64_t size, sc_producers *producers, sc_error *error)
    int sc_partition_roll(sc_topic *topic, uint32_t partition, int64_t *base_offset, sc_error *error)
    int sc_partition_rewrites(sc_topic *, uint32_t, uint32_t *, sc_error *)
    int sc_partition_describe(sc_topic *, uint32_t, bint, sc_partition_info *, sc_error *)

    enum:
        SC_HISTOGRAM_BUCKETS

    struct sc_counters:
        int64_t appends
        int64_t records
        int64_t bytes
        int64_t syncs
        int64_t sync_ns
        int64_t scanned_batches
        int64_t scanned_rows
        int64_t scanned_bytes
        int64_t verified_bytes
        int64_t append_records[32]
        int64_t sync_us[32]

    void sc_topic_count(sc_topic *, sc_counters *)

    struct sc_segment_info:
        int64_t base_offset
        int64_t end_offset
        int64_t size_bytes
        int64_t count
        int64_t min_timestamp
        int64_t max_timestamp
        bint sealed
        char path[1024]

    int sc_partition_segment(sc_topic *, uint32_t, int64_t, sc_segment_info *, sc_error *)
    int sc_topic_wait(sc_topic *, const uint32_t *, const int64_t *, int64_t, bint, int64_t, sc_error *)

    struct sc_signal

    struct sc_wait:
        sc_topic *topic
        const uint32_t *partitions
        const int64_t *offsets
        int64_t count
        bool stable

    struct sc_watch:
        const sc_signal *signal
        uint32_t seen

    int sc_signal_new(sc_signal **signal, sc_error *error)
    int sc_signal_open(const char *path, bool writable, sc_signal **signal, sc_error *error)
    uint32_t sc_signal_count(const sc_signal *signal)
    void sc_signal_raise(sc_signal *signal)
    void sc_signal_free(sc_signal *signal)
    int sc_wait_many(const sc_wait *waits, int64_t wait_count, const sc_watch *watches, int64_t watch_count,
                     int64_t timeout_ms, sc_error *error)

    ctypedef void (*sc_problem_callback)(void *, const sc_error *) noexcept
    ctypedef int (*sc_progress_callback)(void *, int64_t) noexcept
    int sc_partition_verify(sc_topic *, uint32_t, sc_problem_callback, sc_progress_callback, void *, sc_error *)

    struct sc_range:
        uint32_t partition
        int64_t start_offset
        int64_t end_offset

    struct sc_column:
        int32_t column
        int32_t depth
        int32_t path[64]

    struct sc_scan_counters:
        int64_t segments
        int64_t batches
        int64_t rows
        int64_t bytes_exported
        int64_t bytes_verified

    struct sc_scan_options:
        const sc_range *ranges
        int64_t range_count
        int64_t min_timestamp
        int64_t max_timestamp
        int64_t limit
        bint verify
        bint committed

    struct sc_batch:
        const uint8_t *message
        int64_t message_size
        int64_t position
        int64_t base_offset
        int64_t last_offset
        int64_t record_count
        int64_t first_row
        int64_t row_count
        int64_t min_timestamp
        int64_t max_timestamp
        uint32_t partition
        uint32_t schema_version
        uint16_t flags
        int codec
        bint has_headers
        const sc_layout *layout
        sc_mapping *mapping

    int sc_scan_open(sc_topic *, const sc_scan_options *, sc_scan **, sc_error *)
    int sc_scan_next(sc_scan *, sc_batch *, sc_error *)
    int sc_scan_count(sc_scan *, int64_t *, sc_error *)
    struct sc_tally
    sc_tally *sc_scan_tally(sc_scan *)
    void sc_tally_read(const sc_tally *, sc_scan_counters *)
    void sc_tally_release(sc_tally *)
    void sc_scan_free(sc_scan *)
    int sc_batch_narrow_to_timestamps(sc_batch *, int64_t, int64_t, bool *, sc_error *)
    void sc_mapping_retain(sc_mapping *)
    void sc_mapping_release(sc_mapping *)
    int sc_batch_export(const sc_batch *, const sc_column *, int64_t, int64_t *, ArrowArray *, sc_error *)
    int sc_scan_export(
        sc_scan *, const sc_column *, int64_t, const ArrowSchema *, uint32_t, ArrowArrayStream *, sc_error *)

    struct sc_rows:
        int64_t count
        const int64_t *offsets
        const int64_t *timestamps
        const uint8_t *key_validity
        const uint8_t *value_validity
        const int32_t *key_ends
        const int32_t *value_ends
        const uint8_t *keys
        const uint8_t *values

    int sc_batch_keys(const sc_batch *batch, sc_rows *rows, sc_error *error)
    int sc_batch_rows(const sc_batch *, sc_rows *, sc_error *)
    int sc_rows_copy(const sc_batch *, const sc_rows *, int64_t, int64_t *, sc_rows *, void **, sc_error *)

    ctypedef struct sc_rewrite:
        pass
    ctypedef struct sc_key_map:
        pass
    ctypedef struct sc_rewrite_report:
        int64_t base_offset
        int64_t end_offset
        int64_t bytes_before
        int64_t bytes_after
        int64_t batches_before
        int64_t batches_after
        int64_t rows_before
        int64_t rows_after
        bool replaced
    ctypedef struct sc_rewrite_contents:
        bool plain
        int64_t batches
        int64_t batch_bytes
        int64_t rows
        int64_t aborted_rows
        int64_t compressed
        int64_t with_headers
    enum:
        SC_BATCH_MUST_COPY

    int sc_rewrite_open(sc_topic *topic, uint32_t partition, int64_t base_offset, sc_rewrite **rewrite,
                        sc_error *error)
    void sc_rewrite_free(sc_rewrite *rewrite)
    int sc_rewrite_look(sc_rewrite *rewrite, sc_rewrite_contents *contents, sc_error *error)
    void sc_rewrite_rewind(sc_rewrite *rewrite)
    int sc_rewrite_next(sc_rewrite *rewrite, sc_batch *batch, sc_error *error)
    int sc_rewrite_add(sc_rewrite *rewrite, const sc_batch_input *input, int64_t last_offset, uint16_t flags,
                       sc_error *error)
    int sc_rewrite_copy(sc_rewrite *rewrite, const sc_batch *batch, sc_error *error)
    int sc_rewrite_plain(sc_rewrite *rewrite, int64_t batch_bytes, sc_progress_callback progress, void *context,
                         sc_error *error)
    int sc_rewrite_commit(sc_rewrite *rewrite, sc_rewrite_report *report, sc_error *error)
    int sc_rewrite_collect(sc_rewrite *rewrite, sc_key_map *map, int64_t from_offset, int64_t end_offset,
                           int64_t *full_at, sc_error *error)
    int sc_rewrite_mark(sc_rewrite *rewrite, sc_key_map *map, int64_t tombstones_before, int64_t from_offset,
                        int64_t end_offset, int64_t *dropped, int64_t *oldest_tombstone, sc_error *error)
    bool sc_rewrite_keeps(const sc_rewrite *rewrite, int64_t row)
    int sc_key_map_new(int64_t memory_bytes, const uint8_t *secret, sc_key_map **map, sc_error *error)
    void sc_key_map_free(sc_key_map *map)
    void sc_key_map_clear(sc_key_map *map)
    bool sc_key_map_put(sc_key_map *map, const uint8_t *key, int64_t size, int64_t offset)
    int64_t sc_key_map_get(const sc_key_map *map, const uint8_t *key, int64_t size)
    int64_t sc_key_map_count(const sc_key_map *map)

    uint32_t sc_crc32c(uint32_t, const void *, size_t)
    uint32_t sc_murmur2(const void *, size_t)
    uint32_t sc_partition_of_key(const void *, size_t, uint32_t)


cdef extern from "send_buffer.h" nogil:
    struct sc_send_buffer
    struct sc_send_topic

    struct sc_send_options:
        int64_t linger_ms
        int64_t batch_bytes
        int64_t buffer_bytes

    struct sc_send_plan:
        uint32_t partitions
        uint32_t schema_version
        uint32_t generation
        int64_t max_record_bytes
        bint native
        bint log_append_time
        bint durable
        bint needs_key

    struct sc_send_header:
        sc_bytes key
        sc_bytes value

    struct sc_send_record:
        sc_bytes key
        sc_bytes value
        const sc_send_header *headers
        int32_t header_count
        bint has_timestamp
        int64_t timestamp
        int64_t partition
        void *object
        int64_t object_bytes
        void *tag

    struct sc_send_memory:
        uint8_t *data
        int64_t capacity

    struct sc_send_column:
        bint present
        int64_t count
        int64_t nulls
        int64_t size
        sc_send_memory validity
        sc_send_memory ends
        sc_send_memory data

    struct sc_send_tag:
        int64_t row
        void *tag

    struct sc_send_batch:
        sc_send_topic *topic
        uint32_t partition
        int64_t count
        int64_t opened_ns
        int64_t attempts
        int64_t first_offset
        sc_error error
        sc_send_column key
        sc_send_column value
        sc_send_column header_key
        sc_send_column header_value
        sc_send_column headers
        sc_send_memory timestamps
        int64_t tag_count
        bint has_objects

    struct sc_send_arrays:
        pass

    int sc_send_buffer_new(const sc_send_options *, sc_send_buffer **, sc_error *)
    void sc_send_buffer_free(sc_send_buffer *)
    bool sc_send_buffer_is_forked(const sc_send_buffer *)
    void sc_send_buffer_identify(sc_send_buffer *, int64_t, int16_t)
    int64_t sc_send_buffer_producer_id(sc_send_buffer *)
    int sc_send_buffer_add_topic(
        sc_send_buffer *, sc_topic *, const sc_send_plan *, void *, sc_send_topic **, sc_error *)
    int sc_send_topic_plan(sc_send_topic *, const sc_send_plan *, sc_error *)
    void *sc_send_topic_context(const sc_send_topic *)
    bool sc_send_topic_take_appended(sc_send_topic *)
    int32_t sc_send_topic_next_sequence(sc_send_topic *, uint32_t)
    int sc_send_buffer_add(sc_send_buffer *, sc_send_topic *, const sc_send_record *, sc_error *)
    int sc_send_buffer_wait_room(sc_send_buffer *, int64_t, int64_t)
    void sc_send_buffer_ask_room(sc_send_buffer *)
    int64_t sc_send_buffer_flush(sc_send_buffer *)
    bool sc_send_buffer_wait_flushed(sc_send_buffer *, int64_t, int64_t)
    void sc_send_buffer_close(sc_send_buffer *)
    int64_t sc_send_buffer_memory(sc_send_buffer *)
    int64_t sc_send_buffer_unfinished(sc_send_buffer *)
    sc_send_batch *sc_send_buffer_work(sc_send_buffer *, bool *)
    void sc_send_batch_appended(sc_send_batch *, int64_t, int64_t)
    void sc_send_buffer_finish(sc_send_buffer *, sc_send_batch *)
    void sc_send_buffer_retry(sc_send_buffer *, sc_send_batch *, int64_t)
    sc_send_batch *sc_send_buffer_take_left(sc_send_buffer *)
    void sc_send_batch_input(const sc_send_batch *, bint, sc_send_arrays *, sc_batch_input *)
    const sc_send_tag *sc_send_batch_tags(const sc_send_batch *)
    void *const *sc_send_batch_objects(const sc_send_batch *)
    sc_producer sc_send_batch_producer(const sc_send_buffer *, const sc_send_batch *)

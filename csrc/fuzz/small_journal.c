#include "small_journal.h"

#include "check.h"

void small_journal_make(const char *path)
{
    char folder[FILE_MAX], file[FILE_MAX];
    found_batch batches[8];
    small_store store = store_open(path, JOURNAL_FUZZ_AREA);
    store_append(&store, JOURNAL_LOGS, JOURNAL_IN_SEGMENTS);
    store_append(&store, JOURNAL_LOGS, 3);
    store_append(&store, 0x11, 2);
    store_abandon(&store);
    for (int log = 0; log < STORE_LOGS; log++) {
        if ((JOURNAL_LOGS >> log & 1) == 0)
            continue;
        topic_folder(folder, path, log / STORE_PARTITIONS);
        segment_file(file, folder, (uint32_t)log % STORE_PARTITIONS, 0);
        CHECK(found_batches(file, batches, 8) >= 2);
        file_truncate(file, batches[1].position);
        if (log % 2 == 0) /* of the others the length was lost as well */
            file_truncate(file, 16 << 10);
    }
}

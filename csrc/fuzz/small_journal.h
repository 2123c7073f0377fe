/* A store whose segments lack what its journal has, as a power loss leaves them. */
#ifndef STREAMCORE_SMALL_JOURNAL_H
#define STREAMCORE_SMALL_JOURNAL_H

#include "small_store.h"

enum {
    JOURNAL_FUZZ_AREA = 32 << 10,
    JOURNAL_FUZZ_HEADER = 64, /* of each copy, in the inputs */
    JOURNAL_LOGS = 0x33,      /* that are used */
    JOURNAL_IN_SEGMENTS = 4,  /* records of each of them there */
    JOURNAL_IN_ALL = 9,       /* with those in the journal, at most */
};

/* In the folder `path`, where only `topics` and its folders are. */
void small_journal_make(const char *path);

#endif

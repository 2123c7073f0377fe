/*
 * All that the C tests need of a test library: checks that name the place, and RUN.
 *
 * A failed check ends the process by abort(), so that a check in a thread or in a forked child fails the test as well.
 */
#ifndef STREAMCORE_TESTS_CHECK_H
#define STREAMCORE_TESTS_CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "streamcore.h"

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            check_fail(__FILE__, __LINE__, #condition, "");                                                            \
    } while (0)

#define CHECK_EQ(found, wanted)                                                                                        \
    do {                                                                                                               \
        int64_t check_found = (int64_t)(found), check_wanted = (int64_t)(wanted);                                      \
        if (check_found != check_wanted) {                                                                             \
            char check_text[96];                                                                                       \
            snprintf(check_text, sizeof check_text, ": %" PRId64 ", not %" PRId64, check_found, check_wanted);         \
            check_fail(__FILE__, __LINE__, #found, check_text);                                                        \
        }                                                                                                              \
    } while (0)

/* A call that must return SC_OK; `error` is the sc_error that it was given. */
#define CHECK_OK(call, error)                                                                                          \
    do {                                                                                                               \
        if ((call) != SC_OK)                                                                                           \
            check_error(__FILE__, __LINE__, #call, &(error));                                                          \
    } while (0)

#define RUN(test)                                                                                                      \
    do {                                                                                                               \
        if (check_chosen(argc, argv, #test)) {                                                                         \
            printf("%s\n", #test);                                                                                     \
            fflush(stdout);                                                                                            \
            test();                                                                                                    \
        }                                                                                                              \
    } while (0)

/* What a test of many cases says when one fails: which. */
static void (*check_case)(void);
static inline void check_on_failure(void (*tell)(void))
{
    check_case = tell;
}

static inline void check_fail(const char *file, int line, const char *what, const char *more)
{
    fprintf(stderr, "%s:%d: failed: %s%s\n", file, line, what, more);
    if (check_case != NULL)
        check_case();
    fflush(stderr);
    abort();
}

static inline void check_error(const char *file, int line, const char *what, const sc_error *error)
{
    char text[SC_PATH_MAX + 512];
    snprintf(text, sizeof text, ": code %d, errno %d, offset %" PRId64 ", position %" PRId64 ": %s (%s)", error->code,
             error->number, error->offset, error->position, error->message, error->path);
    check_fail(file, line, what, text);
}

/* With arguments, only the tests that they name. */
static inline bool check_chosen(int argc, char **argv, const char *test)
{
    bool chosen = argc < 2;
    for (int i = 1; i < argc; i++)
        chosen = chosen || strcmp(argv[i], test) == 0;
    return chosen;
}

#endif

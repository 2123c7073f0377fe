/* How an error is filled in. Internal. */
#ifndef STREAMCORE_ERROR_H
#define STREAMCORE_ERROR_H

#include "streamcore.h"

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
int sc_fail(sc_error *error, int code, const char *format, ...); /* returns code */
int sc_fail_os(sc_error *error, const char *what, const char *path); /* takes errno; returns SC_OS */
int sc_fail_at(sc_error *error, int code, const char *path, int64_t offset, int64_t position, const char *what);
int sc_fail_memory(sc_error *error);

#endif

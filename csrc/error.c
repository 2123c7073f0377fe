#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void reset(sc_error *error, int code)
{
    error->code = code;
    error->number = 0;
    error->offset = -1;
    error->position = -1;
    error->path[0] = 0;
    error->message[0] = 0;
}

int sc_fail(sc_error *error, int code, const char *format, ...)
{
    reset(error, code);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    return code;
}

int sc_fail_os(sc_error *error, const char *what, const char *path)
{
    int number = errno;
    reset(error, SC_OS);
    error->number = number;
    snprintf(error->message, sizeof error->message, "%s", what);
    snprintf(error->path, sizeof error->path, "%s", path);
    return SC_OS;
}

int sc_fail_at(sc_error *error, int code, const char *path, int64_t offset, int64_t position, const char *what)
{
    reset(error, code);
    error->offset = offset;
    error->position = position;
    snprintf(error->path, sizeof error->path, "%s", path);
    snprintf(error->message, sizeof error->message, "%s", what);
    return code;
}

int sc_fail_memory(sc_error *error)
{
    return sc_fail(error, SC_MEMORY, "out of memory");
}

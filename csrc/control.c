/* Which deliberate bug this process has. Compiled in builds with STREAMCORE_CONTROLS alone. */
#include "control.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME(name) #name,
static const char *const names[] = {SC_CONTROLS(NAME)};

static enum sc_control chosen = SC_CONTROLS_END;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* A name that is misspelt must not pass for a bug that nobody notices. */
static void choose(void)
{
    const char *name = getenv("STREAMCORE_CONTROL");
    if (name == NULL || name[0] == 0)
        return;
    for (int i = 0; i < SC_CONTROLS_END; i++)
        if (strcmp(names[i], name) == 0)
            chosen = (enum sc_control)i;
    if (chosen != SC_CONTROLS_END)
        return;
    fprintf(stderr, "STREAMCORE_CONTROL=%s: csrc/control.h has no such bug\n", name);
    exit(2);
}

bool sc_control_is_chosen(enum sc_control bug)
{
    pthread_once(&once, choose);
    return chosen == bug;
}

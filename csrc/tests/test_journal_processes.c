/* Several processes share the journal of a store, and any of them may be killed at any system call. */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#if defined(__linux__)
#include <sys/prctl.h>
#endif
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "os.h"
#include "random_array.h"
#include "small_store.h"

enum { AREA = 128 << 10, SEGMENT = 64 << 10, DEADLINE_S = 100 };
static char path[FOLDER_MAX];

/* What a child was told, in memory that its parent sees. */
typedef struct ledger {
    _Atomic int64_t acknowledged[STORE_LOGS];
    atomic_int rounds;
    atomic_bool stop;
} ledger;
static ledger *shared;

static void make_ledger(void)
{
    if (shared == NULL)
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    memset((void *)shared, 0, sizeof *shared);
}

static pid_t start(void (*run)(int), int number)
{
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
#if defined(__linux__)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
        run(number);
        _exit(0);
    }
    return pid;
}

/* True when it was killed. */
static bool ended_by_kill(pid_t pid)
{
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    CHECK(killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
    return killed;
}

static small_store open_store(void)
{
    small_store store;
    sc_error error;
    CHECK_OK(store_try_open(path, AREA, SEGMENT, &store, &error), error);
    return store;
}

static void append_and_note(small_store *store, uint32_t logs, int64_t count)
{
    store_append(store, logs, count);
    for (int log = 0; log < STORE_LOGS; log++)
        if ((logs >> log & 1) != 0)
            atomic_store(&shared->acknowledged[log], durable_of_log(store, log));
    atomic_fetch_add(&shared->rounds, 1);
}

static void check_acknowledged(small_store *store)
{
    int64_t least[STORE_LOGS];
    for (int log = 0; log < STORE_LOGS; log++)
        least[log] = atomic_load(&shared->acknowledged[log]);
    store_check(store, least);
}

/* ---- death at a system call ---------------------------------------------------------------------------------------
 */

static struct sc_os_table real;
static int calls_until_death;

static void count_call(void)
{
    if (--calls_until_death == 0)
        kill(getpid(), SIGKILL);
}

static int deadly_open(const char *name, int how)
{
    count_call();
    return real.open(name, how);
}

/* Half of it is written. */
static ssize_t deadly_pwrite(int fd, const void *data, size_t size, int64_t position)
{
    if (calls_until_death == 1)
        (void)!real.pwrite(fd, data, size / 2, position);
    count_call();
    return real.pwrite(fd, data, size, position);
}

static int deadly_sync(int fd)
{
    count_call();
    return real.sync(fd);
}

static int deadly_sync_data(int fd)
{
    count_call();
    return real.sync_data(fd);
}

static int deadly_rename(const char *from, const char *to)
{
    count_call();
    return real.rename(from, to);
}

static int deadly_lock(int fd, int64_t byte, int kind, bool wait)
{
    count_call();
    return real.lock(fd, byte, kind, wait);
}

static int deadly_truncate(int fd, int64_t size)
{
    count_call();
    return real.truncate(fd, size);
}

static void die_at(int call)
{
    sc_os_reset();
    real = sc_os;
    calls_until_death = call;
    sc_os.open = deadly_open;
    sc_os.pwrite = deadly_pwrite;
    sc_os.sync = deadly_sync;
    sc_os.sync_data = deadly_sync_data;
    sc_os.rename = deadly_rename;
    sc_os.lock = deadly_lock;
    sc_os.truncate = deadly_truncate;
}

/* Fills the journal, empties it, and closes. */
static void use_and_die(int call)
{
    sc_error error;
    die_at(call);
    small_store store = open_store();
    for (int i = 0; i < 8; i++)
        append_and_note(&store, 0xff, 10);
    CHECK_OK(sc_journal_checkpoint(store.journal, &error), error);
    append_and_note(&store, 0xff, 10);
    CHECK_OK(sc_journal_empty(store.journal, &error), error);
    append_and_note(&store, 0xff, 10);
    store_close(&store);
}

static void check_deaths(bool with_survivor)
{
    bool killed = true;
    for (int call = 1; killed; call += call < 60 ? 3 : 7) {
        store_make(path);
        make_ledger();
        small_store survivor = {0};
        if (with_survivor)
            survivor = open_store();
        pid_t child = start(use_and_die, call);
        killed = ended_by_kill(child);
        CHECK(killed || call > 200);
        if (!with_survivor)
            survivor = open_store();
        check_acknowledged(&survivor);
        for (int i = 0; i < 4; i++) /* nothing that the dead one held is in the way */
            append_and_note(&survivor, 0xff, 10);
        check_acknowledged(&survivor);
        store_abandon(&survivor);
        survivor = open_store();
        check_acknowledged(&survivor);
        store_close(&survivor);
        folder_remove(path);
    }
}

static void test_a_process_killed_at_any_call_leaves_a_usable_journal_to_the_others(void)
{
    check_deaths(true);
}

static void test_a_process_killed_at_any_call_leaves_a_usable_journal_to_the_next(void)
{
    check_deaths(false);
}

/* ---- several at work ------------------------------------------------------------------------------------------------
 */

static void append_until_stopped(int number)
{
    small_store store = open_store();
    while (!atomic_load(&shared->stop))
        append_and_note(&store, 0x33u << (2 * number), 1 + number);
    store_close(&store);
}

static void await_rounds(int rounds)
{
    for (int i = 0; atomic_load(&shared->rounds) < rounds && i < DEADLINE_S * 1000; i++)
        usleep(1000);
    CHECK(atomic_load(&shared->rounds) >= rounds);
}

static void test_processes_that_are_killed_while_others_go_on_lose_nothing(void)
{
    store_make(path);
    make_ledger();
    random_seed(1);
    pid_t lasting = start(append_until_stopped, 0);
    for (int i = 0; i < 25; i++) {
        pid_t child = start(append_until_stopped, 1);
        await_rounds(atomic_load(&shared->rounds) + 1 + (int)random_below(12));
        usleep(random_below(2000)); /* somewhere in a call */
        CHECK(kill(child, SIGKILL) == 0);
        CHECK(ended_by_kill(child));
    }
    await_rounds(atomic_load(&shared->rounds) + 20); /* nobody waits for the dead */
    atomic_store(&shared->stop, true);
    CHECK(!ended_by_kill(lasting));
    small_store store = open_store();
    check_acknowledged(&store);
    store_close(&store);
    folder_remove(path);
}

/* ---- one flush for all
 * ------------------------------------------------------------------------------------------------ */

static void open_and_exit(int number)
{
    (void)number;
    small_store store = open_store();
    append_and_note(&store, 0xff, 10);
    store_abandon(&store);
}

/* Its records are in the journal, and it is gone: those that stay sync the segments. */
static void test_a_checkpoint_covers_what_a_dead_process_wrote(void)
{
    store_make(path);
    make_ledger();
    sc_error error;
    small_store store = open_store();
    store_append(&store, 0xff, 10);
    CHECK(!ended_by_kill(start(open_and_exit, 0)));
    CHECK(!ended_by_kill(start(open_and_exit, 0)));
    store_append(&store, 0xff, 10);
    CHECK_OK(sc_journal_empty(store.journal, &error), error);
    check_acknowledged(&store);
    store_close(&store);
    folder_remove(path);
}

static void use_parents(int number)
{
    (void)number;
    sc_error error;
    small_store *store = (small_store *)(void *)shared->acknowledged;
    CHECK_EQ(sc_journal_checkpoint(store->journal, &error), SC_FORKED);
    CHECK_EQ(sc_journal_empty(store->journal, &error), SC_FORKED);
    CHECK_EQ(store_try_append(store, 0xff, 1, &error), SC_FORKED);
    CHECK_OK(sc_journal_close(store->journal, &error), error);
}

static void test_a_forked_child_must_open_its_own(void)
{
    store_make(path);
    make_ledger();
    small_store store = open_store();
    store_append(&store, 0xff, 10);
    memcpy((void *)shared->acknowledged, &store, sizeof store);
    CHECK(!ended_by_kill(start(use_parents, 0)));
    store_append(&store, 0xff, 10);
    store_close(&store);
    folder_remove(path);
}

int main(int argc, char **argv)
{
    RUN(test_a_process_killed_at_any_call_leaves_a_usable_journal_to_the_others);
    RUN(test_a_process_killed_at_any_call_leaves_a_usable_journal_to_the_next);
    RUN(test_processes_that_are_killed_while_others_go_on_lose_nothing);
    RUN(test_a_checkpoint_covers_what_a_dead_process_wrote);
    RUN(test_a_forked_child_must_open_its_own);
    return 0;
}

/* Runs a fuzz target over files and folders of inputs, without libFuzzer: for regressions and seeds under ctest. */
#include <dirent.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "check.h"
#include "fuzz.h"

static int64_t replayed;

static void replay_file(const char *file)
{
    int64_t size;
    uint8_t *data = file_read(file, &size);
    uint8_t *exact = malloc((size_t)size + (size == 0)); /* a sanitizer shall see a read behind it */
    CHECK(exact != NULL);
    memcpy(exact, data, (size_t)size);
    printf("%s\n", file);
    fflush(stdout);
    LLVMFuzzerTestOneInput(exact, (size_t)size);
    free(exact);
    free(data);
    replayed++;
}

static void replay(const char *path)
{
    struct stat st;
    CHECK(stat(path, &st) == 0);
    if (!S_ISDIR(st.st_mode)) {
        replay_file(path);
        return;
    }
    struct dirent **names;
    int count = scandir(path, &names, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char inner[PATH_MAX_OF_TESTS];
        snprintf(inner, sizeof inner, "%s/%s", path, names[i]->d_name);
        if (names[i]->d_name[0] != '.')
            replay(inner);
        free(names[i]);
    }
    if (count >= 0)
        free(names);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        replay(argv[i]);
    printf("%lld inputs\n", (long long)replayed);
    return replayed > 0 ? 0 : 1;
}

/*
 * Bytes as keys and offsets that are put into a map of keys, cleared and asked for, next to a plain list that does the
 * same: the map says of each key what the list says, and when it is full it stays as it was.
 *
 * Options: 0: entries that it may have, 0 for any number. Then steps: a byte (0 to 15 clear when 0, ask; the others
 * put), a byte for the size of the key, the key, a byte for the offset.
 */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "fuzz.h"
#include "key_map.h"

enum { STEPS_MAX = 2048, KEY_MAX = 31, ENTRIES_MIN = 64 };

typedef struct known_key {
    const uint8_t *key;
    int64_t size, offset;
} known_key;

typedef struct model {
    known_key keys[STEPS_MAX];
    int64_t count;
} model;

static known_key *find(model *self, const uint8_t *key, int64_t size)
{
    for (int64_t i = 0; i < self->count; i++)
        if (self->keys[i].size == size && memcmp(self->keys[i].key, key, (size_t)size) == 0)
            return &self->keys[i];
    return NULL;
}

static void put(sc_key_map *map, model *self, const uint8_t *key, int64_t size, int64_t offset, int64_t limit)
{
    known_key *known = find(self, key, size);
    bool room = sc_key_map_put(map, key, size, offset);
    CHECK(room || (known == NULL && limit > 0 && self->count >= limit / 4 * 3));
    if (!room)
        return;
    CHECK(known != NULL || limit == 0 || self->count < limit);
    if (known == NULL)
        self->keys[self->count++] = (known_key){key, size, offset};
    else if (offset > known->offset)
        known->offset = offset;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t secret[16] = {7, 7, 7};
    static model self;
    sc_key_map *map;
    sc_error error;
    if (size < FUZZ_OPTIONS)
        return 0;
    int64_t limit = data[0] == 0 ? 0 : data[0] < ENTRIES_MIN ? ENTRIES_MIN : data[0];
    self.count = 0;
    CHECK_OK(sc_key_map_new(limit * (int64_t)sizeof(sc_key_entry), secret, &map, &error), error);
    size_t at = FUZZ_OPTIONS;
    for (int step = 0; step < STEPS_MAX && at + 2 < size; step++) {
        uint8_t kind = data[at];
        int64_t length = data[at + 1] % (KEY_MAX + 1);
        length = length < (int64_t)(size - at - 3) ? length : (int64_t)(size - at - 3);
        const uint8_t *key = data + at + 2;
        at += (size_t)length + 3;
        if (kind == 0) {
            sc_key_map_clear(map);
            self.count = 0;
        } else if (kind < 16) {
            known_key *known = find(&self, key, length);
            CHECK_EQ(sc_key_map_get(map, key, length), known == NULL ? -1 : known->offset);
        } else {
            put(map, &self, key, length, data[at - 1], limit);
        }
        CHECK_EQ(sc_key_map_count(map), self.count);
    }
    for (int64_t i = 0; i < self.count; i++)
        CHECK_EQ(sc_key_map_get(map, self.keys[i].key, self.keys[i].size), self.keys[i].offset);
    sc_key_map_free(map);
    return 0;
}

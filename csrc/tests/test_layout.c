#include "check.h"
#include "layout.h"
#include "metadata.h"
#include "plain_topic.h"

static int look_at(const struct ArrowSchema *schema, sc_error *error)
{
    uint8_t message[SCHEMA_SIZE];
    sc_layout *layout = NULL;
    schema_message(message, 1);
    int code = sc_layout_new(schema, message, SCHEMA_SIZE, DIGITS_AT, 1, &layout, error);
    if (code == SC_OK)
        sc_layout_free(layout);
    return code;
}

static int try_layout(struct ArrowSchema *schema, sc_error *error)
{
    int code = look_at(schema, error);
    schema_free(schema);
    return code;
}

static void test_the_plain_schema_has_the_nodes_and_buffers_of_arrow(void)
{
    sc_layout *layout = plain_layout(3);
    CHECK(sc_layout_is_plain(layout));
    CHECK_EQ(layout->schema_version, 3);
    CHECK_EQ(layout->field_count, 8); /* 5 columns, and struct, key, value in headers */
    CHECK_EQ(layout->buffer_count, 2 + 2 + 3 + 3 + 2 + 1 + 3 + 3);
    CHECK_EQ(layout->variadic_count, 0);
    const sc_field *headers = &layout->fields[layout->columns[SC_COLUMN_HEADERS]];
    CHECK_EQ(headers->kind, SC_KIND_LIST);
    CHECK_EQ(headers->buffer, 10);
    CHECK_EQ(headers->end, 8);
    CHECK_EQ(layout->fields[layout->columns[SC_COLUMN_HEADERS] + 1].children, 2);
    sc_metadata metadata;
    CHECK(sc_metadata_read(layout->metadata_template, layout->metadata_size, &metadata));
    CHECK_EQ(metadata.node_count, 8);
    CHECK_EQ(metadata.buffer_count, 19);
    sc_layout_free(layout);
}

static void test_every_storable_type_compiles_to_its_width(void)
{
    static const struct {
        const char *format;
        enum sc_kind kind;
        int32_t width;
    } cases[] = {
        {"n", SC_KIND_NULL, 0},        {"b", SC_KIND_BOOL, 0},         {"c", SC_KIND_FIXED, 1},
        {"S", SC_KIND_FIXED, 2},       {"e", SC_KIND_FIXED, 2},        {"i", SC_KIND_FIXED, 4},
        {"f", SC_KIND_FIXED, 4},       {"L", SC_KIND_FIXED, 8},        {"g", SC_KIND_FIXED, 8},
        {"d:10,2", SC_KIND_FIXED, 16}, {"d:9,2,32", SC_KIND_FIXED, 4}, {"d:70,2,256", SC_KIND_FIXED, 32},
        {"w:7", SC_KIND_FIXED, 7},     {"w:0", SC_KIND_FIXED, 0},      {"tdD", SC_KIND_FIXED, 4},
        {"tdm", SC_KIND_FIXED, 8},     {"tts", SC_KIND_FIXED, 4},      {"ttn", SC_KIND_FIXED, 8},
        {"tsu:", SC_KIND_FIXED, 8},    {"tDm", SC_KIND_FIXED, 8},      {"tiM", SC_KIND_FIXED, 4},
        {"tiD", SC_KIND_FIXED, 8},     {"tin", SC_KIND_FIXED, 16},     {"z", SC_KIND_BINARY, 0},
        {"u", SC_KIND_BINARY, 0},      {"Z", SC_KIND_LARGE_BINARY, 0}, {"U", SC_KIND_LARGE_BINARY, 0},
        {"vz", SC_KIND_VIEW, 0},       {"vu", SC_KIND_VIEW, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sc_layout *layout = layout_of(schema_new(cases[i].format, "value", 0), 1);
        const sc_field *field = &layout->fields[layout->columns[SC_COLUMN_VALUE]];
        CHECK_EQ(field->kind, cases[i].kind);
        CHECK_EQ(field->width, cases[i].width);
        CHECK_EQ(sc_layout_is_plain(layout), cases[i].kind == SC_KIND_BINARY);
        CHECK_EQ(layout->variadic_count, cases[i].kind == SC_KIND_VIEW);
        sc_layout_free(layout);
    }
}

static void test_nested_types_number_their_nodes_depth_first(void)
{
    struct ArrowSchema *value = schema_new(
        "+s", "value", 3, schema_new("+L", "list", 1, schema_new("vu", "item", 0)),
        schema_new("+w:3", "fixed", 1, schema_new("b", "item", 0)),
        schema_new("+m", "map", 1, schema_new("+s", "entries", 2, schema_new("u", "k", 0), schema_new("i", "v", 0))));
    sc_layout *layout = layout_of(value, 1);
    int32_t at = layout->columns[SC_COLUMN_VALUE];
    CHECK_EQ(at, 3);
    static const enum sc_kind kinds[] = {SC_KIND_STRUCT,     SC_KIND_LARGE_LIST, SC_KIND_VIEW,
                                         SC_KIND_FIXED_LIST, SC_KIND_BOOL,       SC_KIND_LIST,
                                         SC_KIND_STRUCT,     SC_KIND_BINARY,     SC_KIND_FIXED};
    static const int32_t ends[] = {9, 3, 3, 5, 5, 9, 9, 8, 9};
    for (int i = 0; i < 9; i++) {
        CHECK_EQ(layout->fields[at + i].kind, kinds[i]);
        CHECK_EQ(layout->fields[at + i].end - at, ends[i]);
    }
    CHECK(!sc_layout_is_plain(layout));
    CHECK_EQ(layout->fields[at + 2].buffer + 3, layout->fields[at + 3].buffer); /* validity, views, one variadic */
    sc_layout_free(layout);
}

static void test_types_that_a_log_cannot_hold_are_refused_by_name(void)
{
    static const char *const formats[] = {"+us:1,2", "+ud:1", "+r",        "+vl",           "q",    "",
                                          "w:-1",    "d:1",   "x",         "+w:x",          "iffy", "t",
                                          "ts",      "tsx:",  "d:1,2,64x", "w:99999999999", "w:3x"};
    sc_error error;
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        struct ArrowSchema *bad = schema_new(formats[i], "wrong one", 0);
        CHECK_EQ(try_layout(schema_of_topic(bad), &error), SC_INVALID);
        CHECK(strstr(error.message, "wrong one") != NULL);
    }
    struct ArrowSchema *dictionary = schema_new("i", "value", 0), *values = schema_new("u", "", 0);
    dictionary->dictionary = values;
    CHECK_EQ(try_layout(schema_of_topic(dictionary), &error), SC_INVALID);
    schema_free(values);
}

static void test_children_must_be_as_the_type_says(void)
{
    sc_error error;
    CHECK_EQ(try_layout(schema_of_topic(schema_new("+l", "value", 0)), &error), SC_INVALID);
    CHECK_EQ(try_layout(schema_of_topic(schema_new("z", "value", 1, schema_new("i", "x", 0))), &error), SC_INVALID);
    CHECK_EQ(try_layout(schema_of_topic(schema_new("+s", "value", 0)), &error), SC_OK);
}

static void test_schemas_that_lack_what_the_interface_demands_are_refused(void)
{
    sc_error error;
    for (int flaw = 0; flaw < 4; flaw++) {
        struct ArrowSchema *pair = schema_new("+s", "value", 2, schema_new("i", "a", 0), schema_new("i", "b", 0));
        struct ArrowSchema kept = *pair, *second = pair->children[1];
        if (flaw == 0)
            pair->format = NULL;
        if (flaw == 1)
            pair->children = NULL;
        if (flaw == 2)
            pair->children[1] = NULL;
        if (flaw == 3)
            pair->n_children = INT64_MIN;
        struct ArrowSchema *schema = schema_of_topic(pair);
        CHECK_EQ(look_at(schema, &error), SC_INVALID);
        *pair = kept;
        pair->children[1] = second;
        schema_free(schema);
    }
}

static void test_values_that_no_batch_could_hold_are_refused(void)
{
    static const char *const formats[] = {"+w:2", "+w:65536", "+w:2147483647"};
    sc_error error;
    for (int i = 0; i < 3; i++) {
        struct ArrowSchema *inner = schema_new("+w:65536", "item", 1, schema_new("w:4096", "item", 0));
        struct ArrowSchema *schema = schema_of_topic(schema_new(formats[i], "value", 1, inner));
        CHECK_EQ(try_layout(schema, &error), i == 0 ? SC_OK : SC_INVALID);
    }
}

static void test_depth_and_number_of_fields_are_bounded(void)
{
    sc_error error;
    for (int depth = SC_DEPTH_MAX - 2; depth <= SC_DEPTH_MAX + 1; depth++) {
        struct ArrowSchema *value = schema_new("i", "leaf", 0);
        for (int i = 1; i < depth; i++)
            value = schema_new("+l", "list", 1, value);
        CHECK_EQ(try_layout(schema_of_topic(value), &error), depth <= SC_DEPTH_MAX ? SC_OK : SC_INVALID);
    }
    for (int more = 0; more <= 1; more++) {
        struct ArrowSchema *value = schema_new("+s", "value", 0);
        int children = SC_FIELDS_MAX - 8 + more;
        free(value->children);
        value->children = calloc((size_t)children, sizeof *value->children);
        for (value->n_children = 0; value->n_children < children; value->n_children++)
            value->children[value->n_children] = schema_new("c", "f", 0);
        CHECK_EQ(try_layout(schema_of_topic(value), &error), more ? SC_INVALID : SC_OK);
    }
}

static void test_the_five_columns_are_required(void)
{
    sc_error error;
    CHECK_EQ(try_layout(schema_new("+s", "", 0), &error), SC_INVALID);
    struct ArrowSchema *schema = schema_of_topic(schema_new("z", "value", 0));
    schema->children[0]->format = "i";
    CHECK_EQ(try_layout(schema, &error), SC_INVALID);
    schema = schema_of_topic(schema_new("z", "value", 0));
    schema->children[2]->format = "Z";
    CHECK_EQ(try_layout(schema, &error), SC_INVALID);
}

static void test_the_schema_message_gets_the_digits_of_its_partition(void)
{
    uint8_t message[SCHEMA_SIZE], out[SCHEMA_SIZE];
    sc_layout *layout = plain_layout(1);
    schema_message(message, 1);
    sc_layout_schema_message(layout, 99999, out);
    CHECK(memcmp(out + DIGITS_AT, "0000099999", 10) == 0);
    memcpy(out + DIGITS_AT, message + DIGITS_AT, 10);
    CHECK(memcmp(out, message, SCHEMA_SIZE) == 0);
    sc_layout_free(layout);
}

static void test_a_message_of_the_wrong_form_is_refused(void)
{
    uint8_t message[SCHEMA_SIZE];
    sc_layout *layout;
    sc_error error;
    struct ArrowSchema *schema = schema_of_topic(schema_new("z", "value", 0));
    schema_message(message, 1);
    CHECK_EQ(sc_layout_new(schema, message, SCHEMA_SIZE - 1, DIGITS_AT, 1, &layout, &error), SC_INVALID);
    CHECK_EQ(sc_layout_new(schema, message, SCHEMA_SIZE, SCHEMA_SIZE - 9, 1, &layout, &error), SC_INVALID);
    CHECK_EQ(sc_layout_new(schema, message, SCHEMA_SIZE, 7, 1, &layout, &error), SC_INVALID);
    schema_free(schema);
}

int main(int argc, char **argv)
{
    RUN(test_the_plain_schema_has_the_nodes_and_buffers_of_arrow);
    RUN(test_every_storable_type_compiles_to_its_width);
    RUN(test_nested_types_number_their_nodes_depth_first);
    RUN(test_types_that_a_log_cannot_hold_are_refused_by_name);
    RUN(test_children_must_be_as_the_type_says);
    RUN(test_schemas_that_lack_what_the_interface_demands_are_refused);
    RUN(test_values_that_no_batch_could_hold_are_refused);
    RUN(test_depth_and_number_of_fields_are_bounded);
    RUN(test_the_five_columns_are_required);
    RUN(test_the_schema_message_gets_the_digits_of_its_partition);
    RUN(test_a_message_of_the_wrong_form_is_refused);
    return 0;
}

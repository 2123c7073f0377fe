/*
 * CRC32C (Castagnoli, RFC 3720), the checksum that Kafka uses for record batches.
 *
 * The processor's own instruction takes 8 bytes a cycle but answers three cycles later, so three streams run side by
 * side and are joined by advancing the first two over the bytes that follow them. Advancing a CRC over n zero bytes is
 * linear over GF(2): for each n that we need there are four tables of 256 entries, made once.
 *
 * Where a carry-less multiplication takes four 128-bit lanes at once (VPCLMULQDQ with AVX-512), long input is folded
 * instead: a lane is a polynomial, and multiplying its halves by x^n modulo the CRC's polynomial moves it n bits on, to
 * where the next input is added. Intel: "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction".
 */
#include <pthread.h>
#include <string.h>

#include "streamcore.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__) && __clang_major__ >= 14 /* the instruction is a feature of its own, which `zig cc` has off */
#define CRC_FEATURES "sse4.2,crc32"
#else
#define CRC_FEATURES "sse4.2"
#endif
#define CRC_TARGET          __attribute__((target(CRC_FEATURES)))
#define FOLD_TARGET         __attribute__((target("avx512f,vpclmulqdq,pclmul," CRC_FEATURES)))
#define CRC_U64(crc, value) ((uint32_t)_mm_crc32_u64((crc), (value)))
#define CRC_U8(crc, value)  _mm_crc32_u8((crc), (value))
#elif defined(__aarch64__)
#include <arm_acle.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(__clang__)
#define CRC_TARGET __attribute__((target("crc")))
#else
#define CRC_TARGET __attribute__((target("+crc")))
#endif
#define CRC_U64(crc, value) __crc32cd((crc), (value))
#define CRC_U8(crc, value)  __crc32cb((crc), (value))
#endif

#define POLYNOMIAL 0x82f63b78u /* reflected */
/* Short enough that the three streams lie within one page, so that the processor's prefetcher follows them through
 * memory that no cache holds: measured at 21 GB/s, where streams of 1 KiB reach 7. */
enum { LONG_STREAM = 256, SHORT_STREAM = 64 };
enum { FOLDED_MIN = 1024, FOLDED_STEP = 256 };

typedef uint32_t advance_table[4][256];

static uint32_t byte_tables[8][256]; /* slicing by eight, for processors without the instruction */
static advance_table advance_long, advance_short;
typedef uint32_t (*crc_function)(uint32_t crc, const uint8_t *data, size_t size);

static crc_function ways[3]; /* that this processor has, slow ones first */
static int way_count;
static crc_function fastest;
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static inline uint64_t load_u64(const uint8_t *data)
{
    uint64_t value;
    memcpy(&value, data, sizeof value);
    return value;
}

static uint32_t crc_portable(uint32_t crc, const uint8_t *data, size_t size)
{
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word = load_u64(data) ^ crc;
        crc = 0;
        for (int i = 0; i < 8; i++)
            crc ^= byte_tables[7 - i][(word >> (8 * i)) & 255];
    }
    for (; size > 0; data++, size--)
        crc = byte_tables[0][(crc ^ *data) & 255] ^ (crc >> 8);
    return crc;
}

#if defined(CRC_TARGET)
static inline uint32_t advance(const advance_table table, uint32_t crc)
{
    return table[0][crc & 255] ^ table[1][(crc >> 8) & 255] ^ table[2][(crc >> 16) & 255] ^ table[3][crc >> 24];
}

/* Three streams of `stream` bytes each, as often as they fit. */
CRC_TARGET static inline uint32_t crc_streams(uint32_t crc, const uint8_t **data, size_t *size, size_t stream,
                                              const advance_table table)
{
    const uint8_t *at = *data;
    for (; *size >= 3 * stream; *size -= 3 * stream, at += 2 * stream) {
        uint32_t second = 0, third = 0;
        for (const uint8_t *end = at + stream; at < end; at += 8) {
            crc = CRC_U64(crc, load_u64(at));
            second = CRC_U64(second, load_u64(at + stream));
            third = CRC_U64(third, load_u64(at + 2 * stream));
        }
        crc = advance(table, crc) ^ second;
        crc = advance(table, crc) ^ third;
    }
    *data = at;
    return crc;
}

CRC_TARGET static uint32_t crc_hardware(uint32_t crc, const uint8_t *data, size_t size)
{
    crc = crc_streams(crc, &data, &size, LONG_STREAM, advance_long);
    crc = crc_streams(crc, &data, &size, SHORT_STREAM, advance_short);
    for (; size >= 8; data += 8, size -= 8)
        crc = CRC_U64(crc, load_u64(data));
    for (; size > 0; data++, size--)
        crc = CRC_U8(crc, *data);
    return crc;
}

static int has_instruction(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("sse4.2");
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#else
    return 1; /* every 64-bit Apple processor */
#endif
}

static void make_advance_table(advance_table table, size_t zeros)
{
    uint32_t of_bit[32];
    for (int bit = 0; bit < 32; bit++) {
        uint32_t crc = 1u << bit;
        for (size_t i = 0; i < zeros; i++)
            crc = byte_tables[0][crc & 255] ^ (crc >> 8);
        of_bit[bit] = crc;
    }
    for (int byte = 0; byte < 4; byte++)
        for (int value = 0; value < 256; value++) {
            table[byte][value] = 0;
            for (int bit = 0; bit < 8; bit++)
                if (value >> bit & 1)
                    table[byte][value] ^= of_bit[8 * byte + bit];
        }
}
#endif

#if defined(FOLD_TARGET)
typedef struct fold_factors {
    uint64_t low, high; /* for the two halves of a lane */
} fold_factors;

static fold_factors fold_2048, fold_512, fold_128; /* by so many bits */

static uint64_t power_of_x(int exponent)
{
    uint32_t value = 0x80000000u; /* x^0, reflected */
    while (exponent-- > 0)
        value = value >> 1 ^ (value & 1 ? POLYNOMIAL : 0);
    return value;
}

/* The product of two reflected polynomials lies one bit off, and a half is 64 bits wide but its factor 32. */
static fold_factors make_fold_factors(int bits)
{
    return (fold_factors){power_of_x(bits + 31), power_of_x(bits - 33)};
}

FOLD_TARGET static inline __m128i load_factors(fold_factors factors)
{
    return _mm_set_epi64x((long long)factors.high, (long long)factors.low);
}

FOLD_TARGET static inline __m512i fold_4(__m512i lanes, __m512i factors, __m512i next)
{
    enum { XOR_OF_THREE = 0x96 };
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(lanes, factors, 0x00),
                                     _mm512_clmulepi64_epi128(lanes, factors, 0x11), next, XOR_OF_THREE);
}

FOLD_TARGET static inline __m128i fold_1(__m128i lane, __m128i factors, __m128i next)
{
    __m128i moved = _mm_xor_si128(_mm_clmulepi64_si128(lane, factors, 0x00), _mm_clmulepi64_si128(lane, factors, 0x11));
    return _mm_xor_si128(moved, next);
}

FOLD_TARGET static inline uint32_t reduce_lanes(__m512i lanes)
{
    __m128i factors = load_factors(fold_128), sum = _mm512_extracti32x4_epi32(lanes, 0);
    sum = fold_1(sum, factors, _mm512_extracti32x4_epi32(lanes, 1));
    sum = fold_1(sum, factors, _mm512_extracti32x4_epi32(lanes, 2));
    sum = fold_1(sum, factors, _mm512_extracti32x4_epi32(lanes, 3));
    uint32_t crc = (uint32_t)_mm_crc32_u64(0, (uint64_t)_mm_extract_epi64(sum, 0));
    return (uint32_t)_mm_crc32_u64(crc, (uint64_t)_mm_extract_epi64(sum, 1));
}

/* FOLDED_STEP bytes at a time, in four accumulators of four lanes. */
FOLD_TARGET static uint32_t crc_folded(uint32_t crc, const uint8_t *data, size_t size)
{
    if (size < FOLDED_MIN)
        return crc_hardware(crc, data, size);
    __m512i by_2048 = _mm512_broadcast_i32x4(load_factors(fold_2048));
    __m512i by_512 = _mm512_broadcast_i32x4(load_factors(fold_512));
    __m512i first = _mm512_loadu_si512(data), second = _mm512_loadu_si512(data + 64);
    __m512i third = _mm512_loadu_si512(data + 128), fourth = _mm512_loadu_si512(data + 192);
    first = _mm512_xor_si512(first, _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    for (data += FOLDED_STEP, size -= FOLDED_STEP; size >= FOLDED_STEP; data += FOLDED_STEP, size -= FOLDED_STEP) {
        first = fold_4(first, by_2048, _mm512_loadu_si512(data));
        second = fold_4(second, by_2048, _mm512_loadu_si512(data + 64));
        third = fold_4(third, by_2048, _mm512_loadu_si512(data + 128));
        fourth = fold_4(fourth, by_2048, _mm512_loadu_si512(data + 192));
    }
    first = fold_4(fold_4(fold_4(first, by_512, second), by_512, third), by_512, fourth);
    return crc_hardware(reduce_lanes(first), data, size);
}

static void add_folding(void)
{
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("vpclmulqdq") ||
        !__builtin_cpu_supports("pclmul"))
        return;
    fold_2048 = make_fold_factors(2048);
    fold_512 = make_fold_factors(512);
    fold_128 = make_fold_factors(128);
    ways[way_count++] = crc_folded;
}
#endif

static void find_ways(void)
{
    for (uint32_t value = 0; value < 256; value++) {
        uint32_t crc = value;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        byte_tables[0][value] = crc;
    }
    for (int table = 1; table < 8; table++)
        for (int value = 0; value < 256; value++) {
            uint32_t crc = byte_tables[table - 1][value];
            byte_tables[table][value] = byte_tables[0][crc & 255] ^ (crc >> 8);
        }
    ways[way_count++] = crc_portable;
#if defined(CRC_TARGET)
    if (has_instruction()) {
        make_advance_table(advance_long, LONG_STREAM);
        make_advance_table(advance_short, SHORT_STREAM);
        ways[way_count++] = crc_hardware;
#if defined(FOLD_TARGET)
        add_folding();
#endif
    }
#endif
    fastest = ways[way_count - 1];
}

uint32_t sc_crc32c(uint32_t crc, const void *data, size_t size)
{
    pthread_once(&crc_once, find_ways);
    return ~fastest(~crc, data, size);
}

/* For tests: how many ways this machine has to do it, the portable one first. */
int sc_crc32c_ways(void)
{
    pthread_once(&crc_once, find_ways);
    return way_count;
}

/* For tests: one of them. */
uint32_t sc_crc32c_by(int way, uint32_t crc, const void *data, size_t size)
{
    return ~ways[way](~crc, data, size);
}

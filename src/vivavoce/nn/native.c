// Linear layers over floats and over 8- and 4-bit weights, one pass of several texts through a whole decoder stack
// (nn/decoder.py), and a chain of small modules that write ahead (nn/drafting.py), for a CPU.
//
// Weights stay as they are in memory. Beside integer weights, activations are rounded to signed 8 bits on the fly, in
// groups with a scale each, and products are exact integers. Every sum of floats runs in an order that does not depend
// on how many rows are computed at once or by how many threads: a row's result never depends on its neighbours.
//
// Letters: T rows of activations, N outputs, K inputs, D width of the stack, G key/value heads.

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define VNNI 1
#else
#define VNNI 0
#endif
#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#define THREADS omp_get_num_threads()
#else
#define THREAD 0
#define THREADS 1
#endif

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))
#define GROUP 32               // weights that share a scale in the 4-bit form
#define TILE 16                // rows of a float or 4-bit matrix that lie interleaved: one lane of a register each
#define TILE_BYTES (TILE * 20) // per group: 16 bytes of levels, 2 of scale, 2 of lowest value, for each of 16 rows

enum { FLOAT = 32, INT8 = 8, INT4 = 4 };

// A layer. FLOAT: weight is (N / 16, K, 16) floats, nn/packed.py: pack_rows. INT8: weight is (N, K) int8, scale (N).
// INT4: weight is (N / 16, K / 32, 320) bytes, the tiles of nn/quantized.py: pack_tiles. Only INT8 has a scale.
typedef struct {
    int64_t kind, n, k;
    const void *weight;
    const float *scale, *bias; // bias may be NULL
} Linear;

// T rows of activations. Rounded: x ~ q * scale per group; sum is the sum of a group's q (exact in a float). Floats, as
// a float layer takes them: (T, K) at x.
typedef struct {
    int8_t *q; // (T, stride), zeros behind K
    float *scale, *sum; // (T, groups)
    int64_t stride, groups;
    float *x;
} Active;

typedef float Lanes __attribute__((vector_size(64)));
typedef float Loose __attribute__((vector_size(64), aligned(4), may_alias)); // the same, anywhere in memory

INLINE int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Round one row of K floats in groups. The loops are plain so that any compiler turns them into vectors: the largest
// magnitude is found on the bits, and adding 1.5 * 2^23 rounds to the nearest integer.
static void quantise(const float *restrict x, int64_t k, int64_t group, const Active *a, int64_t t) {
    int8_t *restrict q = a->q + t * a->stride;
    for (int64_t g = 0; g < a->groups; g++) {
        int64_t from = g * group, to = from + group < k ? from + group : k;
        int32_t peak = 0;
        for (int64_t i = from; i < to; i++) {
            int32_t bits;
            memcpy(&bits, x + i, 4);
            bits &= 0x7fffffff;
            peak = bits > peak ? bits : peak;
        }
        float largest;
        memcpy(&largest, &peak, 4);
        float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
        int32_t sum = 0;
        for (int64_t i = from; i < to; i++) {
            float moved = x[i] * inverse + 12582912.0f;
            int32_t bits;
            memcpy(&bits, &moved, 4);
            bits -= 0x4b400000;
            q[i] = (int8_t)bits;
            sum += bits;
        }
        a->scale[t * a->groups + g] = largest / 127.0f;
        a->sum[t * a->groups + g] = (float)sum;
    }
    memset(q + k, 0, (size_t)(a->stride - k));
}

// Where the activations of a layer lie in a workspace.
static Active place(void *work, const Linear *l, int64_t t) {
    if (l->kind == FLOAT) return (Active){.x = work};
    int64_t stride = up(l->k, 64), groups = l->kind == INT8 ? 1 : l->k / GROUP;
    float *floats = (float *)((char *)work + t * stride);
    return (Active){work, floats, floats + t * groups, stride, groups, NULL};
}

static int64_t place_bytes(const Linear *l, int64_t t) {
    if (l->kind == FLOAT) return up(4 * t * l->k, 64);
    return up(t * (up(l->k, 64) + 8 * (l->kind == INT8 ? 1 : l->k / GROUP)), 64);
}

// Make a row of K floats what the layer multiplies.
static void take_row(const Linear *l, const float *x, const Active *a, int64_t t) {
    if (l->kind == FLOAT)
        memcpy(a->x + t * l->k, x, 4 * (size_t)l->k);
    else
        quantise(x, l->k, l->kind == INT8 ? l->k : GROUP, a, t);
}

#if VNNI
// The sums of four registers' lanes, in the lanes of one small register.
INLINE __m128i four_sums(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i two = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
}

// vpdpbusd wants its first factor unsigned: 128 is added to the weights (a flipped top bit), taken off later.
INLINE __m512i weights_at(const int8_t *w, int64_t left) {
    __mmask64 here = left < 64 ? ~0ull >> (64 - left) : ~0ull;
    return _mm512_xor_si512(_mm512_maskz_loadu_epi8(here, w), _mm512_set1_epi8((char)0x80));
}

INLINE __m512i lone_row(const int8_t *w, const int8_t *q, int64_t k) {
    __m512i even = _mm512_setzero_si512(), odd = even;
    int64_t i = 0;
    for (; i + 128 <= k; i += 128) {
        even = _mm512_dpbusd_epi32(even, weights_at(w + i, 64), _mm512_loadu_si512(q + i));
        odd = _mm512_dpbusd_epi32(odd, weights_at(w + i + 64, 64), _mm512_loadu_si512(q + i + 64));
    }
    for (; i < k; i += 64) even = _mm512_dpbusd_epi32(even, weights_at(w + i, k - i), _mm512_loadu_si512(q + i));
    return _mm512_add_epi32(even, odd);
}
#endif

// y[t][n .. n + 3] for four rows of int8 (fewer at the end of the matrix) and `count` rows of activations from t, a
// constant once inlined, so that sums live in registers and a vector of weights is loaded once for all t.
INLINE void int8_block(const Linear *l, const Active *a, int64_t n, int64_t t, int count, float *y, int64_t pitch) {
    int32_t dot[4][4];
    int rows = l->n - n < 4 ? (int)(l->n - n) : 4;
    const int8_t *w[4], *q = a->q + t * a->stride;
    for (int r = 0; r < 4; r++) w[r] = (const int8_t *)l->weight + (n + (r < rows ? r : 0)) * l->k;
#if VNNI
    __m512i sum[4][4];
#pragma GCC unroll 4
    for (int c = 0; c < count; c++)
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) sum[c][r] = _mm512_setzero_si512();
    // One row of activations waits for memory, which is quickest read in one stream: row after row.
    for (int r = 0; r < 4 && count == 1; r++) sum[0][r] = lone_row(w[r], q, l->k);
    for (int64_t i = 0; i < l->k && count > 1; i += 64) {
        __m512i x[4];
#pragma GCC unroll 4
        for (int c = 0; c < count; c++) x[c] = _mm512_loadu_si512(q + c * a->stride + i);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            // four short streams are more than the processor foresees by itself
            if (t == 0) _mm_prefetch((const char *)w[0] + 4 * l->k + 4096 + 4 * i + 64 * r, _MM_HINT_T0);
            __m512i v = weights_at(w[r] + i, l->k - i);
#pragma GCC unroll 4
            for (int c = 0; c < count; c++) sum[c][r] = _mm512_dpbusd_epi32(sum[c][r], v, x[c]);
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < count; c++)
        _mm_storeu_si128((__m128i *)dot[c], _mm_sub_epi32(four_sums(sum[c][0], sum[c][1], sum[c][2], sum[c][3]),
                                                         _mm_set1_epi32(128 * (int32_t)a->sum[t + c])));
#else
    for (int c = 0; c < count; c++)
        for (int r = 0; r < 4; r++) {
            int32_t sum = 0;
            for (int64_t i = 0; i < l->k; i++) sum += w[r][i] * q[c * a->stride + i];
            dot[c][r] = sum;
        }
#endif
    for (int c = 0; c < count; c++)
        for (int r = 0; r < rows; r++) {
            float value = (float)dot[c][r] * (a->scale[t + c] * l->scale[n + r]);
            y[(t + c) * pitch + n + r] = l->bias ? value + l->bias[n + r] : value;
        }
}

INLINE float half(const uint8_t *p) {
    uint32_t h = p[0] | (uint32_t)p[1] << 8, exponent = h >> 10 & 31, fraction = h & 1023;
    float value = exponent ? ldexpf((float)(fraction | 1024), (int)exponent - 25) : ldexpf((float)fraction, -24);
    return h >> 15 ? -value : value;
}

// y[t][n] for 16 interleaved rows of levels. The four bytes of a lane are four weights of its row; the same four
// activations are broadcast to all lanes, so nothing has to be summed across a register.
INLINE void int4_block(const Linear *l, const Active *a, int64_t n, int64_t t, int count, float *y, int64_t pitch) {
    const uint8_t *p = (const uint8_t *)l->weight + n / TILE * a->groups * TILE_BYTES;
    float out[4][TILE];
#if VNNI
    const __m512i mask = _mm512_set1_epi8(15);
    __m512 total[4];
#pragma GCC unroll 4
    for (int c = 0; c < count; c++) total[c] = _mm512_setzero_ps();
    for (int64_t g = 0; g < a->groups; g++, p += TILE_BYTES) {
        __m512i first[4], last[4]; // weights 0 .. 15 of the group, and 16 .. 31
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            __m512i packed = _mm512_loadu_si512(p + 64 * j);
            first[j] = _mm512_and_si512(packed, mask);
            last[j] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
        }
        __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p + 256)));
        __m512 low = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p + 288)));
#pragma GCC unroll 4
        for (int c = 0; c < count; c++) {
            const int8_t *q = a->q + (t + c) * a->stride + g * GROUP;
            __m512i one = _mm512_setzero_si512(), two = _mm512_setzero_si512();
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                int32_t four;
                memcpy(&four, q + 4 * j, 4);
                one = _mm512_dpbusd_epi32(one, first[j], _mm512_set1_epi32(four));
                memcpy(&four, q + 16 + 4 * j, 4);
                two = _mm512_dpbusd_epi32(two, last[j], _mm512_set1_epi32(four));
            }
            // scale of x * (scale of w * dot + low * sum of q)
            __m512 part = _mm512_mul_ps(low, _mm512_set1_ps(a->sum[(t + c) * a->groups + g]));
            part = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(one, two)), scale, part);
            total[c] = _mm512_fmadd_ps(part, _mm512_set1_ps(a->scale[(t + c) * a->groups + g]), total[c]);
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < count; c++) _mm512_storeu_ps(out[c], total[c]);
#else
    memset(out, 0, sizeof out);
    for (int64_t g = 0; g < a->groups; g++, p += TILE_BYTES)
        for (int c = 0; c < count; c++) {
            const int8_t *q = a->q + (t + c) * a->stride + g * GROUP;
            int32_t dot[TILE] = {0};
            for (int j = 0; j < 4; j++)
                for (int r = 0; r < TILE; r++)
                    for (int i = 0; i < 4; i++) {
                        uint8_t packed = p[64 * j + 4 * r + i];
                        dot[r] += (packed & 15) * q[4 * j + i] + (packed >> 4) * q[16 + 4 * j + i];
                    }
            for (int r = 0; r < TILE; r++) {
                float part = half(p + 288 + 2 * r) * a->sum[(t + c) * a->groups + g];
                part += (float)dot[r] * half(p + 256 + 2 * r);
                out[c][r] += part * a->scale[(t + c) * a->groups + g];
            }
        }
#endif
    for (int c = 0; c < count; c++)
        for (int r = 0; r < TILE && n + r < l->n; r++)
            y[(t + c) * pitch + n + r] = l->bias ? out[c][r] + l->bias[n + r] : out[c][r];
}

#if defined(__AVX512F__)
#define ROWS 12 // of activations whose sums fit into registers beside two tiles of weights
#define SUM(sum, weights, value) _mm512_fmadd_ps(weights, _mm512_set1_ps(value), sum)
#define FETCH(p) _mm_prefetch((const char *)(p), _MM_HINT_T1)
typedef __m512 Register;

// Sixteen outputs from number `from` on, as many of them as the layer has.
INLINE void put(const Linear *l, Register sum, int64_t from, float *y) {
    __mmask16 here = l->n - from < TILE ? (__mmask16)(0xffff >> (TILE - (l->n - from))) : (__mmask16)0xffff;
    if (l->bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(here, l->bias + from));
    _mm512_mask_storeu_ps(y + from, here, sum);
}
#else
#define ROWS 2
#define SUM(sum, weights, value) ((sum) + (weights) * (value))
#define FETCH(p) __builtin_prefetch(p)
typedef Lanes Register;

INLINE void put(const Linear *l, Register sum, int64_t from, float *y) {
    float out[TILE];
    memcpy(out, &sum, sizeof out);
    for (int64_t j = 0; j < TILE && from + j < l->n; j++) y[from + j] = l->bias ? out[j] + l->bias[from + j] : out[j];
}
#endif

// y[t ..][n ..] for `tiles` times 16 interleaved rows of floats and `count` rows of activations, both constants once
// inlined. Each lane sums one output, input after input.
INLINE void float_block(const Linear *l, const float *x, int64_t n, int tiles, int count, float *y, int64_t pitch) {
    int64_t k = l->k;
    const float *w = (const float *)l->weight + n * k;
    Register sum[ROWS][4];
#pragma GCC unroll 12
    for (int c = 0; c < count; c++)
#pragma GCC unroll 4
        for (int r = 0; r < tiles; r++) sum[c][r] = (Register){0};
    for (int64_t i = 0; i < k; i++) {
        Register v[4];
#pragma GCC unroll 4
        for (int r = 0; r < tiles; r++) {
            const float *at = w + (r * k + i) * TILE;
            v[r] = *(const Loose *)at;
            FETCH(at + 1024); // the processor foresees a stream no further than the end of its page
        }
#pragma GCC unroll 12
        for (int c = 0; c < count; c++)
#pragma GCC unroll 4
            for (int r = 0; r < tiles; r++) sum[c][r] = SUM(sum[c][r], v[r], x[c * k + i]);
    }
#pragma GCC unroll 12
    for (int c = 0; c < count; c++)
#pragma GCC unroll 4
        for (int r = 0; r < tiles; r++) put(l, sum[c][r], n + r * TILE, y + c * pitch);
}

// All T rows of activations against two tiles, as many at once as there are registers for.
static void two_tiles(const Linear *l, const Active *a, int64_t n, int64_t length, float *y, int64_t pitch) {
    for (int64_t t = 0, count; t < length; t += count) {
        int64_t left = length - t;
        count = left <= ROWS ? left : left < 2 * ROWS ? (left + 1) / 2 : ROWS;
        const float *x = a->x + t * l->k;
#define CASE(rows)                                                                                                     \
    case rows: float_block(l, x, n, 2, rows, y + t * pitch, pitch); break;
        switch (count) {
            CASE(1)
            CASE(2)
#if ROWS > 2
            CASE(3)
            CASE(4)
            CASE(5)
            CASE(6)
            CASE(7)
            CASE(8)
            CASE(9)
            CASE(10)
            CASE(11)
            CASE(12)
#endif
        }
#undef CASE
    }
}

static void float_share(const Linear *l, const Active *a, int64_t length, float *y, int64_t pitch, int part,
                        int parts) {
    int64_t tiles = (l->n + TILE - 1) / TILE, b = tiles * part / parts, end = tiles * (part + 1) / parts;
    if (length == 1) // waits for memory: more streams of it at once
        for (; b + 4 <= end; b += 4) float_block(l, a->x, b * TILE, 4, 1, y, pitch);
    for (; b + 2 <= end; b += 2) two_tiles(l, a, b * TILE, length, y, pitch);
    for (int64_t t = 0; b < end && t < length; t++) float_block(l, a->x + t * l->k, b * TILE, 1, 1, y + t * pitch, pitch);
}

// One thread's share of y (T, N), whose rows are `pitch` floats apart.
static void linear_share(const Linear *l, const Active *a, int64_t length, float *y, int64_t pitch, int part,
                         int parts) {
    if (l->kind == FLOAT) {
        float_share(l, a, length, y, pitch, part, parts);
        return;
    }
    int64_t height = l->kind == INT8 ? 4 : TILE, blocks = (l->n + height - 1) / height;
    for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; b++) {
        int64_t n = b * height, t = 0;
        if (l->kind == INT4) {
            for (; t + 4 <= length; t += 4) int4_block(l, a, n, t, 4, y, pitch);
            for (; t + 2 <= length; t += 2) int4_block(l, a, n, t, 2, y, pitch);
            for (; t < length; t++) int4_block(l, a, n, t, 1, y, pitch);
        } else {
            for (; t + 4 <= length; t += 4) int8_block(l, a, n, t, 4, y, pitch);
            for (; t < length; t++) int8_block(l, a, n, t, 1, y, pitch);
        }
    }
}

EXPORT int64_t linear_bytes(const Linear *l, int64_t length) { return place_bytes(l, length); }

// y (T, N) = x (T, K) times the layer's rows, plus bias. work: linear_bytes of memory.
EXPORT void linear(const Linear *l, int64_t length, const float *x, float *y, void *work, int32_t threads) {
    Active a = place(work, l, length);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int part = THREAD, parts = THREADS;
        for (int64_t t = part; t < length; t += parts) take_row(l, x + t * l->k, &a, t);
#pragma omp barrier
        linear_share(l, &a, length, y, l->n, part, parts);
    }
}

// ------------------------------------------------------------------------------------------------ the decoder stack

typedef struct {
    const float *attention_norm, *ffn_norm; // (D)
    Linear qkv, out, gate_up, down;
} Layer;

typedef struct {
    int64_t n_layers, dim, heads, groups, width, ffn; // width: of a head
    const float *norm;                                // (D)
    const float *table;                               // (2, context, width), nn/decoder.py: rope_table
    int64_t context;
    double eps;
    const Layer *layers;
} Plan;

// One of the texts of a pass: it brings `length` rows, and its caches grow to `span`.
typedef struct {
    float *const *keys, *const *values; // of each layer, (G, capacity, width)
    int64_t capacity, span, length;
    int64_t offset; // position in the text of the first slot
} Text;

INLINE float dot(const float *a, const float *b, int64_t n) {
    Lanes sum = {0};
    float rest = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) sum += *(const Loose *)(a + i) * *(const Loose *)(b + i);
    for (; i < n; i++) rest += a[i] * b[i];
    for (int j = 0; j < 16; j++) rest += sum[j];
    return rest;
}

// exp without branches, so that loops over it become vectors: 2^whole times a polynomial on [-ln 2 / 2, ln 2 / 2];
// relative error below 3e-7.
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float whole = x * 1.44269504f + 12582912.0f - 12582912.0f;
    float r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float p = 1 + r * (1 + r * (0.5f + r * (1 / 6.0f + r * (1 / 24.0f + r * (1 / 120.0f + r * (1 / 720.0f))))));
    int32_t bits = ((int32_t)whole + 127) * (1 << 23);
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

static void rms_norm(const float *restrict x, const float *restrict gain, int64_t n, double eps, float *restrict y) {
    float scale = 1 / sqrtf(dot(x, x, n) / (float)n + (float)eps);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * gain[i];
}

static void rotate(const float *x, const float *cosine, const float *sine, int64_t width, float *y) {
    int64_t half_width = width / 2;
    for (int64_t i = 0; i < half_width; i++) {
        y[i] = x[i] * cosine[i] + x[i + half_width] * sine[i];
        y[i + half_width] = x[i + half_width] * cosine[i + half_width] + x[i] * sine[i + half_width];
    }
}

// `count` times 16 columns of scores times values, over the sum. Every fourth slot is summed apart, so that sums do not
// wait for each other.
INLINE void mix(const float *scores, const float *values, int64_t span, int64_t width, int count, float sum, float *out) {
    Register part[4][2];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) part[j][0] = part[j][1] = (Register){0};
    int64_t s = 0;
    for (; s + 4 <= span; s += 4)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
#pragma GCC unroll 2
            for (int c = 0; c < count; c++)
                part[j][c] = SUM(part[j][c], *(const Loose *)(values + (s + j) * width + 16 * c), scores[s + j]);
    for (; s < span; s++)
#pragma GCC unroll 2
        for (int c = 0; c < count; c++)
            part[0][c] = SUM(part[0][c], *(const Loose *)(values + s * width + 16 * c), scores[s]);
#pragma GCC unroll 2
    for (int c = 0; c < count; c++)
        *(Loose *)(out + 16 * c) = ((part[0][c] + part[1][c]) + (part[2][c] + part[3][c])) / sum;
}

// out (width) = softmax(scores) values, over `span` slots; scores have room for whole registers.
static void weigh(float *scores, const float *values, int64_t span, int64_t width, float *restrict out) {
    float peaks[16], peak, sum = 0;
    for (int64_t s = span; s < up(span, 16); s++) scores[s] = -INFINITY;
    memcpy(peaks, scores, sizeof peaks);
    for (int64_t s = 16; s < span; s += 16)
        for (int j = 0; j < 16; j++) peaks[j] = scores[s + j] > peaks[j] ? scores[s + j] : peaks[j];
    peak = peaks[0];
    for (int j = 1; j < 16; j++) peak = peaks[j] > peak ? peaks[j] : peak;
    for (int64_t s = 0; s < up(span, 16); s++) scores[s] = exponential(scores[s] - peak);
    for (int64_t s = span; s < up(span, 16); s++) scores[s] = 0;
    Lanes sums = {0};
    for (int64_t s = 0; s < span; s += 16) sums += *(const Loose *)(scores + s);
    for (int j = 0; j < 16; j++) sum += sums[j];
    int64_t i = 0;
    for (; i + 16 <= width; i += i + 32 <= width ? 32 : 16)
        i + 32 <= width ? mix(scores, values + i, span, width, 2, sum, out + i)
                        : mix(scores, values + i, span, width, 1, sum, out + i);
    float rest[16] = {0};
    for (int64_t s = 0; i < width && s < span; s++)
        for (int64_t j = 0; j < width - i; j++) rest[j] += scores[s] * values[s * width + i + j];
    for (int64_t j = 0; i + j < width; j++) out[i + j] = rest[j] / sum;
}

// Rows (n, width) as a tile (width, 16); n is at most 16, what is missing becomes zeros.
static void lay_out(const float *x, int64_t n, int64_t width, float *tile) {
#if defined(__AVX512F__)
    for (int64_t from = 0; from < width; from += 16) {
        int64_t columns = width - from < 16 ? width - from : 16;
        __mmask16 here = (__mmask16)(0xffff >> (16 - columns));
        __m512 r[16], t[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            r[i] = i < n ? _mm512_maskz_loadu_ps(here, x + i * width + from) : _mm512_setzero_ps();
#pragma GCC unroll 8
        for (int i = 0; i < 16; i += 2) {
            t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 16; i += 4) { // four rows, and in each quarter of a register one column of them
            __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
            __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
            r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
            r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
            r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
            r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            __m512 even = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88), odd = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xdd);
            __m512 even2 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
            __m512 odd2 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xdd);
            t[j] = _mm512_shuffle_f32x4(even, even2, 0x88);
            t[4 + j] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
            t[8 + j] = _mm512_shuffle_f32x4(even, even2, 0xdd);
            t[12 + j] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            if (i < columns) _mm512_storeu_ps(tile + (from + i) * TILE, t[i]);
    }
#else
    for (int64_t r = 0; r < TILE; r++)
        for (int64_t i = 0; i < width; i++) tile[i * TILE + r] = r < n ? x[r * width + i] : 0;
#endif
}

#define TOGETHER 16 // rows of a text whose queries are scored at once
#define KEYS 64     // keys that are laid out for that

// Floats that attention needs beside its arguments.
static int64_t attention_room(const Plan *p, int64_t span) {
    return (TOGETHER * (p->heads / p->groups) + KEYS) * p->width + TOGETHER * (p->heads / p->groups) * up(span, KEYS);
}

// All query heads of one key/value head: turn, append to the cache (capacity, width), attend. Heads of a row of
// `joined` are queries, keys, values; the answers take the place of the queries.
static void attention_share(const Plan *p, float *joined, int64_t pitch, const Text *text, int64_t layer, int64_t g,
                            float *room) {
    int64_t w = p->width, each = p->heads / p->groups, start = text->span - text->length, wide = up(text->span, KEYS);
    float *key = text->keys[layer] + g * text->capacity * w, *value = text->values[layer] + g * text->capacity * w;
    float *queries = room, *tiles = queries + TOGETHER * each * w, *scores = tiles + KEYS * w;
    const float *angles = p->table + (start + text->offset) * w;
    for (int64_t t = 0; t < text->length; t++) {
        const float *row = joined + t * pitch, *cosine = angles + t * w;
        rotate(row + (p->heads + g) * w, cosine, cosine + p->context * w, w, key + (start + t) * w);
        memcpy(value + (start + t) * w, row + (p->heads + p->groups + g) * w, 4 * (size_t)w);
    }
    float scale = 1 / sqrtf((float)w);
    for (int64_t from = 0; from < text->length; from += TOGETHER) {
        int64_t rows = text->length - from < TOGETHER ? text->length - from : TOGETHER, span = start + from + rows;
        for (int64_t t = 0; t < rows; t++)
            for (int64_t h = 0; h < each; h++) {
                float *turned = queries + (t * each + h) * w;
                const float *cosine = angles + (from + t) * w;
                rotate(joined + (from + t) * pitch + (g * each + h) * w, cosine, cosine + p->context * w, w, turned);
                for (int64_t i = 0; i < w; i++) turned[i] *= scale;
            }
        // keys are the rows of a matrix: laid out as one in tiles, they are multiplied with all queries as one
        Active a = {.x = queries};
        for (int64_t s = 0; s < span; s += KEYS) {
            Linear keys = {FLOAT, span - s < KEYS ? span - s : KEYS, w, tiles, NULL, NULL};
            for (int64_t n = 0; n < keys.n; n += TILE)
                lay_out(key + (s + n) * w, keys.n - n < TILE ? keys.n - n : TILE, w, tiles + n * w);
            float_share(&keys, &a, rows * each, scores + s, wide, 0, 1);
        }
        for (int64_t t = 0; t < rows; t++)
            for (int64_t h = 0; h < each; h++)
                weigh(scores + (t * each + h) * wide, value, start + from + t + 1, w,
                      joined + (from + t) * pitch + (g * each + h) * w);
    }
}

INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Floats per row of the widest intermediate, bytes of the largest set of rounded activations.
static void sizes(const Plan *p, int64_t length, int64_t *wide, int64_t *bytes) {
    *wide = most((p->heads + 2 * p->groups) * p->width, 2 * p->ffn), *bytes = 0;
    for (int64_t i = 0; i < p->n_layers; i++) {
        const Layer *l = p->layers + i;
        *bytes = most(*bytes, most(most(place_bytes(&l->qkv, length), place_bytes(&l->out, length)),
                                   most(place_bytes(&l->gate_up, length), place_bytes(&l->down, length))));
    }
}

EXPORT int64_t decoder_bytes(const Plan *p, int64_t rows, int64_t span, int32_t threads) {
    int64_t wide, bytes;
    sizes(p, rows, &wide, &bytes);
    return bytes + 4 * (rows * (wide + 2 * p->dim) + threads * attention_room(p, span));
}

// x (T, D) embeddings of all texts, one text after the other -> y (T, D) normed states. work: decoder_bytes of memory
// for all rows and the longest span. The caller has checked that spans fit capacities and context.
EXPORT void decoder_step(const Plan *p, const Text *texts, int64_t n_texts, const float *x, float *y, void *work,
                         int32_t threads) {
    int64_t wide, bytes, d = p->dim, rows = 0, span = 0;
    for (int64_t i = 0; i < n_texts; i++) rows += texts[i].length, span = most(span, texts[i].span);
    sizes(p, rows, &wide, &bytes);
    float *stream = (float *)((char *)work + bytes), *narrow = stream + rows * d, *joined = narrow + rows * d;
    float *scores = joined + rows * wide;
    memcpy(stream, x, 4 * (size_t)(rows * d));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int part = THREAD, parts = THREADS;
        // Each step of a layer needs all of the one before: rows are shared out where rows are prepared, outputs where
        // matrices are multiplied.
        for (int64_t i = 0; i < p->n_layers; i++) {
            const Layer *l = p->layers + i;
            Active a = place(work, &l->qkv, rows);
            for (int64_t t = part; t < rows; t += parts) {
                if (i)
                    for (int64_t j = 0; j < d; j++) stream[t * d + j] += narrow[t * d + j];
                rms_norm(stream + t * d, l->attention_norm, d, p->eps, narrow + t * d);
                take_row(&l->qkv, narrow + t * d, &a, t);
            }
#pragma omp barrier
            linear_share(&l->qkv, &a, rows, joined, wide, part, parts);
#pragma omp barrier
            float *from = joined;
            for (int64_t n = 0; n < n_texts; from += texts[n++].length * wide)
                for (int64_t g = 0; g < p->groups; g++)
                    if ((n * p->groups + g) % parts == part)
                        attention_share(p, from, wide, texts + n, i, g, scores + part * attention_room(p, span));
#pragma omp barrier
            a = place(work, &l->out, rows);
            for (int64_t t = part; t < rows; t += parts) take_row(&l->out, joined + t * wide, &a, t);
#pragma omp barrier
            linear_share(&l->out, &a, rows, narrow, d, part, parts);
#pragma omp barrier
            a = place(work, &l->gate_up, rows);
            for (int64_t t = part; t < rows; t += parts) {
                for (int64_t j = 0; j < d; j++) stream[t * d + j] += narrow[t * d + j];
                rms_norm(stream + t * d, l->ffn_norm, d, p->eps, narrow + t * d);
                take_row(&l->gate_up, narrow + t * d, &a, t);
            }
#pragma omp barrier
            linear_share(&l->gate_up, &a, rows, joined, wide, part, parts);
#pragma omp barrier
            a = place(work, &l->down, rows);
            for (int64_t t = part; t < rows; t += parts) {
                float *gate = joined + t * wide;
                for (int64_t j = 0; j < p->ffn; j++) gate[j] = gate[j] / (1 + exponential(-gate[j])) * gate[p->ffn + j];
                take_row(&l->down, gate, &a, t);
            }
#pragma omp barrier
            linear_share(&l->down, &a, rows, narrow, d, part, parts);
#pragma omp barrier
        }
        for (int64_t t = part; t < rows; t += parts) {
            for (int64_t j = 0; j < d; j++) stream[t * d + j] += narrow[t * d + j];
            rms_norm(stream + t * d, p->norm, d, p->eps, y + t * d);
        }
    }
}

// --------------------------------------------------------------------------------------------- modules that write ahead

typedef struct {
    const float *embed_norm, *hidden_norm; // (D)
    Linear project;                        // (D, 2 D)
    Layer layer;
} Module;

typedef struct {
    Plan plan; // sizes, final norm and angles; its layers are not used
    int64_t n_modules;
    const Module *modules;
    const void *embedding;        // (V, D), floats or int8
    const float *embedding_scale; // (V) of int8, NULL beside floats
    Linear head;                  // (V, D)
} Drafter;

// Where a token is to stand: a run of the vocabulary and which of it may; what comes after it.
typedef struct {
    int64_t first, count;
    const uint8_t *allowed, *last; // (count); after a token of `last` (may be NULL) the run is over
    int64_t next;                  // the place after that
} Place;

// One text and the run of drafts it gets.
typedef struct {
    float *const *keys, *const *values; // of each module, (G, capacity, width)
    int64_t capacity, begun;            // slots; index of the first token that module 0 reads
    int64_t *tokens, base, count;       // the text from index `base` on up to `count`, with room behind it for the drafts
    int64_t *drafted;                   // of each module: index of its next token
    float *const *states;     // of each module: what its predecessor says, from the token before its next one on
    const int64_t *n_waiting; // how many of those there are; the rest is room for what is said in this run
    int64_t size, place, written; // drafts at most, of the first of them, made
} Run;

// The rows of a run of outputs: a layer that gives them, `before` others in front.
static Linear some_rows(const Linear *l, int64_t first, int64_t count, int64_t *before) {
    int64_t start = l->kind == INT8 ? first : first / TILE * TILE;
    int64_t bytes = l->kind == FLOAT ? 4 * l->k : l->kind == INT8 ? l->k : l->k / GROUP * TILE_BYTES / TILE;
    Linear some = *l;
    some.weight = (const char *)l->weight + start * bytes;
    if (l->scale) some.scale = l->scale + start;
    if (l->bias) some.bias = l->bias + start;
    *before = first - start, some.n = *before + count;
    return some;
}

static void embed(const Drafter *d, int64_t token, float *y) {
    int64_t n = d->plan.dim;
    if (!d->embedding_scale) memcpy(y, (const float *)d->embedding + token * n, 4 * (size_t)n);
    for (int64_t i = 0; d->embedding_scale && i < n; i++)
        y[i] = (float)((const int8_t *)d->embedding)[token * n + i] * d->embedding_scale[token];
}

// The next token of each of n states (n, D) that stand before the same place.
static void choose(const Drafter *d, const Place *place, const float *x, int64_t n, int64_t *tokens, void *work,
                   int32_t threads) {
    int64_t before;
    Linear rows = some_rows(&d->head, place->first, place->count, &before);
    float *logits = (float *)((char *)work + place_bytes(&d->head, n));
    linear(&rows, n, x, logits, work, threads);
    for (int64_t i = 0; i < n; i++) {
        const float *row = logits + i * rows.n + before;
        int64_t best = -1;
        for (int64_t j = 0; j < place->count; j++)
            if (place->allowed[j] && (best < 0 || row[j] > row[best])) best = j;
        tokens[i] = place->first + best;
    }
}

// Bytes of memory that `draft` needs; rows: the most that one module reads of all texts, outputs: of the widest place.
EXPORT int64_t draft_bytes(const Drafter *d, int64_t n_runs, int64_t rows, int64_t span, int64_t outputs,
                           int32_t threads) {
    int64_t most_bytes = place_bytes(&d->head, n_runs) + 4 * n_runs * (outputs + TILE);
    for (int64_t i = 0; i < d->n_modules; i++) {
        Plan p = d->plan;
        p.n_layers = 1, p.layers = &d->modules[i].layer;
        most_bytes = most(most_bytes, most(place_bytes(&d->modules[i].project, rows),
                                           decoder_bytes(&p, rows, span, threads)));
    }
    return up(4 * (4 * rows + n_runs) * d->plan.dim, 64) +
           up(n_runs * (int64_t)(sizeof(Text) + 2 * sizeof(int64_t)), 64) + most_bytes;
}

// Let modules 0, 1, ... each write the likeliest token behind every text, until all have their drafts. A module first
// reads what it has not read of the text; its states go behind what waits for the next one. work: draft_bytes.
EXPORT void draft(const Drafter *d, const Place *places, Run *runs, int64_t n_runs, int64_t rows, void *work,
                  int32_t threads) {
    int64_t dim = d->plan.dim;
    float *joined = work, *x = joined + 2 * rows * dim, *y = x + rows * dim, *ends = y + rows * dim;
    Text *texts = (Text *)((char *)work + up((char *)(ends + n_runs * dim) - (char *)work, 64));
    int64_t *going = (int64_t *)(texts + n_runs), *chosen = going + n_runs, n_going;
    void *rest = (char *)work + up((char *)(chosen + n_runs) - (char *)work, 64);
    for (int64_t number = 0; number < d->n_modules; number++) {
        const Module *m = d->modules + number;
        int64_t at = 0;
        n_going = 0;
        for (int64_t i = 0; i < n_runs; i++) {
            Run *r = runs + i;
            if (r->written < number || r->size <= number) continue;
            int64_t first = r->drafted[number], length = r->count - first;
            for (int64_t t = 0; t < length; t++, at++) {
                embed(d, r->tokens[first + t - r->base], y);
                rms_norm(y, m->embed_norm, dim, d->plan.eps, joined + 2 * at * dim);
                rms_norm(r->states[number] + t * dim, m->hidden_norm, dim, d->plan.eps, joined + (2 * at + 1) * dim);
            }
            texts[n_going] = (Text){r->keys + number, r->values + number, r->capacity,
                                    r->count - r->begun - number, length, r->begun + number};
            going[n_going++] = i;
        }
        if (!n_going) break;
        linear(&m->project, at, joined, x, rest, threads);
        Plan p = d->plan;
        p.n_layers = 1, p.layers = &m->layer;
        decoder_step(&p, texts, n_going, x, y, rest, threads);
        at = 0;
        for (int64_t n = 0; n < n_going; at += texts[n++].length) {
            Run *r = runs + going[n];
            if (number + 1 < d->n_modules)
                memcpy(r->states[number + 1] + r->n_waiting[number + 1] * dim, y + at * dim,
                       4 * (size_t)(texts[n].length * dim));
            memcpy(ends + n * dim, y + (at + texts[n].length - 1) * dim, 4 * (size_t)dim);
            r->drafted[number] = r->count;
        }
        for (int64_t n = 0, same; n < n_going; n += same) { // neighbours before the same place are scored together
            const Place *place = places + runs[going[n]].place;
            for (same = 1; n + same < n_going && runs[going[n + same]].place == runs[going[n]].place;) same++;
            choose(d, place, ends + n * dim, same, chosen + n, rest, threads);
        }
        for (int64_t n = 0; n < n_going; n++) {
            Run *r = runs + going[n];
            const Place *place = places + r->place;
            r->tokens[r->count++ - r->base] = chosen[n];
            r->written++;
            if (place->last && place->last[chosen[n] - place->first]) r->size = r->written;
            r->place = place->next;
        }
    }
}

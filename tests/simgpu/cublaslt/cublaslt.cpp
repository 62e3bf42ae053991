// libcublasLt.so.12 for the simulated device: products of bf16, stored or added as bf16 or f32, with a bias, by plain
// loops, as host work in the simulated stream. It refuses whatever it does not know and whatever breaks the real
// library's rules: sizes of attributes, shapes that do not fit, columns that overlap, addresses less aligned than was
// announced, an algorithm of another product, a workspace too small. At the end of the process it says how many
// products it computed.
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <vector>

#define LT_API extern "C" __attribute__((visibility("default"))) int

namespace {

enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
constexpr int TYPE_F32 = 0, TYPE_BF16 = 14, COMPUTE_F32 = 68;
constexpr int TRANSPOSE_A = 3, TRANSPOSE_B = 4, EPILOGUE = 7, BIAS_POINTER = 8;
constexpr uint32_t EPILOGUE_NONE = 1, EPILOGUE_BIAS = 4;
constexpr int WORKSPACE_BYTES = 1, REDUCTION_SCHEMES = 3, ALIGNMENT_A = 5;
constexpr uint32_t REDUCTION_IN_F32 = 2;
// What every algorithm asks for, to see whether it is given.
constexpr uint64_t WORKSPACE = 1 << 20;

using Bf16 = uint16_t;
using HostWork = void (*)(void *);
using LaunchHostFunc = int (*)(void *stream, HostWork, void *argument);

// A matrix that runs by columns.
struct Layout {
    int type;
    uint64_t rows, cols;
    int64_t pitch;
};

struct Description {
    int32_t transpose_a = 0, transpose_b = 0;
    uint32_t epilogue = EPILOGUE_NONE;
    const void *bias = nullptr; // of d's type
};

struct Preference {
    uint64_t workspace = 0;
    uint32_t reduction_schemes = 7;
    std::array<uint32_t, 4> alignment = {256, 256, 256, 256};
};

// What an algorithm was found for.
struct Algorithm {
    int64_t pitches[4];
    uint32_t m, n, k, alignment;
    uint64_t workspace, epilogue;

    bool operator==(const Algorithm &) const = default;
};
static_assert(sizeof(Algorithm) == 64);

struct Heuristic {
    Algorithm algorithm;
    uint64_t workspace;
    int32_t state;
    float waves;
    int32_t reserved[4];
};
static_assert(sizeof(Heuristic) == 96);

struct Product {
    Description description;
    Layout layouts[4];
    const Bf16 *a, *b;
    const void *c;
    void *d;
    float beta;
};

struct Count {
    std::atomic<uint64_t> products = 0;
    ~Count() { fprintf(stderr, "simulated cuBLASLt: %llu products\n", (unsigned long long)products); }
} count;

Status refuse(const char *why)
{
    fprintf(stderr, "simulated cuBLASLt: %s\n", why);
    return INVALID_VALUE;
}

float to_float(Bf16 x)
{
    uint32_t bits = uint32_t(x) << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

// To nearest, ties to even; NaN stays NaN.
Bf16 to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return 0x7fff;
    return Bf16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float load(const void *from, int type, uint64_t index)
{
    return type == TYPE_F32 ? static_cast<const float *>(from)[index]
                            : to_float(static_cast<const Bf16 *>(from)[index]);
}

void store(void *to, int type, uint64_t index, float x)
{
    if (type == TYPE_F32) static_cast<float *>(to)[index] = x;
    else static_cast<Bf16 *>(to)[index] = to_bf16(x);
}

LaunchHostFunc launch_host_func()
{
    void *driver = dlopen("libcuda.so", RTLD_NOW | RTLD_NOLOAD);
    return driver ? LaunchHostFunc(dlsym(driver, "cuLaunchHostFunc")) : nullptr;
}

// d = a·b + beta·c + bias. The product lives as long as the process: a graph may compute it again.
void compute(void *argument)
{
    const Product &p = *static_cast<Product *>(argument);
    const auto &[a, b, c, d] = p.layouts;
    const uint64_t m = d.rows, n = d.cols, k = p.description.transpose_b ? b.cols : b.rows;
    // a by rows, so that both factors of a sum lie one after the other.
    std::vector<float> rows(m * k), col(k);
    for (uint64_t i = 0; i < m; ++i)
        for (uint64_t s = 0; s < k; ++s)
            rows[i * k + s] = to_float(p.a[p.description.transpose_a ? i * a.pitch + s : s * a.pitch + i]);
    for (uint64_t j = 0; j < n; ++j) {
        for (uint64_t s = 0; s < k; ++s)
            col[s] = to_float(p.b[p.description.transpose_b ? s * b.pitch + j : j * b.pitch + s]);
        for (uint64_t i = 0; i < m; ++i) {
            float sum = 0;
            for (uint64_t s = 0; s < k; ++s) sum += rows[i * k + s] * col[s];
            if (p.beta != 0) sum += p.beta * load(p.c, c.type, j * c.pitch + i);
            if (p.description.epilogue == EPILOGUE_BIAS) sum += load(p.description.bias, d.type, i);
            store(p.d, d.type, j * d.pitch + i, sum);
        }
    }
    ++count.products;
}

// The algorithm of a product; its m is 0 if the shapes do not fit.
Algorithm algorithm_of(const Description &description, const Layout *const (&layouts)[4], uint32_t alignment)
{
    const auto [a, b, c, d] = layouts;
    const bool transpose_a = description.transpose_a, transpose_b = description.transpose_b;
    const uint64_t m = d->rows, n = d->cols, k = transpose_b ? b->cols : b->rows;
    const bool fits = (transpose_b ? b->rows : b->cols) == n && c->rows == m && c->cols == n &&
                      (transpose_a ? a->rows == k && a->cols == m : a->rows == m && a->cols == k) &&
                      a->type == TYPE_BF16 && b->type == TYPE_BF16 && c->type == d->type;
    return {{a->pitch, b->pitch, c->pitch, d->pitch}, fits ? uint32_t(m) : 0, uint32_t(n), uint32_t(k), alignment,
            WORKSPACE, description.epilogue + 1024ull * transpose_a + 2048ull * transpose_b + 4096ull * d->type};
}

template <class T> Status set(T &to, const void *value, size_t bytes)
{
    if (bytes != sizeof to) return refuse("an attribute of another size");
    memcpy(&to, value, bytes);
    return SUCCESS;
}

} // namespace

LT_API cublasLtCreate(void **handle)
{
    if (!launch_host_func()) return NOT_INITIALIZED;
    *handle = new char;
    return SUCCESS;
}

LT_API cublasLtDestroy(void *handle)
{
    delete static_cast<char *>(handle);
    return SUCCESS;
}

LT_API cublasLtMatmulDescCreate(Description **description, int compute, int scale)
{
    if (compute != COMPUTE_F32 || scale != TYPE_F32) return refuse("sums are f32 here");
    *description = new Description;
    return SUCCESS;
}

LT_API cublasLtMatmulDescDestroy(Description *description)
{
    delete description;
    return SUCCESS;
}

LT_API cublasLtMatmulDescSetAttribute(Description *description, int attribute, const void *value, size_t bytes)
{
    switch (attribute) {
    case TRANSPOSE_A: return set(description->transpose_a, value, bytes);
    case TRANSPOSE_B: return set(description->transpose_b, value, bytes);
    case EPILOGUE: return set(description->epilogue, value, bytes);
    case BIAS_POINTER: return set(description->bias, value, bytes);
    }
    return refuse("an attribute of a product that is not simulated");
}

LT_API cublasLtMatrixLayoutCreate(Layout **layout, int type, uint64_t rows, uint64_t cols, int64_t pitch)
{
    if (type != TYPE_BF16 && type != TYPE_F32) return refuse("matrices are bf16 or f32 here");
    if (rows == 0 || cols == 0 || pitch < int64_t(rows)) return refuse("columns that overlap, or no elements");
    *layout = new Layout{type, rows, cols, pitch};
    return SUCCESS;
}

LT_API cublasLtMatrixLayoutDestroy(Layout *layout)
{
    delete layout;
    return SUCCESS;
}

LT_API cublasLtMatmulPreferenceCreate(Preference **preference)
{
    *preference = new Preference;
    return SUCCESS;
}

LT_API cublasLtMatmulPreferenceDestroy(Preference *preference)
{
    delete preference;
    return SUCCESS;
}

LT_API cublasLtMatmulPreferenceSetAttribute(Preference *preference, int attribute, const void *value, size_t bytes)
{
    if (attribute == WORKSPACE_BYTES) return set(preference->workspace, value, bytes);
    if (attribute == REDUCTION_SCHEMES) return set(preference->reduction_schemes, value, bytes);
    if (attribute >= ALIGNMENT_A && attribute < ALIGNMENT_A + 4)
        return set(preference->alignment[attribute - ALIGNMENT_A], value, bytes);
    return refuse("an attribute of a preference that is not simulated");
}

LT_API cublasLtMatmulAlgoGetHeuristic(void *, const Description *description, const Layout *a, const Layout *b,
                                      const Layout *c, const Layout *d, const Preference *preference, int wanted,
                                      Heuristic *found, int *found_count)
{
    *found_count = 0;
    if (wanted < 1) return refuse("no algorithm is asked for");
    if (preference->reduction_schemes & ~REDUCTION_IN_F32) return refuse("parts of sums could be rounded to bf16");
    for (uint32_t alignment : preference->alignment)
        if (alignment != preference->alignment[0]) return NOT_SUPPORTED;
    const Algorithm algorithm = algorithm_of(*description, {a, b, c, d}, preference->alignment[0]);
    if (algorithm.m == 0) return refuse("shapes that do not fit");
    if (preference->workspace < WORKSPACE) return NOT_SUPPORTED;
    *found = {algorithm, WORKSPACE, SUCCESS, 1, {}};
    *found_count = 1;
    return SUCCESS;
}

LT_API cublasLtMatmul(void *, const Description *description, const float *alpha, const Bf16 *a, const Layout *a_layout,
                      const Bf16 *b, const Layout *b_layout, const float *beta, const void *c, const Layout *c_layout,
                      void *d, const Layout *d_layout, const Algorithm *algorithm, void *workspace,
                      uint64_t workspace_bytes, void *stream)
{
    if (*alpha != 1) return refuse("alpha is 1 here");
    if (algorithm_of(*description, {a_layout, b_layout, c_layout, d_layout}, algorithm->alignment) != *algorithm)
        return refuse("an algorithm of another product");
    for (const void *address : {(const void *)a, (const void *)b, (const void *)c, (const void *)d})
        if (!address || uintptr_t(address) % algorithm->alignment) return refuse("an operand that is not aligned");
    if (description->epilogue == EPILOGUE_BIAS ? !description->bias : description->epilogue != EPILOGUE_NONE)
        return refuse("an epilogue that is not simulated, or no bias");
    if (c == d && c_layout->pitch != d_layout->pitch) return refuse("c in place of d, but with another layout");
    if (!workspace || workspace_bytes < algorithm->workspace) return refuse("a workspace too small");
    auto *product =
        new Product{*description, {*a_layout, *b_layout, *c_layout, *d_layout}, a, b, c, d, *beta};
    return launch_host_func()(stream, compute, product) ? EXECUTION_FAILED : SUCCESS;
}

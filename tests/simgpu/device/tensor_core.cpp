// Matrix instructions of one warp. Fragments: lane = 4 * g + t holds pairs of columns 2t, 2t + 1 of rows g
// (and g + 8).
#include "tensor_core.h"
#include "fiber.h"
#include <cstring>

namespace sim {

namespace {

// Numbers above the translator's own.
enum Operation { LDMATRIX = 1000, STMATRIX = 1100, MOVMATRIX = 1200, MMA = 1300 };

using Tile = uint16_t[8][8];

// The element pair of an 8x8 tile that a lane holds.
uint32_t fragment(const Tile &tile, uint32_t lane, bool transpose)
{
    uint32_t g = lane / 4, t = lane % 4 * 2;
    uint32_t low = transpose ? tile[t][g] : tile[g][t], high = transpose ? tile[t + 1][g] : tile[g][t + 1];
    return low | high << 16;
}

void put_fragment(Tile &tile, uint32_t lane, bool transpose, uint32_t pair)
{
    uint32_t g = lane / 4, t = lane % 4 * 2;
    (transpose ? tile[t][g] : tile[g][t]) = uint16_t(pair);
    (transpose ? tile[t + 1][g] : tile[g][t + 1]) = uint16_t(pair >> 16);
}

struct Matrices {
    int count;
    bool transpose;
    uint32_t address; // of row lane % 8 of tile lane / 8
    uint32_t *registers;
    Site site;
};

// The row is touched by the lane that named it.
unsigned char *row_access(const Matrices &lane_args, uint32_t lane, Access access)
{
    Fiber *caller = tls.fiber;
    tls.fiber = &tls.block->fibers[caller->warp->index * 32 + lane];
    unsigned char *row = shared_access(lane_args.address, 16, access, lane_args.site);
    tls.fiber = caller;
    return row;
}

void load_matrices(void *const *args, uint32_t, void *)
{
    for (int m = 0; m < static_cast<Matrices *>(args[0])->count; ++m) {
        Tile tile;
        for (uint32_t row = 0; row < 8; ++row) {
            uint32_t lane = uint32_t(m) * 8 + row;
            memcpy(tile[row], row_access(*static_cast<Matrices *>(args[lane]), lane, Access::read), 16);
        }
        for (uint32_t lane = 0; lane < 32; ++lane) {
            auto &a = *static_cast<Matrices *>(args[lane]);
            a.registers[m] = fragment(tile, lane, a.transpose);
        }
    }
}

void store_matrices(void *const *args, uint32_t, void *)
{
    for (int m = 0; m < static_cast<Matrices *>(args[0])->count; ++m) {
        Tile tile;
        for (uint32_t lane = 0; lane < 32; ++lane) {
            auto &a = *static_cast<Matrices *>(args[lane]);
            put_fragment(tile, lane, a.transpose, a.registers[m]);
        }
        for (uint32_t row = 0; row < 8; ++row) {
            uint32_t lane = uint32_t(m) * 8 + row;
            memcpy(row_access(*static_cast<Matrices *>(args[lane]), lane, Access::write), tile[row], 16);
        }
    }
}

struct Product {
    float *d;
    const uint32_t *a, *b;
};

template <int K, Half TYPE> void multiply_fragments(void *const *args, uint32_t, void *)
{
    float a[16][K], b[K][8], c[16][8];
    for (uint32_t lane = 0; lane < 32; ++lane) {
        auto &p = *static_cast<Product *>(args[lane]);
        uint32_t g = lane / 4, t = lane % 4 * 2;
        for (uint32_t i = 0; i < K / 4; ++i) {
            uint32_t row = g + i % 2 * 8, k = t + i / 2 * 8;
            a[row][k] = widen(uint16_t(p.a[i]), TYPE);
            a[row][k + 1] = widen(uint16_t(p.a[i] >> 16), TYPE);
        }
        for (uint32_t i = 0; i < K / 8; ++i) {
            b[t + i * 8][g] = widen(uint16_t(p.b[i]), TYPE);
            b[t + i * 8 + 1][g] = widen(uint16_t(p.b[i] >> 16), TYPE);
        }
        for (uint32_t i = 0; i < 2; ++i) memcpy(&c[g + i * 8][t], p.d + i * 2, 8);
    }
    multiply<16, 8, K>(c, a, b);
    for (uint32_t lane = 0; lane < 32; ++lane) {
        auto &p = *static_cast<Product *>(args[lane]);
        for (uint32_t i = 0; i < 2; ++i) memcpy(p.d + i * 2, &c[lane / 4 + i * 8][lane % 4 * 2], 8);
    }
}

void transpose_fragments(void *const *args, uint32_t, void *)
{
    Tile tile;
    for (uint32_t lane = 0; lane < 32; ++lane)
        put_fragment(tile, lane, false, *static_cast<uint32_t *>(args[lane]));
    for (uint32_t lane = 0; lane < 32; ++lane)
        *static_cast<uint32_t *>(args[lane]) = fragment(tile, lane, true);
}

} // namespace

void ldmatrix(uint32_t *out, int count, bool transpose, uint32_t address, Site site)
{
    Matrices args{count, transpose, address, out, site};
    warp_collective(~0u, LDMATRIX + count * 2 + transpose, &args, load_matrices, nullptr, site);
}

void stmatrix(const uint32_t *in, int count, bool transpose, uint32_t address, Site site)
{
    Matrices args{count, transpose, address, const_cast<uint32_t *>(in), site};
    warp_collective(~0u, STMATRIX + count * 2 + transpose, &args, store_matrices, nullptr, site);
}

uint32_t movmatrix(uint32_t a, Site site)
{
    warp_collective(~0u, MOVMATRIX, &a, transpose_fragments, nullptr, site);
    return a;
}

void mma(float *d, const uint32_t *a, const uint32_t *b, int k, Half type, Site site)
{
    Product args{d, a, b};
    Collective run;
    if (type == Half::bf16)
        run = k == 16 ? multiply_fragments<16, Half::bf16> : multiply_fragments<8, Half::bf16>;
    else
        run = k == 16 ? multiply_fragments<16, Half::f16> : multiply_fragments<8, Half::f16>;
    warp_collective(~0u, MMA + k * 2 + int(type), &args, run, nullptr, site);
}

} // namespace sim

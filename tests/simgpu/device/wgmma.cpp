// wgmma: 64 x N products of four warps, operands named by descriptors of shared memory.
#include "tensor_core.h"
#include "fiber.h"
#include <cstring>

namespace sim {

namespace {

constexpr int M = 64, K = 16, MAX_N = 256, THREADS = 128;

Warpgroup &warpgroup(Site site)
{
    Block &block = *tls.block;
    if (block.threads % THREADS) stop(Fault::launch_failed, "wgmma", site, "the block is not made of whole warpgroups");
    return block.warpgroups[tls.fiber->index / THREADS];
}

// A matrix descriptor (PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout").
struct Descriptor {
    uint32_t start, leading, stride;
    uint32_t swizzle; // 0 none, 1 2 3: 32, 64, 128 bytes

    explicit Descriptor(uint64_t bits)
        : start(uint32_t(bits & 0x3fff) << 4), leading(uint32_t(bits >> 16 & 0x3fff) << 4),
          stride(uint32_t(bits >> 32 & 0x3fff) << 4), swizzle(uint32_t(4 - (bits >> 62)) % 4)
    {
    }

    // The address of 8 neighbouring elements: `unit` counts eights along the contiguous direction, `row` goes across it.
    uint32_t address(uint32_t unit, uint32_t row, bool transpose) const
    {
        uint32_t offset;
        if (!transpose) // K is contiguous: rows of an atom 16 << swizzle bytes apart, atoms of 8 rows `stride` apart
            offset = row % 8 * (16u << swizzle) + row / 8 * stride + unit * (swizzle ? 16 : leading);
        else if (swizzle) // M or N is contiguous: 1 << swizzle units in an atom, atoms `leading` apart; 8 k `stride` apart
            offset = unit % (1u << swizzle) * 16 + (unit >> swizzle) * leading + row % 8 * (16u << swizzle) + row / 8 * stride;
        else
            offset = unit * stride + row % 8 * 16 + row / 8 * leading;
        uint32_t at = start + offset;
        return at ^ (at >> 7 & ((1u << swizzle) - 1)) << 4;
    }
};

// Reads an operand as [k][index] and notes which 16-byte rows it took.
template <class Put>
void read_operand(const Descriptor &d, int size, bool transpose, Half type, std::vector<uint32_t> &rows, Site site, Put put)
{
    uint32_t units = uint32_t(transpose ? size : K) / 8, across = uint32_t(transpose ? K : size);
    for (uint32_t row = 0; row < across; ++row)
        for (uint32_t unit = 0; unit < units; ++unit) {
            uint32_t at = d.address(unit, row, transpose);
            uint16_t values[8];
            memcpy(values, shared_range(at, 16, Access::read, site), 16);
            check_proxy(at, 16, site);
            rows.push_back(at);
            for (uint32_t e = 0; e < 8; ++e) {
                float value = widen(values[e], type);
                if (transpose)
                    put(row, unit * 8 + e, value);
                else
                    put(unit * 8 + e, row, value);
            }
        }
}

// As floats; too large for a thread's stack.
struct Operands {
    float a[M][K], b[K][MAX_N], c[MAX_N];
};

void product(Warpgroup &group, const WgmmaShape &shape, bool scale_d, std::vector<uint32_t> &rows, Site site)
{
    static thread_local std::unique_ptr<Operands> kept = std::make_unique<Operands>();
    Operands &operands = *kept;
    float (&a)[M][K] = operands.a, (&b)[K][MAX_N] = operands.b, (&c)[MAX_N] = operands.c;
    Half type = shape.f16 ? Half::f16 : Half::bf16;
    float sign_a = shape.negate_a ? -1.f : 1.f, sign_b = shape.negate_b ? -1.f : 1.f;
    if (group.a[0]) {
        for (uint32_t t = 0; t < THREADS; ++t)
            for (uint32_t i = 0; i < 4; ++i) {
                uint32_t row = t / 32 * 16 + t % 32 / 4 + i % 2 * 8, k = t % 4 * 2 + i / 2 * 8;
                a[row][k] = sign_a * widen(uint16_t(group.a[t][i]), type);
                a[row][k + 1] = sign_a * widen(uint16_t(group.a[t][i] >> 16), type);
            }
    } else {
        read_operand(Descriptor(group.a_desc), M, shape.transpose_a, type, rows, site,
                     [&](uint32_t k, uint32_t i, float v) { a[i][k] = sign_a * v; });
    }
    // Columns are kept in the order of the threads that hold them, so that a thread's are neighbours.
    uint32_t quarter = uint32_t(shape.n) / 4;
    auto place = [&](uint32_t n) { return n % 8 / 2 * quarter + n / 8 * 2 + n % 2; };
    read_operand(Descriptor(group.b_desc), shape.n, shape.transpose_b, type, rows, site,
                 [&](uint32_t k, uint32_t n, float v) { b[k][place(n)] = sign_b * v; });
    for (uint32_t row = 0; row < M; ++row) {
        uint32_t half = row % 16 / 8, first = row / 16 * 32 + row % 8 * 4;
        for (uint32_t q = 0; q < 4; ++q)
            for (uint32_t j = 0; j < quarter; j += 2)
                for (uint32_t i = 0; i < 2; ++i)
                    c[q * quarter + j + i] = scale_d ? group.d[first + q][j * 2 + half * 2 + i] : 0.f;
        for (uint32_t k = 0; k < K; ++k)
            for (int n = 0; n < shape.n; ++n) c[n] += a[row][k] * b[k][n];
        for (uint32_t q = 0; q < 4; ++q)
            for (uint32_t j = 0; j < quarter; j += 2) memcpy(group.d[first + q] + j * 2 + half * 2, c + q * quarter + j, 8);
    }
}

} // namespace

void wg_fence(Site) {}

void wg_commit()
{
    Warpgroup &group = warpgroup({});
    group.group = std::max(group.group, ++tls.fiber->wgmma_groups);
}

void wg_wait(int pending)
{
    Block &block = *tls.block;
    Warpgroup &group = warpgroup({});
    std::erase_if(group.in_flight, [&](const Warpgroup::Operands &operands) {
        if (operands.group >= tls.fiber->wgmma_groups - pending) return false;
        for (uint32_t row : operands.rows)
            for (uint32_t i = row / GRANULE; i < (row + 16) / GRANULE; ++i) --block.state[i];
        return true;
    });
}

void wgmma(float *d, const WgmmaShape &shape, uint64_t a_desc, const uint32_t *a_regs, uint64_t b_desc, bool scale_d,
           Site site)
{
    Block &block = *tls.block;
    Fiber &fiber = *tls.fiber;
    Warpgroup &group = warpgroup(site);
    if (group.arrived == 0) {
        group.a_desc = a_desc;
        group.b_desc = b_desc;
    } else if ((!a_regs && group.a_desc != a_desc) || group.b_desc != b_desc) {
        stop(Fault::launch_failed, "divergence", site, "threads of a warpgroup issue wgmma with different descriptors");
    }
    uint32_t thread = fiber.index % THREADS;
    group.d[thread] = d;
    group.a[thread] = a_regs;
    if (++group.arrived < THREADS) {
        wait(block, Waiting::warp, 0);
        return;
    }
    group.arrived = 0;
    block.fruitless_polls = 0;
    uint32_t first = fiber.index - thread;
    for (uint32_t i = first; i < first + THREADS; ++i) {
        block.fibers[i].waiting = Waiting::no;
        block.make_ready(i);
    }
    Warpgroup::Operands operands{{}, group.group};
    product(group, shape, scale_d, operands.rows, site);
    for (uint32_t row : operands.rows)
        for (uint32_t i = row / GRANULE; i < (row + 16) / GRANULE; ++i) ++block.state[i];
    group.in_flight.push_back(std::move(operands));
}

} // namespace sim

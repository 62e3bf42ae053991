// wgmma: 64 x N products of four warps, operands named by descriptors of shared memory.
#include "fiber.h"
#include "tensor_core.h"
#include <cstring>
#include <memory>

namespace sim {

namespace {

constexpr uint32_t M = 64, K = 16, MAX_N = 256, THREADS = Warpgroup::THREADS;

Warpgroup &warpgroup(Site site)
{
    Block &block = *tls.block;
    if (block.threads % THREADS)
        stop(Fault::launch_failed, "wgmma", site, "the block is not made of whole warpgroups");
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

    // The address of 8 neighbouring elements: `unit` counts eights along the contiguous direction, `row` goes
    // across it.
    uint32_t address(uint32_t unit, uint32_t row, bool transpose) const
    {
        uint32_t offset;
        if (!transpose) // K is contiguous: rows of an atom 16 << swizzle bytes apart, atoms of 8 rows
                        // `stride` apart
            offset = row % 8 * (16u << swizzle) + row / 8 * stride + unit * (swizzle ? 16 : leading);
        else if (swizzle) // M or N is contiguous: 1 << swizzle units in an atom, atoms `leading` apart; 8 k
                          // `stride` apart
            offset = unit % (1u << swizzle) * 16 + (unit >> swizzle) * leading + row % 8 * (16u << swizzle) +
                     row / 8 * stride;
        else
            offset = unit * stride + row % 8 * 16 + row / 8 * leading;
        uint32_t at = start + offset;
        return at ^ (at >> 7 & ((1u << swizzle) - 1)) << 4;
    }
};

// Calls `each` with the address of every 16-byte row of an operand and where its eight elements belong.
template <class Each> void for_rows(uint64_t descriptor, uint32_t size, bool transpose, Each each)
{
    Descriptor d(descriptor);
    uint32_t units = (transpose ? size : K) / 8, across = transpose ? K : size;
    for (uint32_t row = 0; row < across; ++row)
        for (uint32_t unit = 0; unit < units; ++unit) each(d.address(unit, row, transpose), unit * 8, row);
}

// Calls `put(k, index, value)` for every element of an operand.
template <class Put> void read_operand(uint64_t descriptor, uint32_t size, bool transpose, Half type, Put put)
{
    for_rows(descriptor, size, transpose, [&](uint32_t address, uint32_t first, uint32_t row) {
        uint16_t values[8];
        memcpy(values, tls.block->arena + address, 16);
        for (uint32_t e = 0; e < 8; ++e) {
            float value = widen(values[e], type);
            if (transpose)
                put(row, first + e, value);
            else
                put(first + e, row, value);
        }
    });
}

// As floats; too large for a thread's stack.
struct Operands {
    float a[M][K], b[K][MAX_N], c[MAX_N];
};

void multiply(const Warpgroup::Product &product, std::vector<float> &values)
{
    static thread_local std::unique_ptr<Operands> operands = std::make_unique<Operands>();
    auto &[a, b, c] = *operands;
    const WgmmaShape &shape = product.shape;
    Half type = shape.f16 ? Half::f16 : Half::bf16;
    float sign_a = shape.negate_a ? -1.f : 1.f, sign_b = shape.negate_b ? -1.f : 1.f;
    uint32_t n = uint32_t(shape.n), quarter = n / 4;
    if (product.a_in_registers) {
        for (uint32_t t = 0; t < THREADS; ++t)
            for (uint32_t i = 0; i < 4; ++i) {
                uint32_t row = t / 32 * 16 + t % 32 / 4 + i % 2 * 8, k = t % 4 * 2 + i / 2 * 8;
                a[row][k] = sign_a * widen(uint16_t(product.a[t][i]), type);
                a[row][k + 1] = sign_a * widen(uint16_t(product.a[t][i] >> 16), type);
            }
    } else {
        read_operand(product.a_desc, M, shape.transpose_a, type,
                     [&, &a = a](uint32_t k, uint32_t i, float v) { a[i][k] = sign_a * v; });
    }
    // Columns are kept in the order of the threads that hold them, so that a thread's are neighbours.
    auto place = [&](uint32_t column) { return column % 8 / 2 * quarter + column / 8 * 2 + column % 2; };
    read_operand(product.b_desc, n, shape.transpose_b, type,
                 [&, &b = b](uint32_t k, uint32_t column, float v) { b[k][place(column)] = sign_b * v; });
    for (uint32_t row = 0; row < M; ++row) {
        uint32_t half = row % 16 / 8, first = row / 16 * 32 + row % 8 * 4;
        // Each of four threads holds pairs of columns of this row, and of the one eight below it.
        auto held = [&](uint32_t q, uint32_t j) {
            return values.data() + (first + q) * (n / 2) + j * 2 + half * 2;
        };
        for (uint32_t q = 0; q < 4; ++q)
            for (uint32_t j = 0; j < quarter; j += 2)
                for (uint32_t i = 0; i < 2; ++i)
                    c[q * quarter + j + i] = product.scale_d ? held(q, j)[i] : 0.f;
        for (uint32_t k = 0; k < K; ++k)
            for (uint32_t j = 0; j < n; ++j) c[j] += a[row][k] * b[k][j];
        for (uint32_t q = 0; q < 4; ++q)
            for (uint32_t j = 0; j < quarter; j += 2) memcpy(held(q, j), &c[q * quarter + j], 8);
    }
}

Warpgroup::Accumulators &accumulators(Warpgroup &group, const Warpgroup::Product &product)
{
    for (Warpgroup::Accumulators &a : group.accumulators)
        if (a.d[0] == product.d[0]) return a;
    uint32_t count = uint32_t(product.shape.n) / 2;
    return group.accumulators.emplace_back(product.d, count, std::vector<float>(THREADS * count),
                                           std::array<bool, THREADS>{});
}

void take(Warpgroup::Accumulators &a)
{
    for (uint32_t t = 0; t < THREADS; ++t) {
        if (a.taken[t]) continue;
        memcpy(a.values.data() + t * a.count, a.d[t], a.count * sizeof(float));
        memset(a.d[t], POISON, a.count * sizeof(float));
        a.taken[t] = true;
    }
}

// A thread has its accumulators again once no product under way writes them.
void give_back(Warpgroup &group, uint32_t thread)
{
    for (Warpgroup::Accumulators &a : group.accumulators) {
        if (!a.taken[thread]) continue;
        auto writes = [&](const Warpgroup::Product &product) {
            return !product.done && product.d[0] == a.d[0];
        };
        if (std::any_of(group.in_flight.begin(), group.in_flight.end(), writes)) continue;
        memcpy(a.d[thread], a.values.data() + thread * a.count, a.count * sizeof(float));
        a.taken[thread] = false;
    }
}

void finish(Warpgroup &group, Warpgroup::Product &product)
{
    if (product.done) return;
    multiply(product, accumulators(group, product).values);
    product.done = true;
}

// Checks the operands in shared memory and marks them as being read.
void read_rows(Warpgroup::Product &product, Site site)
{
    auto read = [&](uint32_t address, uint32_t, uint32_t) {
        shared_range(address, 16, Access::read, site);
        check_proxy(address, 16, site);
        product.rows.push_back(address);
    };
    if (!product.a_in_registers) for_rows(product.a_desc, M, product.shape.transpose_a, read);
    for_rows(product.b_desc, uint32_t(product.shape.n), product.shape.transpose_b, read);
    for (uint32_t row : product.rows)
        for (uint32_t i = row / GRANULE; i < (row + 16) / GRANULE; ++i) ++tls.block->state[i];
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
    std::erase_if(group.in_flight, [&](Warpgroup::Product &product) {
        if (product.group >= tls.fiber->wgmma_groups - pending) return false;
        finish(group, product);
        for (uint32_t row : product.rows)
            for (uint32_t i = row / GRANULE; i < (row + 16) / GRANULE; ++i) --block.state[i];
        return true;
    });
    give_back(group, tls.fiber->index % THREADS);
}

void wgmma(float *d, const WgmmaShape &shape, uint64_t a_desc, const uint32_t *a_regs, uint64_t b_desc,
           bool scale_d, Site site)
{
    Block &block = *tls.block;
    Fiber &fiber = *tls.fiber;
    Warpgroup &group = warpgroup(site);
    Warpgroup::Product &product = group.issued;
    if (group.arrived == 0) {
        product.shape = shape;
        product.a_desc = a_desc;
        product.b_desc = b_desc;
        product.a_in_registers = a_regs != nullptr;
        product.scale_d = scale_d;
    } else if ((!a_regs && product.a_desc != a_desc) || product.b_desc != b_desc ||
               product.shape.n != shape.n) {
        stop(Fault::launch_failed, "divergence", site, "threads of a warpgroup issue different wgmma");
    }
    uint32_t thread = fiber.index % THREADS;
    product.d[thread] = d;
    if (a_regs) std::copy_n(a_regs, 4, product.a[thread].begin());
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
    product.rows.clear();
    product.group = group.group;
    product.done = false;
    product.site = site;
    read_rows(product, site);
    group.in_flight.push_back(product);
    take(accumulators(group, product));
    if (settings.async == Async::lazy) return;
    finish(group, group.in_flight.back());
    for (uint32_t t = 0; t < THREADS; ++t) give_back(group, t);
}

} // namespace sim

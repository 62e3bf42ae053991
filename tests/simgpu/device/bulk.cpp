// Bulk copies: contiguous ones and boxes of a tensor map (TMA), from device memory to shared memory and back.
#include "fiber.h"
#include <cstring>

namespace sim {

namespace {

// A tile in shared memory is made of rows; 16-byte units of it change places by a pattern of the address.
uint32_t swizzled(uint32_t address, uint32_t swizzle)
{
    uint32_t units = (1u << swizzle) - 1;
    return address ^ (address >> 7 & units) << 4;
}

const TensorMap &checked(int rank, const TensorMap *map, uint32_t shared, Site site)
{
    if (uintptr_t(map) % 64)
        stop(Fault::launch_failed, "TMA", site, "the tensor map is not aligned to 64 bytes");
    if (map->magic != TensorMap::MAGIC) stop(Fault::launch_failed, "TMA", site, "this is not a tensor map");
    if (map->rank != rank)
        stop(Fault::launch_failed, "TMA", site, "the tensor map has another rank than the instruction");
    // A swizzle repeats every 256 << mode bytes; a tile that starts elsewhere would be read back wrongly.
    uint32_t alignment = map->swizzle ? 128u << map->swizzle : 128;
    if (shared % alignment)
        stop(Fault::misaligned_address, "TMA", site,
             "the tile in shared memory is not aligned to " + std::to_string(alignment));
    return *map;
}

uint32_t box_bytes(const TensorMap &map)
{
    uint32_t bytes = map.element_bytes;
    for (int d = 0; d < map.rank; ++d) bytes *= map.box[d];
    return bytes;
}

// The box at `coords` in pieces of at most 16 bytes; those outside the tensor have no address.
std::vector<Piece> pieces_of(const TensorMap &map, const int32_t *coords, uint32_t shared)
{
    std::vector<Piece> pieces;
    uint32_t row_bytes = map.box[0] * map.element_bytes, rows = box_bytes(map) / row_bytes;
    for (uint32_t row = 0; row < rows; ++row) {
        unsigned char *start = map.address;
        bool outside = false;
        uint32_t rest = row;
        for (int d = 1; d < map.rank; ++d) {
            int64_t at = int64_t(coords[d]) + rest % map.box[d];
            rest /= map.box[d];
            outside |= at < 0 || uint64_t(at) >= map.size[d];
            start += at * int64_t(map.stride[d - 1]);
        }
        for (uint32_t unit = 0; unit < row_bytes; unit += 16) {
            uint32_t to = swizzled(shared + row * row_bytes + unit, map.swizzle);
            int64_t first = int64_t(coords[0]) + unit / map.element_bytes;
            uint32_t elements = 16 / map.element_bytes;
            if (!outside && first >= 0 && uint64_t(first + elements) <= map.size[0]) {
                pieces.push_back({to, start + first * map.element_bytes, 16});
                continue;
            }
            for (uint32_t e = 0; e < elements; ++e) {
                bool inside = !outside && first + e >= 0 && uint64_t(first + e) < map.size[0];
                pieces.push_back({to + e * map.element_bytes,
                                  inside ? start + (first + e) * map.element_bytes : nullptr,
                                  map.element_bytes});
            }
        }
    }
    return pieces;
}

std::vector<Piece> pieces_of(unsigned char *global, uint32_t shared, uint32_t bytes, Site site)
{
    if (shared % 16 || uintptr_t(global) % 16 || bytes % 16)
        stop(Fault::misaligned_address, "bulk copy", site, "addresses and size must be multiples of 16");
    std::vector<Piece> pieces;
    for (uint32_t i = 0; i < bytes; i += 16) pieces.push_back({shared + i, global + i, 16});
    return pieces;
}

void land(Block &block, const BulkLoad &load)
{
    for (const Piece &piece : load.pieces) {
        if (piece.global)
            memcpy(block.arena + piece.shared, piece.global, piece.bytes);
        else
            memset(block.arena + piece.shared, load.fill, piece.bytes);
        for (uint32_t i = piece.shared / GRANULE; i < (piece.shared + piece.bytes) / GRANULE; ++i)
            block.state[i] = 0;
        stamp_copy(block.cells.data() + piece.shared / GRANULE, piece.bytes / GRANULE, block.run, load.warp,
                   load.time);
    }
    Mbarrier &m = find_mbarrier(load.bar, load.site);
    m.clock.join(load.clock);
    m.proxy.join(load.proxy);
    m.bytes -= load.bytes;
    end_phase_if_complete(m);
}

void load(std::vector<Piece> pieces, uint32_t bytes, uint32_t bar, uint8_t fill, Site site)
{
    Block &block = *tls.block;
    Warp &warp = *tls.fiber->warp;
    for (const Piece &piece : pieces) {
        shared_range(piece.shared, piece.bytes, Access::write, site);
        if (piece.global)
            check_global_range(piece.global, piece.bytes, Access::read, block.accessor(Kind::plain), site);
    }
    for (const Piece &piece : pieces)
        for (uint32_t i = piece.shared / GRANULE; i < (piece.shared + piece.bytes) / GRANULE; ++i)
            block.state[i] = IN_FLIGHT;
    find_mbarrier(bar, site);
    // The copy has a time of its own in its warp's clock: who does not know it may not read the data.
    warp.tick();
    BulkLoad issued{std::move(pieces), bar,        bytes,      fill, warp.index,
                    warp.now(),        warp.clock, warp.proxy, site};
    issued.proxy.time[warp.index] = warp.now();
    warp.tick();
    if (settings.async == Async::eager)
        land(block, issued);
    else
        block.loads.push_back(std::move(issued));
}

// The asynchronous proxy reads shared memory: what threads wrote there must have been fenced for it.
void store(std::vector<Piece> pieces, Site site)
{
    Block &block = *tls.block;
    StoreQueue &queue = tls.fiber->stores;
    for (const Piece &piece : pieces) {
        shared_range(piece.shared, piece.bytes, Access::read, site);
        check_proxy(piece.shared, piece.bytes, site);
        for (uint32_t i = piece.shared / GRANULE; i < (piece.shared + piece.bytes) / GRANULE; ++i)
            ++block.state[i];
        if (piece.global && !device_range_valid(piece.global, piece.bytes))
            stop(Fault::illegal_address, "illegal address", site,
                 describe_address(piece.global, piece.bytes, Access::write));
    }
    queue.stores.push_back({std::move(pieces), queue.group, site});
}

void land(Block &block, const BulkStore &store)
{
    for (const Piece &piece : store.pieces) {
        for (uint32_t i = piece.shared / GRANULE; i < (piece.shared + piece.bytes) / GRANULE; ++i)
            --block.state[i];
        if (!piece.global) continue;
        check_global_range(piece.global, piece.bytes, Access::write, block.accessor(Kind::plain), store.site);
        memcpy(piece.global, block.arena + piece.shared, piece.bytes);
    }
}

} // namespace

void check_proxy(uint32_t address, uint32_t bytes, Site site)
{
    if (!settings.checks) return;
    Block &block = *tls.block;
    const Warp &warp = *tls.fiber->warp;
    for (uint32_t i = address / GRANULE; i < (address + bytes) / GRANULE; ++i) {
        const Cell &cell = block.cells[i];
        if (cell.write_run != block.run || cell.writer >= COPY) continue;
        if (cell.write_time <= warp.proxy.time[cell.writer / 32]) continue;
        report(Fault::launch_failed, "missing fence.proxy.async", site,
               "shared memory written by thread " + std::to_string(cell.writer) +
                   " is read by an asynchronous operation");
        return;
    }
}

bool land_load_of(Block &block, uint32_t bar)
{
    for (size_t i = 0; i < block.loads.size(); ++i) {
        if (block.loads[i].bar != bar) continue;
        BulkLoad load = std::move(block.loads[i]);
        block.loads.erase(block.loads.begin() + long(i));
        land(block, load);
        return true;
    }
    return false;
}

bool land_any_load(Block &block)
{
    if (block.loads.empty()) return false;
    return land_load_of(block, block.loads[block.random() % block.loads.size()].bar);
}

void bulk_load(uint32_t dst, const void *src, uint32_t bytes, uint32_t bar, Site site)
{
    auto *from = static_cast<unsigned char *>(const_cast<void *>(src));
    load(pieces_of(from, dst, bytes, site), bytes, bar, 0, site);
}

void bulk_store(void *dst, uint32_t src, uint32_t bytes, Site site)
{
    store(pieces_of(static_cast<unsigned char *>(dst), src, bytes, site), site);
}

void tma_load(int rank, uint32_t dst, const TensorMap *map, const int32_t *coords, uint32_t bar, Site site)
{
    const TensorMap &m = checked(rank, map, dst, site);
    load(pieces_of(m, coords, dst), box_bytes(m), bar, m.nan_fill ? POISON : 0, site);
}

void tma_store(int rank, const TensorMap *map, const int32_t *coords, uint32_t src, Site site)
{
    store(pieces_of(checked(rank, map, src, site), coords, src), site);
}

void bulk_commit() { ++tls.fiber->stores.group; }

// Whether a store is done reading or done writing makes no difference here: both happen at the first wait.
void bulk_wait(int pending, bool)
{
    Block &block = *tls.block;
    StoreQueue &queue = tls.fiber->stores;
    size_t done = 0;
    while (done < queue.stores.size() && queue.stores[done].group < queue.group - pending)
        land(block, queue.stores[done++]);
    queue.stores.erase(queue.stores.begin(), queue.stores.begin() + long(done));
}

} // namespace sim

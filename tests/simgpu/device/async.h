// Asynchronous work inside a block: its queues and barriers.
#pragma once
#include "race.h"
#include <vector>

namespace sim {

// One cp.async of one thread.
struct Copy {
    uint32_t dst;
    const void *src;
    uint32_t bytes, src_bytes;
    int group;
    Site site;
};
struct CopyQueue {
    std::vector<Copy> copies;
    int group = 0;
};

struct Mbarrier {
    uint32_t address;
    uint32_t count, pending;
    int64_t bytes;  // expected minus landed, this phase
    uint64_t phase; // completed phases
    Clock clock;    // what those who arrived know
    Clock proxy;
};

// A descriptor as the driver's cuTensorMapEncodeTiled writes it.
struct alignas(64) TensorMap {
    static constexpr uint64_t MAGIC = 0x70616d726f736e74;
    uint64_t magic;
    unsigned char *address;
    uint64_t stride[4]; // bytes, of dimensions 1..
    uint64_t size[5];
    uint16_t box[5];
    uint8_t rank, element_bytes;
    uint8_t swizzle; // 0 none, 1 2 3: 32, 64, 128 bytes
    uint8_t nan_fill;
    uint8_t unused[128 - 102];
};
static_assert(sizeof(TensorMap) == 128);

// A contiguous piece of a bulk copy; without `global` it is filled (loads) or left out (stores).
struct Piece {
    uint32_t shared;
    unsigned char *global;
    uint32_t bytes;
};

struct BulkLoad {
    std::vector<Piece> pieces;
    uint32_t bar, bytes;
    uint8_t fill;
    uint32_t warp, time;
    Clock clock, proxy;
    Site site;
};

struct BulkStore {
    std::vector<Piece> pieces;
    int group;
    Site site;
};
struct StoreQueue {
    std::vector<BulkStore> stores;
    int group = 0;
};

// Four warps that issue wgmma together.
struct Warpgroup {
    static constexpr uint32_t THREADS = 128;

    struct Product {
        WgmmaShape shape;
        uint64_t a_desc, b_desc;
        bool a_in_registers, scale_d;
        std::array<std::array<uint32_t, 4>, THREADS> a;
        std::array<float *, THREADS> d;
        std::vector<uint32_t> rows; // 16-byte rows of shared memory that it reads
        int group;
        bool done;
        Site site;
    };
    // Accumulators of products under way: [thread][n / 2]. A thread's own hold NaN until it has waited for
    // the last.
    struct Accumulators {
        std::array<float *, THREADS> d;
        uint32_t count;
        std::vector<float> values;
        std::array<bool, THREADS> taken; // else the thread has them back
    };

    uint32_t arrived = 0;
    Product issued;
    int group = 0;
    std::vector<Product> in_flight;
    std::vector<Accumulators> accumulators;
};

Mbarrier &find_mbarrier(uint32_t address, Site site);
void expect_arrival(uint32_t bar, uint32_t count, Site site);
void end_phase_if_complete(Mbarrier &mbarrier);
// Lets one copy that is under way land, of this mbarrier or of any; false if there is none.
bool land_load_of(Block &block, uint32_t bar);
bool land_any_load(Block &block);
// Reports shared memory that was written without a proxy fence before the asynchronous proxy reads it.
void check_proxy(uint32_t address, uint32_t bytes, Site site);
// Work that a thread leaves behind when it ends.
void check_nothing_in_flight(Fiber &fiber);

} // namespace sim

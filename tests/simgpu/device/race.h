// Who has touched a place of memory last, and whether the present access is ordered after it.
//
// Every warp has a vector clock: its own time, and how far it knows each other warp of its block. Barriers,
// mbarriers and fences pass knowledge on. Every two bytes of memory have a cell: the last write, and the
// reads since. An access that is not ordered after the last write, or a write not ordered after the reads, is
// a race, whatever the schedule was.
#pragma once
#include "kernel.h"
#include <algorithm>
#include <array>
#include <string>
#include <unordered_map>
#include <vector>

namespace sim {

constexpr uint32_t MAX_WARPS = 32;

struct Clock {
    std::array<uint32_t, MAX_WARPS> time{};
    void join(const Clock &other)
    {
        for (uint32_t i = 0; i < MAX_WARPS; ++i) time[i] = std::max(time[i], other.time[i]);
    }
};

// Threads as cells name them: warp * 32 + lane, or these in place of a single thread.
constexpr uint16_t SEVERAL_LANES = 1024; // + warp: more than one lane
constexpr uint16_t COPY = 2048;          // + warp: an asynchronous copy issued by the warp
constexpr uint16_t READERS = 0xffff;     // several warps: `read_time` names a set of the block

// `run` numbers the executions of blocks: a cell of an earlier launch (or, in shared memory, of an earlier
// block) is blank.
struct Cell {
    uint32_t write_run = 0, read_run = 0;
    uint32_t write_time = 0, read_time = 0;
    uint16_t writer = 0, reader = 0;
    uint8_t bytes = 0;           // which of the two bytes were touched
    bool atomic = false;         // the last write was an atomic operation
    bool several_blocks = false; // readers of several blocks
    bool mixed = false;          // single bytes of different owners: not followed any more

    bool operator==(const Cell &) const = default;
};
constexpr uint32_t GRANULE = 2;

// How an access takes part in races.
enum class Kind : uint8_t {
    plain,
    atomic,
    observe, // checked, but leaves no trace
};

struct Warp;
struct Accessor {
    Block &block;
    const Warp &warp;
    uint32_t lane;
    Kind kind;
};

struct Conflict {
    const char *what; // null: none
    size_t index;     // which cell
    uint16_t other;
    uint32_t other_run;
};

// The cells of some bytes, and which bytes of the first and the last cell are touched.
struct Span {
    size_t first, count;
    uint8_t first_bytes, last_bytes;

    Span(size_t from, size_t bytes)
        : first(from / GRANULE), count((from + bytes + GRANULE - 1) / GRANULE - first),
          first_bytes(from % GRANULE ? 2 : 3), last_bytes((from + bytes) % GRANULE ? 1 : 3)
    {
        if (count == 1) first_bytes = last_bytes = first_bytes & last_bytes;
    }
};

// Checks and updates the cells of a span; `cells` are those of the whole window or allocation.
enum class Space : uint8_t { shared, device };
Conflict check_cells(Cell *cells, const Span &span, Access access, Space space, const Accessor &by);
// A copy issued by `warp` at `time` has written the cells.
void stamp_copy(Cell *cells, size_t count, uint32_t run, uint32_t warp, uint32_t time);
std::string describe(const Conflict &conflict, const Accessor &by);

// Sets of readers, each the times of several warps; equal histories share a set.
class ReaderSets {
  public:
    void clear();
    // The set `base` and a further reader.
    uint32_t with(uint32_t base, uint32_t warp, uint32_t time);
    const Clock &operator[](uint32_t set) const { return sets[set]; }
    static constexpr uint32_t EMPTY = 0;

  private:
    std::vector<Clock> sets;
    struct Step {
        uint32_t base, warp, time;
        bool operator==(const Step &) const = default;
    };
    struct HashStep {
        size_t operator()(const Step &s) const
        {
            return (s.base * 0x9E3779B1u ^ s.time) * 0x85EBCA77u + s.warp;
        }
    };
    std::unordered_map<Step, uint32_t, HashStep> steps;
};

// Order between blocks of one launch, made by atomics and fences.
// What a block has made visible: for each warp of it, up to which time.
using Published = std::unordered_map<uint32_t /* run */, Clock>;
void publish(uint64_t address, Block &block, const Clock &fenced);
void observe(uint64_t address, Block &block);
void forget_published();

} // namespace sim

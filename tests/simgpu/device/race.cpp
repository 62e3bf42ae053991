#include "fiber.h"
#include <cstring>

namespace sim {

namespace {

constexpr uint8_t ALL_BYTES = 3;

uint32_t warp_of(uint16_t thread)
{
    if (thread >= COPY) return thread - COPY;
    if (thread >= SEVERAL_LANES) return thread - SEVERAL_LANES;
    return thread / 32;
}

enum class Earlier { write, read };

// Whether what `thread` of the same block did at `time` comes before the present access.
bool before(const Accessor &by, uint16_t thread, uint32_t time, Earlier earlier)
{
    uint32_t warp = warp_of(thread);
    if (warp != by.warp.index) return time <= by.warp.clock.time[warp];
    if (time <= by.warp.acquired) return true;
    if (thread >= COPY) return false;
    if (thread == warp * 32 + by.lane) return true;
    return time < (earlier == Earlier::write ? by.warp.synced : by.warp.converged);
}

bool before_in(const Accessor &by, uint32_t run, uint16_t thread, uint32_t time, Earlier earlier)
{
    if (run == by.block.run) return before(by, thread, time, earlier);
    auto published = by.block.seen.find(run);
    return published != by.block.seen.end() && time <= published->second.time[warp_of(thread)];
}

bool readers_before(const Cell &cell, const Accessor &by)
{
    // Another block's readers, or those of several: only an order made by atomics can help, and which one is
    // not kept.
    if (cell.several_blocks || (cell.read_run != by.block.run && cell.reader == READERS))
        return !by.block.seen.empty();
    if (cell.reader != READERS)
        return before_in(by, cell.read_run, cell.reader, cell.read_time, Earlier::read);
    const Clock &times = by.block.readers[cell.read_time];
    for (uint32_t warp = 0; warp < by.block.warps.size(); ++warp)
        if (times.time[warp] && !before(by, uint16_t(SEVERAL_LANES + warp), times.time[warp], Earlier::read))
            return false;
    return true;
}

void record_read(Cell &cell, const Accessor &by, bool has_read)
{
    uint16_t me = uint16_t(by.warp.index * 32 + by.lane);
    uint32_t now = by.warp.now();
    if (cell.several_blocks && has_read) return;
    if (has_read && cell.read_run != by.block.run) {
        bool ordered = cell.reader != READERS &&
                       before_in(by, cell.read_run, cell.reader, cell.read_time, Earlier::read);
        cell.several_blocks = !ordered;
    } else if (has_read && cell.reader == READERS) {
        cell.read_time = by.block.readers.with(cell.read_time, by.warp.index, now);
        return;
    } else if (has_read && warp_of(cell.reader) == by.warp.index) {
        if (!before(by, cell.reader, cell.read_time, Earlier::read))
            me = uint16_t(SEVERAL_LANES + by.warp.index);
    } else if (has_read && !before(by, cell.reader, cell.read_time, Earlier::read)) {
        uint32_t one = by.block.readers.with(ReaderSets::EMPTY, warp_of(cell.reader), cell.read_time);
        cell.reader = READERS;
        cell.read_time = by.block.readers.with(one, by.warp.index, now);
        return;
    } else {
        cell.several_blocks = false;
    }
    cell.read_run = by.block.run;
    cell.reader = me;
    cell.read_time = now;
}

// What is wrong with the access, or null.
const char *update(Cell &cell, uint8_t bytes, Access access, Space space, const Accessor &by)
{
    // Shared memory begins anew with every block, device memory with every launch.
    auto counts = [&](uint32_t run) {
        return space == Space::shared ? run == by.block.run : run >= by.block.launch->first_run;
    };
    bool has_write = counts(cell.write_run), has_read = counts(cell.read_run);
    uint16_t me = uint16_t(by.warp.index * 32 + by.lane);
    if (!has_write && !has_read) {
        cell.bytes = 0;
        cell.mixed = false;
    }
    if (cell.mixed) return nullptr;
    if ((has_write || has_read) && !(cell.bytes & bytes) &&
        !(has_write && cell.writer == me && cell.write_run == by.block.run)) {
        cell.mixed = true;
        return nullptr;
    }
    if (space == Space::shared && access == Access::read && !has_write)
        return "read of shared memory never written";
    if (has_write && !(by.kind == Kind::atomic && cell.atomic) &&
        !before_in(by, cell.write_run, cell.writer, cell.write_time, Earlier::write)) {
        if (cell.writer >= COPY) return "access to copied data without waiting for the copy, issued";
        return access == Access::write ? "write after a write" : "read after a write";
    }
    if (access == Access::write && has_read && !readers_before(cell, by)) return "write after a read";
    if (by.kind == Kind::observe) return nullptr;
    cell.bytes |= bytes;
    if (access == Access::read) {
        record_read(cell, by, has_read);
        return nullptr;
    }
    cell.write_run = by.block.run;
    cell.writer = me;
    cell.write_time = by.warp.now();
    cell.atomic = by.kind == Kind::atomic;
    cell.read_run = 0;
    cell.several_blocks = false;
    return nullptr;
}

} // namespace

Conflict check_cells(Cell *cells, const Span &span, Access access, Space space, const Accessor &by)
{
    // Neighbours mostly have the same history: then the outcome is the same too.
    Cell before_update, after_update;
    uint8_t same_bytes = 0;
    for (size_t i = span.first; i < span.first + span.count; ++i) {
        uint8_t bytes = ALL_BYTES;
        if (i == span.first)
            bytes = span.first_bytes;
        else if (i == span.first + span.count - 1)
            bytes = span.last_bytes;
        if (bytes == same_bytes && cells[i] == before_update) {
            cells[i] = after_update;
            continue;
        }
        before_update = cells[i];
        if (const char *what = update(cells[i], bytes, access, space, by)) {
            bool reader = !strcmp(what, "write after a read");
            return {what, i, reader ? cells[i].reader : cells[i].writer,
                    reader ? cells[i].read_run : cells[i].write_run};
        }
        after_update = cells[i];
        same_bytes = bytes;
    }
    return {};
}

void stamp_copy(Cell *cells, size_t count, uint32_t run, uint32_t warp, uint32_t time)
{
    Cell stamped;
    stamped.write_run = run;
    stamped.writer = uint16_t(COPY + warp);
    stamped.write_time = time;
    stamped.bytes = ALL_BYTES;
    std::fill_n(cells, count, stamped);
}

std::string describe(const Conflict &conflict, const Accessor &by)
{
    std::string other;
    if (conflict.other == READERS)
        other = "several warps";
    else if (conflict.other >= SEVERAL_LANES)
        other = "warp " + std::to_string(warp_of(conflict.other));
    else
        other = "thread " + std::to_string(conflict.other);
    if (conflict.other_run != by.block.run)
        other += " of block " + std::to_string(conflict.other_run - by.block.launch->first_run);
    return std::string(conflict.what) + " by " + other;
}

void ReaderSets::clear()
{
    sets.assign(1, Clock{});
    steps.clear();
}

uint32_t ReaderSets::with(uint32_t base, uint32_t warp, uint32_t time)
{
    if (sets[base].time[warp] == time) return base;
    auto [step, added] = steps.try_emplace({base, warp, time}, uint32_t(sets.size()));
    if (added) {
        Clock clock = sets[base];
        clock.time[warp] = time;
        sets.push_back(clock);
    }
    return step->second;
}

// ---- order between blocks ----

namespace {
std::mutex published_mutex;
std::unordered_map<uint64_t /* address */, Published> published;
} // namespace

void publish(uint64_t address, Block &block, const Clock &fenced)
{
    std::lock_guard lock(published_mutex);
    Published &there = published[address];
    there[block.run].join(fenced);
    for (const auto &[run, clock] : block.seen) there[run].join(clock);
}

void observe(uint64_t address, Block &block)
{
    std::lock_guard lock(published_mutex);
    auto there = published.find(address);
    if (there == published.end()) return;
    for (const auto &[run, clock] : there->second) {
        if (run == block.run)
            tls.fiber->warp->clock.join(clock);
        else
            block.seen[run].join(clock);
    }
}

void forget_published() { published.clear(); }

} // namespace sim

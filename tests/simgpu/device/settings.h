// What the environment chooses, and how errors are reported.
#pragma once
#include "kernel.h"
#include <string>

namespace sim {

// Which runnable thread goes next.
enum class Schedule {
    forward, // the next one up
    reverse, // the next one down
    random,
    ahead,  // the lowest: it runs as far ahead of the others as it can
    behind, // the highest
};
// When asynchronous work is done: streams' work and copies inside kernels.
enum class Async { lazy, eager };

struct Settings {
    Schedule schedule = Schedule::forward;
    Async async = Async::lazy;
    uint64_t seed = 1;
    int compute_capability = 90;
    uint64_t multiprocessors = 0; // 0: as many as the GPU of this compute capability has
    size_t memory = size_t(16) << 30;
    uint64_t driver = 12090; // the CUDA version that the driver supports
    int devices = 1;
    bool checks = true;
};
extern Settings settings;
// Reads SIMGPU_*; an empty text, or what is wrong.
std::string read_settings();

// What the driver answers for an error that a kernel made.
enum class Fault { none = 0, illegal_address = 700, misaligned_address = 716, launch_failed = 719 };

// Prints an error once per kind, kernel and line, and remembers it for the driver.
void report(Fault fault, const char *kind, Site site, const std::string &text);
// The same, and ends the launch.
[[noreturn]] void stop(Fault fault, const char *kind, Site site, const std::string &text);
// The first fault since the last `clear_reports`.
Fault first_fault();
std::string reports();
void clear_reports();

} // namespace sim

// The standard library's headers would take longer to compile than most kernels: builtins do.
#include "kernel.h"
#include <limits>
#include <time.h>
#include <type_traits>

namespace ptx {
namespace {
inline uint32_t thread_index()
{
    const auto &t = sim::tls;
    return (t.tid.z * t.bdim.y + t.tid.y) * t.bdim.x + t.tid.x;
}
inline uint32_t block_threads() { return sim::tls.bdim.x * sim::tls.bdim.y * sim::tls.bdim.z; }
inline uint64_t nanoseconds()
{
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return uint64_t(now.tv_sec) * 1000000000 + uint64_t(now.tv_nsec);
}

#include "kernel.h"
#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ptx {
namespace {
static inline uint32_t thread_index() {
  const auto &t = sim::tls;
  return (t.tid.z * t.bdim.y + t.tid.y) * t.bdim.x + t.tid.x;
}
static inline uint32_t block_threads() { return sim::tls.bdim.x * sim::tls.bdim.y * sim::tls.bdim.z; }
static inline uint64_t nanoseconds() { return uint64_t(std::chrono::steady_clock::now().time_since_epoch().count()); }

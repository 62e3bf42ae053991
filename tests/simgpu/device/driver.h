// The driver's own state: what the cu* entry points share. Streams are queues of closures that run when
// somebody waits.
#pragma once
#include "fiber.h"
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

enum CUresult : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701,
    MISALIGNED_ADDRESS = 716,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_ISOLATION = 905,
    STREAM_CAPTURE_IMPLICIT = 906,
};
using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = void *;

#define CU_API extern "C" __attribute__((visibility("default"))) CUresult

namespace sim {

using Work = std::function<CUresult()>;

// One recording of an event.
struct Record {
    bool done = false;
    std::chrono::steady_clock::time_point time;
};

struct Capture {
    std::vector<Work> work;
    int mode;
    std::thread::id thread;
    bool invalid = false;
};
using Graph = std::vector<Work>;

struct Event {
    std::shared_ptr<Record> record;
    std::shared_ptr<Capture> capture; // set if it was last recorded in a capture
    bool timing;
};

struct Item {
    Work run;
    std::shared_ptr<Record> waits_for;
    uint64_t sequence;
};

struct Stream {
    bool blocking; // orders itself with the null stream
    std::deque<Item> queue;
    std::shared_ptr<Capture> capture;
    bool began_capture = false;
    bool destroyed = false;
};

struct Driver {
    std::recursive_mutex mutex;
    bool initialized = false;
    CUresult sticky = SUCCESS;
    uint64_t random_state = 1;
    uint64_t sequence = 0;
    Stream null_stream{true, {}, nullptr, false, false};
    std::vector<std::unique_ptr<Stream>> streams;
    std::set<Event *> events;
    std::map<CUdeviceptr, size_t> allocations;
    std::map<char *, size_t> pinned;
    size_t live_bytes = 0;
    uint64_t launches = 0;
};
extern Driver driver;
extern thread_local CUcontext current_context;

// Says on stderr what is wrong with a call.
CUresult refuse(CUresult error, const std::string &what);

// Every entry point that touches the context runs in here: one at a time, and none after a sticky error.
template <class Body> CUresult entry(Body body)
{
    std::lock_guard lock(driver.mutex);
    if (!driver.initialized) return NOT_INITIALIZED;
    if (driver.sticky) return driver.sticky;
    if (!current_context) return INVALID_CONTEXT;
    return body();
}

// The stream of a handle, or null.
Stream *find_stream(void *handle);
CUresult enqueue(Stream &stream, Work work);
// Runs work, of streams in random order, until `done` holds.
CUresult drain(const std::function<bool()> &done);
CUresult drain_stream(const Stream &stream);
CUresult drain_all();
// Refuses a call that a capture forbids to this thread.
CUresult check_not_capturing(const char *call);

struct Architecture {
    int compute_capability;
    const char *name;
    int multiprocessors, shared_per_block_optin, shared_per_multiprocessor, threads_per_multiprocessor;
    int blocks_per_multiprocessor, l2_bytes;
};
const Architecture &architecture();

} // namespace sim

// Entry points about the device and its context.
#include "driver.h"
#include <cstdio>
#include <cstring>

namespace sim {

Driver driver;
thread_local CUcontext current_context;

namespace {

char primary_context;
int retained;

constexpr Architecture ARCHITECTURES[] = {
    // cc, like, SMs, shared memory a block and an SM, threads and blocks an SM, L2
    {75, "T4", 40, 65536, 65536, 1024, 16, 4 << 20},
    {80, "A100", 108, 166912, 167936, 2048, 32, 40 << 20},
    {86, "RTX A6000", 84, 101376, 102400, 1536, 16, 6 << 20},
    {89, "L40", 142, 101376, 102400, 1536, 24, 96 << 20},
    {90, "H200", 132, 232448, 233472, 2048, 32, 50 << 20},
    {100, "B200", 148, 232448, 233472, 2048, 32, 126 << 20},
    {120, "RTX PRO 6000", 188, 101376, 102400, 1536, 24, 128 << 20},
};

struct ErrorText {
    CUresult error;
    const char *name, *text;
};
constexpr ErrorText ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU",
     "no kernel image is available for execution on the device"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
     "too many resources requested for launch"},
    {MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
    {STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
};

const ErrorText *find_error(int error)
{
    for (const ErrorText &e : ERRORS)
        if (e.error == error) return &e;
    return nullptr;
}

} // namespace

const Architecture &architecture()
{
    for (const Architecture &a : ARCHITECTURES)
        if (a.compute_capability == settings.compute_capability) return a;
    __builtin_unreachable();
}

CUresult refuse(CUresult error, const std::string &what)
{
    const ErrorText *text = find_error(error);
    fprintf(stderr, "simgpu: %s: %s\n", text ? text->name : "error", what.c_str());
    return error;
}

} // namespace sim

using namespace sim;

CU_API cuInit(unsigned)
{
    std::lock_guard lock(driver.mutex);
    if (driver.initialized) return SUCCESS;
    std::string wrong = read_settings();
    if (!wrong.empty()) return refuse(INVALID_VALUE, wrong);
    if (!settings.devices) return NO_DEVICE;
    driver.random_state = settings.seed * 0x9E3779B97F4A7C15ull | 1;
    driver.initialized = true;
    return SUCCESS;
}

CU_API cuDriverGetVersion(int *version)
{
    *version = int(settings.driver);
    return SUCCESS;
}

CU_API cuDeviceGetCount(int *count)
{
    *count = 1;
    return driver.initialized ? SUCCESS : NOT_INITIALIZED;
}

CU_API cuDeviceGet(CUdevice *device, int ordinal)
{
    if (!driver.initialized) return NOT_INITIALIZED;
    *device = 0;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}

CU_API cuDeviceGetName(char *name, int size, CUdevice)
{
    const Architecture &a = architecture();
    snprintf(name, size_t(size), "simgpu, sm_%d like %s", a.compute_capability, a.name);
    return SUCCESS;
}

CU_API cuDeviceGetUuid_v2(unsigned char *uuid, CUdevice)
{
    memcpy(uuid, "simulated device", 16);
    return SUCCESS;
}
CU_API cuDeviceGetUuid(unsigned char *uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }

CU_API cuDeviceTotalMem_v2(size_t *bytes, CUdevice)
{
    *bytes = settings.memory;
    return SUCCESS;
}

CU_API cuDeviceGetAttribute(int *value, int attribute, CUdevice)
{
    const Architecture &a = architecture();
    switch (attribute) {
    case 1: *value = 1024; break; // MAX_THREADS_PER_BLOCK
    case 2:
    case 3: *value = 1024; break;       // MAX_BLOCK_DIM_X, Y
    case 4: *value = 64; break;         // MAX_BLOCK_DIM_Z
    case 5: *value = 2147483647; break; // MAX_GRID_DIM_X
    case 6:
    case 7: *value = 65535; break;              // MAX_GRID_DIM_Y, Z
    case 8: *value = 48 * 1024; break;          // MAX_SHARED_MEMORY_PER_BLOCK
    case 9: *value = 64 * 1024; break;          // TOTAL_CONSTANT_MEMORY
    case 10: *value = 32; break;                // WARP_SIZE
    case 12: *value = 65536; break;             // MAX_REGISTERS_PER_BLOCK
    case 13: *value = 1000000; break; // CLOCK_RATE, in kHz: nominal, as is all of its speed
    case 16: // MULTIPROCESSOR_COUNT
        *value = settings.multiprocessors ? int(settings.multiprocessors) : a.multiprocessors;
        break;
    case 31:
    case 40:
    case 41: *value = 1; break;          // CONCURRENT_KERNELS, ASYNC_ENGINE_COUNT, UNIFIED_ADDRESSING
    case 36: *value = 1000000; break; // MEMORY_CLOCK_RATE, in kHz
    case 37: *value = 4096; break;    // GLOBAL_MEMORY_BUS_WIDTH, in bits
    case 38: *value = a.l2_bytes; break; // L2_CACHE_SIZE
    case 39: *value = a.threads_per_multiprocessor; break; // MAX_THREADS_PER_MULTIPROCESSOR
    case 75: *value = a.compute_capability / 10; break;    // COMPUTE_CAPABILITY_MAJOR
    case 76: *value = a.compute_capability % 10; break;    // COMPUTE_CAPABILITY_MINOR
    case 81: *value = a.shared_per_multiprocessor; break;  // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
    case 82: *value = 65536; break;                        // MAX_REGISTERS_PER_MULTIPROCESSOR
    case 95: *value = 0; break;                            // COOPERATIVE_LAUNCH
    case 97: *value = a.shared_per_block_optin; break;     // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    case 106: *value = a.blocks_per_multiprocessor; break; // MAX_BLOCKS_PER_MULTIPROCESSOR
    case 111: *value = 1024; break;                        // RESERVED_SHARED_MEMORY_PER_BLOCK
    case 115: *value = 1; break;                           // MEMORY_POOLS_SUPPORTED
    case 127:
        *value = a.compute_capability == 90 || a.compute_capability == 100;
        break; // TENSOR_MAP_ACCESS_SUPPORTED
    default:
        *value = 0;
        return refuse(INVALID_VALUE, "device attribute " + std::to_string(attribute) + " is not simulated");
    }
    return SUCCESS;
}

CU_API cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    std::lock_guard lock(driver.mutex);
    if (!driver.initialized) return NOT_INITIALIZED;
    if (device != 0) return INVALID_DEVICE;
    ++retained;
    *context = &primary_context;
    return SUCCESS;
}

CU_API cuDevicePrimaryCtxRelease_v2(CUdevice)
{
    std::lock_guard lock(driver.mutex);
    return retained-- > 0 ? SUCCESS : INVALID_CONTEXT;
}

// Everything of the context is gone, a sticky error too. The environment is read again.
CU_API cuDevicePrimaryCtxReset_v2(CUdevice)
{
    std::lock_guard lock(driver.mutex);
    std::string wrong = read_settings();
    if (!wrong.empty()) return refuse(INVALID_VALUE, wrong);
    driver.random_state = settings.seed * 0x9E3779B97F4A7C15ull | 1;
    driver.streams.clear();
    driver.null_stream.queue.clear();
    for (Event *event : driver.events) delete event;
    driver.events.clear();
    for (auto [address, bytes] : driver.allocations) device_free(reinterpret_cast<void *>(address));
    driver.allocations.clear();
    driver.live_bytes = 0;
    driver.launches = 0;
    driver.sticky = SUCCESS;
    clear_reports();
    return SUCCESS;
}

CU_API cuCtxSetCurrent(CUcontext context)
{
    current_context = context;
    return SUCCESS;
}

CU_API cuCtxGetCurrent(CUcontext *context)
{
    *context = current_context;
    return SUCCESS;
}

CU_API cuCtxSetFlags(unsigned) { return SUCCESS; }

CU_API cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}

CU_API cuCtxSynchronize()
{
    return entry([&] {
        if (CUresult error = check_not_capturing("cuCtxSynchronize")) return error;
        return drain_all();
    });
}

CU_API cuMemGetInfo_v2(size_t *free, size_t *total)
{
    return entry([&] {
        *total = settings.memory;
        *free = settings.memory - driver.live_bytes;
        return SUCCESS;
    });
}

CU_API cuGetErrorName(int error, const char **name)
{
    const ErrorText *text = find_error(error);
    *name = text ? text->name : nullptr;
    return text ? SUCCESS : INVALID_VALUE;
}

CU_API cuGetErrorString(int error, const char **string)
{
    const ErrorText *text = find_error(error);
    *string = text ? text->text : nullptr;
    return text ? SUCCESS : INVALID_VALUE;
}

// ---- not CUDA's: for tests that look inside ----

// What is alive and what has run since the context was made.
CU_API simgpu_statistics(uint64_t *launches, uint64_t *live_allocations, uint64_t *live_bytes)
{
    std::lock_guard lock(driver.mutex);
    *launches = driver.launches;
    *live_allocations = driver.allocations.size();
    *live_bytes = driver.live_bytes;
    return SUCCESS;
}

// The reports since the context was made, as printed on stderr; cut to `size`.
CU_API simgpu_reports(char *text, size_t size)
{
    snprintf(text, size, "%s", reports().c_str());
    return SUCCESS;
}

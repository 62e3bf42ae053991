// Device memory, pinned memory, copies and fills.
#include "driver.h"
#include <cstdlib>
#include <cstring>

namespace sim {

namespace {

char *bytes_at(CUdeviceptr address) { return reinterpret_cast<char *>(address); }

CUresult check_range(CUdeviceptr address, size_t bytes, const char *what)
{
    if (!bytes || device_range_valid(bytes_at(address), bytes)) return SUCCESS;
    return refuse(INVALID_VALUE,
                  std::string(what) + ": " + describe_address(bytes_at(address), bytes, Access::write));
}

CUresult allocate(CUdeviceptr *address, size_t bytes)
{
    *address = 0;
    if (!bytes) return refuse(INVALID_VALUE, "an allocation of 0 bytes");
    // Frees may still be queued.
    if (bytes > settings.memory - driver.live_bytes)
        if (CUresult error = drain_all()) return error;
    if (bytes > settings.memory - driver.live_bytes) return OUT_OF_MEMORY;
    void *memory = device_allocate(bytes);
    if (!memory) return OUT_OF_MEMORY;
    *address = CUdeviceptr(memory);
    driver.allocations[*address] = bytes;
    driver.live_bytes += bytes;
    return SUCCESS;
}

// The allocation is the caller's no more; the memory itself goes when `give_up` runs.
CUresult release(CUdeviceptr address, size_t &bytes)
{
    auto found = driver.allocations.find(address);
    if (found == driver.allocations.end())
        return refuse(INVALID_VALUE, "free of a pointer that is no allocation");
    bytes = found->second;
    driver.allocations.erase(found);
    return SUCCESS;
}

CUresult give_up(CUdeviceptr address, size_t bytes)
{
    driver.live_bytes -= bytes;
    device_free(bytes_at(address));
    return SUCCESS;
}

bool is_pinned(const void *address, size_t bytes)
{
    auto *first = static_cast<char *>(const_cast<void *>(address));
    auto after = driver.pinned.upper_bound(first);
    if (after == driver.pinned.begin()) return false;
    --after;
    return first + bytes <= after->first + after->second;
}

enum class Direction { to_device, to_host, on_device };

struct Rows {
    size_t count, bytes, dst_pitch, src_pitch;

    size_t extent(size_t pitch) const { return count ? (count - 1) * pitch + bytes : 0; }
};

void copy_rows(char *dst, const char *src, const Rows &rows)
{
    for (size_t row = 0; row < rows.count; ++row)
        memcpy(dst + row * rows.dst_pitch, src + row * rows.src_pitch, rows.bytes);
}

CUresult copy(Stream &stream, char *dst, const char *src, const Rows &rows, Direction direction)
{
    size_t dst_bytes = rows.extent(rows.dst_pitch), src_bytes = rows.extent(rows.src_pitch);
    if (direction != Direction::to_host)
        if (CUresult error = check_range(CUdeviceptr(dst), dst_bytes, "destination of a copy")) return error;
    if (direction != Direction::to_device)
        if (CUresult error = check_range(CUdeviceptr(src), src_bytes, "source of a copy")) return error;
    bool capturing = stream.capture != nullptr;
    // From pageable memory the driver takes a copy at once; pinned memory is read late.
    if (direction == Direction::to_device && !capturing && !is_pinned(src, src_bytes)) {
        auto staged = std::make_shared<std::vector<char>>(src, src + src_bytes);
        return enqueue(stream, [=] {
            copy_rows(dst, staged->data(), rows);
            return SUCCESS;
        });
    }
    CUresult error = enqueue(stream, [=] {
        copy_rows(dst, src, rows);
        return SUCCESS;
    });
    if (error) return error;
    // Into pageable memory a copy is done when the call returns.
    bool waits = direction == Direction::to_host && !capturing && !is_pinned(dst, dst_bytes);
    return waits ? drain_stream(stream) : SUCCESS;
}

template <class Body> CUresult on_stream(void *handle, Body body)
{
    return entry([&]() -> CUresult {
        Stream *stream = find_stream(handle);
        return stream ? body(*stream) : refuse(INVALID_HANDLE, "not a stream, or one that was destroyed");
    });
}

CUresult copy_linear(void *stream, char *dst, const char *src, size_t bytes, Direction direction)
{
    return on_stream(stream, [&](Stream &s) { return copy(s, dst, src, Rows{1, bytes, 0, 0}, direction); });
}

// The synchronous forms go through the null stream.
CUresult then_wait(CUresult error)
{
    return error ? error : entry([] { return drain_stream(driver.null_stream); });
}

template <class T> CUresult fill(void *stream, CUdeviceptr address, T value, size_t count)
{
    return on_stream(stream, [&](Stream &s) {
        if (address % sizeof(T)) return refuse(INVALID_VALUE, "fill: misaligned address");
        if (CUresult error = check_range(address, count * sizeof(T), "fill")) return error;
        return enqueue(s, [=] {
            std::fill_n(reinterpret_cast<T *>(address), count, value);
            return SUCCESS;
        });
    });
}

} // namespace

// As in cuda.h.
struct Memcpy2D {
    size_t src_x, src_y;
    unsigned src_type;
    const char *src_host;
    CUdeviceptr src_device;
    void *src_array;
    size_t src_pitch;
    size_t dst_x, dst_y;
    unsigned dst_type;
    char *dst_host;
    CUdeviceptr dst_device;
    void *dst_array;
    size_t dst_pitch;
    size_t width, height;
};
constexpr unsigned HOST = 1, DEVICE = 2;

} // namespace sim

using namespace sim;

CU_API cuMemAlloc_v2(CUdeviceptr *address, size_t bytes)
{
    return entry([&] {
        if (CUresult error = check_not_capturing("cuMemAlloc")) return error;
        return allocate(address, bytes);
    });
}

CU_API cuMemAllocAsync(CUdeviceptr *address, size_t bytes, void *stream)
{
    return on_stream(stream, [&](Stream &s) {
        if (s.capture) return refuse(NOT_SUPPORTED, "allocations in a graph are not simulated");
        return allocate(address, bytes);
    });
}

CU_API cuMemFree_v2(CUdeviceptr address)
{
    return entry([&] {
        if (!address) return SUCCESS;
        if (CUresult error = check_not_capturing("cuMemFree")) return error;
        size_t bytes;
        if (CUresult error = drain_all()) return error;
        if (CUresult error = release(address, bytes)) return error;
        return give_up(address, bytes);
    });
}

CU_API cuMemFreeAsync(CUdeviceptr address, void *stream)
{
    return on_stream(stream, [&](Stream &s) {
        if (!address) return SUCCESS;
        if (s.capture) return refuse(NOT_SUPPORTED, "frees in a graph are not simulated");
        size_t bytes;
        if (CUresult error = release(address, bytes)) return error;
        return enqueue(s, [=] { return give_up(address, bytes); });
    });
}

CU_API cuMemHostAlloc(void **address, size_t bytes, unsigned)
{
    return entry([&] {
        if (CUresult error = check_not_capturing("cuMemHostAlloc")) return error;
        *address = aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
        if (!*address) return OUT_OF_MEMORY;
        driver.pinned[static_cast<char *>(*address)] = bytes;
        return SUCCESS;
    });
}

CU_API cuMemFreeHost(void *address)
{
    return entry([&] {
        if (CUresult error = drain_all()) return error;
        if (!driver.pinned.erase(static_cast<char *>(address)))
            return refuse(INVALID_VALUE, "not pinned memory");
        free(address);
        return SUCCESS;
    });
}

CU_API cuMemcpyHtoDAsync_v2(CUdeviceptr dst, const void *src, size_t bytes, void *stream)
{
    return copy_linear(stream, bytes_at(dst), static_cast<const char *>(src), bytes, Direction::to_device);
}
CU_API cuMemcpyDtoHAsync_v2(void *dst, CUdeviceptr src, size_t bytes, void *stream)
{
    return copy_linear(stream, static_cast<char *>(dst), bytes_at(src), bytes, Direction::to_host);
}
CU_API cuMemcpyDtoDAsync_v2(CUdeviceptr dst, CUdeviceptr src, size_t bytes, void *stream)
{
    return copy_linear(stream, bytes_at(dst), bytes_at(src), bytes, Direction::on_device);
}
CU_API cuMemcpyHtoD_v2(CUdeviceptr dst, const void *src, size_t bytes)
{
    return then_wait(cuMemcpyHtoDAsync_v2(dst, src, bytes, nullptr));
}
CU_API cuMemcpyDtoH_v2(void *dst, CUdeviceptr src, size_t bytes)
{
    return then_wait(cuMemcpyDtoHAsync_v2(dst, src, bytes, nullptr));
}
CU_API cuMemcpyDtoD_v2(CUdeviceptr dst, CUdeviceptr src, size_t bytes)
{
    return cuMemcpyDtoDAsync_v2(dst, src, bytes, nullptr);
}

CU_API cuMemcpy2DAsync_v2(const Memcpy2D *c, void *stream)
{
    if ((c->src_type != HOST && c->src_type != DEVICE) || (c->dst_type != HOST && c->dst_type != DEVICE) ||
        (c->src_type == HOST && c->dst_type == HOST))
        return refuse(NOT_SUPPORTED,
                      "2-D copies are simulated between host and device memory, and on the device");
    if (c->width > c->src_pitch || c->width > c->dst_pitch)
        return refuse(INVALID_VALUE, "2-D copy: rows overlap");
    const char *src =
        (c->src_type == HOST ? c->src_host : bytes_at(c->src_device)) + c->src_y * c->src_pitch + c->src_x;
    char *dst =
        (c->dst_type == HOST ? c->dst_host : bytes_at(c->dst_device)) + c->dst_y * c->dst_pitch + c->dst_x;
    Direction direction = c->src_type == HOST   ? Direction::to_device
                          : c->dst_type == HOST ? Direction::to_host
                                                : Direction::on_device;
    Rows rows{c->height, c->width, c->dst_pitch, c->src_pitch};
    return on_stream(stream, [&](Stream &s) { return copy(s, dst, src, rows, direction); });
}
CU_API cuMemcpy2D_v2(const Memcpy2D *c) { return then_wait(cuMemcpy2DAsync_v2(c, nullptr)); }

CU_API cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t count, void *stream)
{
    return fill<uint8_t>(stream, address, value, count);
}
CU_API cuMemsetD16Async(CUdeviceptr address, unsigned short value, size_t count, void *stream)
{
    return fill<uint16_t>(stream, address, value, count);
}
CU_API cuMemsetD32Async(CUdeviceptr address, unsigned value, size_t count, void *stream)
{
    return fill<uint32_t>(stream, address, value, count);
}
CU_API cuMemsetD8_v2(CUdeviceptr address, unsigned char value, size_t count)
{
    return fill<uint8_t>(nullptr, address, value, count);
}
CU_API cuMemsetD32_v2(CUdeviceptr address, unsigned value, size_t count)
{
    return fill<uint32_t>(nullptr, address, value, count);
}

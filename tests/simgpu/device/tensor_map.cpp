// cuTensorMapEncodeTiled: what a TMA instruction needs to know of a tensor, with the driver's own checks.
#include "driver.h"

using namespace sim;

namespace {

constexpr uint8_t ELEMENT_BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4}; // by CUtensorMapDataType

} // namespace

CU_API cuTensorMapEncodeTiled(TensorMap *map, unsigned type, unsigned rank, void *address,
                              const uint64_t *size, const uint64_t *stride, const unsigned *box,
                              const unsigned *element_stride, unsigned interleave, unsigned swizzle, unsigned,
                              unsigned fill)
{
    auto wrong = [](const std::string &what) {
        return refuse(INVALID_VALUE, "cuTensorMapEncodeTiled: " + what);
    };
    if (settings.compute_capability < 90)
        return refuse(NOT_SUPPORTED, "tensor maps need compute capability 9.0");
    if (uintptr_t(map) % 64) return wrong("the map is not aligned to 64 bytes");
    if (type >= std::size(ELEMENT_BYTES)) return wrong("unknown data type");
    if (rank < 1 || rank > 5) return wrong("rank is 1 to 5");
    if (interleave) return refuse(NOT_SUPPORTED, "interleaved tensor maps are not simulated");
    if (uintptr_t(address) % 16) return wrong("the address is not aligned to 16 bytes");
    if (swizzle > 3) return refuse(NOT_SUPPORTED, "only swizzles of 32, 64 and 128 bytes are simulated");
    uint32_t bytes = ELEMENT_BYTES[type];
    *map = {};
    size_t last = (size[0] - 1) * bytes;
    for (unsigned d = 0; d < rank; ++d) {
        if (!size[d] || size[d] > uint64_t(1) << 32) return wrong("a size is 1 to 2^32");
        if (!box[d] || box[d] > 256) return wrong("a box is 1 to 256 wide");
        if (element_stride[d] != 1) return refuse(NOT_SUPPORTED, "only an element stride of 1 is simulated");
        if (d && (stride[d - 1] % 16 || stride[d - 1] >> 40))
            return wrong("a stride is a multiple of 16 below 2^40");
        map->size[d] = size[d];
        map->box[d] = uint16_t(box[d]);
        if (d) {
            map->stride[d - 1] = stride[d - 1];
            last += (size[d] - 1) * stride[d - 1];
        }
    }
    uint32_t inner = box[0] * bytes;
    if (inner % 16) return wrong("the inner box is a multiple of 16 bytes");
    if (swizzle && inner > 16u << swizzle) return wrong("the inner box is wider than the swizzle");
    if (!device_range_valid(address, last + bytes)) return wrong("the tensor reaches outside its allocation");
    map->magic = TensorMap::MAGIC;
    map->address = static_cast<unsigned char *>(address);
    map->rank = uint8_t(rank);
    map->element_bytes = uint8_t(bytes);
    map->swizzle = uint8_t(swizzle);
    map->nan_fill = fill != 0;
    return SUCCESS;
}

// Modules, functions, launches, occupancy.
#include "driver.h"
#include "image.h"
#include <cstdlib>
#include <cstring>

namespace sim {

namespace {

struct Function {
    std::string name;
    ImageKernel image;
    const Kernel *kernel;
    uint32_t max_dynamic_shared;
};

struct Module {
    Image image;
    std::map<std::string, std::unique_ptr<Function>> functions;
};

constexpr uint32_t SHARED_WITHOUT_ASKING = 48 * 1024;
constexpr uint32_t NO_REGISTERS_KNOWN = 255;

// The translated kernel of this name: of the image's own target, or of the newest that runs where the image's
// does.
const Kernel *find_kernel(const std::string &name, const std::string &target)
{
    auto number = [](const std::string &t) { return atoi(t.c_str() + strlen("sm_")); };
    const Kernel *best = nullptr;
    for (const Kernel *kernel = first_kernel(); kernel; kernel = kernel->next) {
        if (kernel->name != name) continue;
        std::string its = kernel->limits.target;
        if (its == target) return kernel;
        bool fits = its.back() != 'a' && number(its) <= number(target);
        if (fits && (!best || number(its) > number(best->limits.target))) best = kernel;
    }
    return best;
}

bool same_params(const ImageKernel &image, const Kernel &kernel)
{
    return image.param_sizes.size() == size_t(kernel.param_count) &&
           std::equal(image.param_sizes.begin(), image.param_sizes.end(), kernel.param_sizes);
}

// The parameters of a launch, as the kernel will read them, now and at every replay.
struct Params {
    explicit Params(const Kernel &kernel, void **values)
    {
        size_t bytes = 0;
        for (int i = 0; i < kernel.param_count; ++i) bytes += padded(kernel.param_sizes[i]);
        storage.reset(static_cast<char *>(aligned_alloc(ALIGNMENT, std::max(bytes, ALIGNMENT))));
        char *at = storage.get();
        for (int i = 0; i < kernel.param_count; ++i) {
            memcpy(at, values[i], kernel.param_sizes[i]);
            pointers.push_back(at);
            at += padded(kernel.param_sizes[i]);
        }
    }

    std::vector<void *> pointers;

  private:
    static constexpr size_t ALIGNMENT = 64; // of tensor maps
    static size_t padded(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }
    struct Free {
        void operator()(char *p) const { free(p); }
    };
    std::unique_ptr<char, Free> storage;
};

CUresult check_launch(const Function &f, Index grid, Index block, uint32_t dynamic)
{
    uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
    auto wrong = [&](CUresult error, const std::string &what) { return refuse(error, f.name + ": " + what); };
    if (!threads || threads > 1024 || block.z > 64)
        return wrong(INVALID_VALUE, "blocks of " + std::to_string(threads) + " threads");
    if (!blocks || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535 || blocks > 0x7fffffff)
        return wrong(INVALID_VALUE, "a grid of " + std::to_string(blocks) + " blocks");
    uint32_t most = std::min(f.image.max_threads, f.kernel->limits.max_threads);
    if (threads > most)
        return wrong(LAUNCH_OUT_OF_RESOURCES,
                     std::to_string(threads) + " threads; __launch_bounds__ allows " + std::to_string(most));
    if (f.image.registers < NO_REGISTERS_KNOWN && f.image.registers * ((threads + 31) / 32 * 32) > 65536)
        return wrong(LAUNCH_OUT_OF_RESOURCES, std::to_string(f.image.registers) + " registers a thread");
    if (dynamic > f.max_dynamic_shared)
        return wrong(INVALID_VALUE, std::to_string(dynamic) +
                                        " bytes of dynamic shared memory; its attribute allows " +
                                        std::to_string(f.max_dynamic_shared));
    return SUCCESS;
}

CUresult launch(const Function &f, Index grid, Index block, uint32_t dynamic, Stream &stream, void **values)
{
    if (CUresult error = check_launch(f, grid, block, dynamic)) return error;
    auto params = std::make_shared<Params>(*f.kernel, values);
    const Kernel *kernel = f.kernel;
    return enqueue(stream, [=] {
        ++driver.launches;
        return CUresult(run_grid({kernel, grid, block, dynamic, params->pointers.data(), false, 0}));
    });
}

// Blocks of `threads` threads that an SM holds at once.
int occupancy(const Function &f, int threads, size_t dynamic)
{
    const Architecture &a = architecture();
    auto up = [](size_t value, size_t unit) { return (value + unit - 1) / unit * unit; };
    size_t warps = up(size_t(threads), 32) / 32;
    size_t by_threads = size_t(a.threads_per_multiprocessor) / (warps * 32);
    size_t by_registers = 65536 / std::max<size_t>(1, warps * up(f.image.registers * 32, 256));
    size_t by_shared =
        size_t(a.shared_per_multiprocessor) / (up(f.image.static_shared + dynamic, 128) + 1024);
    return int(std::min({by_threads, by_registers, by_shared, size_t(a.blocks_per_multiprocessor)}));
}

} // namespace

struct LaunchAttribute {
    int id;
    char padding[4];
    unsigned value[16];
};
struct LaunchConfig {
    Index grid, block;
    unsigned dynamic_shared;
    void *stream;
    const LaunchAttribute *attributes;
    unsigned attribute_count;
};
constexpr int CLUSTER_DIMENSION = 4, PROGRAMMATIC_STREAM_SERIALIZATION = 6;

} // namespace sim

using namespace sim;

CU_API cuModuleLoadData(void **handle, const void *data)
{
    return entry([&] {
        auto module = std::make_unique<Module>();
        switch (read_image(data, settings.compute_capability, module->image)) {
        case ImageError::none: break;
        case ImageError::invalid: return refuse(INVALID_IMAGE, "neither a cubin nor PTX");
        case ImageError::other_architecture:
            return refuse(NO_BINARY_FOR_GPU, "an image for " + module->image.target + " on a device of sm_" +
                                                 std::to_string(settings.compute_capability));
        }
        for (const auto &[name, image] : module->image.kernels) {
            const Kernel *kernel = find_kernel(name, module->image.target);
            if (kernel && module->image.cubin && !same_params(image, *kernel))
                return refuse(INVALID_IMAGE,
                              name + ": the cubin and the PTX given to simgpu differ in their parameters");
        }
        *handle = module.release();
        return SUCCESS;
    });
}

CU_API cuModuleUnload(void *handle)
{
    return entry([&] {
        CUresult error = drain_all();
        delete static_cast<Module *>(handle);
        return error;
    });
}

CU_API cuModuleGetFunction(void **handle, void *module_handle, const char *name)
{
    return entry([&] {
        auto &module = *static_cast<Module *>(module_handle);
        auto found = module.image.kernels.find(name);
        if (found == module.image.kernels.end())
            return refuse(NOT_FOUND, std::string(name) + " is not in the image");
        const Kernel *kernel = find_kernel(name, module.image.target);
        if (!kernel)
            return refuse(NOT_FOUND,
                          std::string(name) + " is in the image, but its PTX was not given to simgpu");
        ImageKernel image = found->second;
        if (!module.image.cubin) image.static_shared = kernel->limits.static_shared;
        auto &function = module.functions[name];
        if (!function)
            function.reset(new Function{name, image, kernel, SHARED_WITHOUT_ASKING - image.static_shared});
        *handle = function.get();
        return SUCCESS;
    });
}

CU_API cuModuleGetGlobal_v2(CUdeviceptr *, size_t *, void *, const char *name)
{
    return refuse(NOT_FOUND, std::string(name) + ": variables of modules are not simulated");
}

CU_API cuFuncGetAttribute(int *value, int attribute, void *handle)
{
    return entry([&] {
        const auto &f = *static_cast<Function *>(handle);
        switch (attribute) {
        case 0: *value = int(std::min(f.image.max_threads, f.kernel->limits.max_threads)); break;
        case 1: *value = int(f.image.static_shared); break;
        case 3: *value = int(f.image.local); break;
        case 4: *value = int(f.image.registers); break;
        case 5:
        case 6: *value = atoi(f.kernel->limits.target + strlen("sm_")); break; // PTX and binary version
        case 8: *value = int(f.max_dynamic_shared); break;
        default:
            return refuse(INVALID_VALUE,
                          "function attribute " + std::to_string(attribute) + " is not simulated");
        }
        return SUCCESS;
    });
}

CU_API cuFuncSetAttribute(void *handle, int attribute, int value)
{
    return entry([&] {
        auto &f = *static_cast<Function *>(handle);
        constexpr int MAX_DYNAMIC_SHARED = 8, PREFERRED_CARVEOUT = 9;
        if (attribute == PREFERRED_CARVEOUT) return SUCCESS;
        if (attribute != MAX_DYNAMIC_SHARED)
            return refuse(INVALID_VALUE,
                          "function attribute " + std::to_string(attribute) + " cannot be set");
        int most = architecture().shared_per_block_optin - int(f.image.static_shared);
        if (value < 0 || value > most)
            return refuse(INVALID_VALUE, f.name + ": a block has at most " + std::to_string(most) +
                                             " bytes of dynamic shared memory");
        f.max_dynamic_shared = uint32_t(value);
        return SUCCESS;
    });
}

CU_API cuFuncSetCacheConfig(void *, int) { return SUCCESS; }

CU_API cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned dynamic_shared, void *stream,
                      void **params, void **extra)
{
    return entry([&]() -> CUresult {
        Stream *s = find_stream(stream);
        if (!s) return refuse(INVALID_HANDLE, "not a stream, or one that was destroyed");
        if (extra) return refuse(NOT_SUPPORTED, "parameters in a buffer are not simulated");
        return launch(*static_cast<Function *>(function), {grid_x, grid_y, grid_z},
                      {block_x, block_y, block_z}, dynamic_shared, *s, params);
    });
}

CU_API cuLaunchKernelEx(const LaunchConfig *c, void *function, void **params, void **extra)
{
    for (unsigned i = 0; i < c->attribute_count; ++i) {
        const LaunchAttribute &a = c->attributes[i];
        bool one = a.value[0] == 1 && a.value[1] == 1 && a.value[2] == 1;
        if (a.id == PROGRAMMATIC_STREAM_SERIALIZATION || (a.id == CLUSTER_DIMENSION && one)) continue;
        return refuse(NOT_SUPPORTED, a.id == CLUSTER_DIMENSION
                                         ? "clusters are not simulated"
                                         : "launch attribute " + std::to_string(a.id) + " is not simulated");
    }
    return cuLaunchKernel(function, c->grid.x, c->grid.y, c->grid.z, c->block.x, c->block.y, c->block.z,
                          c->dynamic_shared, c->stream, params, extra);
}

CU_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t dynamic)
{
    return entry([&] {
        if (threads <= 0 || threads > 1024) return INVALID_VALUE;
        *blocks = occupancy(*static_cast<Function *>(function), threads, dynamic);
        return SUCCESS;
    });
}
CU_API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, void *function, int threads,
                                                            size_t dynamic, unsigned)
{
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, dynamic);
}

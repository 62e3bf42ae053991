// What a cubin or a PTX text says about its kernels.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace sim {

struct ImageKernel {
    std::vector<uint32_t> param_sizes; // of a cubin
    uint32_t max_threads = 1024;
    uint32_t registers = 255; // of a PTX text, which has none yet, the most there can be
    uint32_t static_shared = 0, local = 0;
};

struct Image {
    bool cubin;
    std::string target; // "sm_80", "sm_90a"
    std::map<std::string, ImageKernel> kernels;
};

enum class ImageError { none, invalid, other_architecture };
ImageError read_image(const void *data, int compute_capability, Image &image);

} // namespace sim

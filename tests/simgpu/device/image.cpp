#include "image.h"
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <elf.h>

namespace sim {

namespace {

constexpr uint16_t EM_CUDA_MACHINE = 190;
constexpr uint8_t NEW_ABI = 8; // from CUDA 13 on, or for sm_100 and later
constexpr uint32_t ARCHITECTURE_SPECIFIC = 0x800;
// Attributes of .nv.info sections.
constexpr uint8_t MAX_THREADS = 0x05, REQUIRED_THREADS = 0x10, FRAME_SIZE = 0x11, KPARAM_INFO = 0x17,
                  REGISTER_COUNT = 0x2f;
constexpr uint8_t SIZED_VALUE = 4;         // the format of attributes with a value of their own
constexpr uint32_t RESERVED_SHARED = 1024; // counted by cubins from sm_90 on

template <class T> T read(const unsigned char *from)
{
    T value;
    memcpy(&value, from, sizeof value);
    return value;
}

// Calls `each` with every attribute that has a value of its own.
template <class Each> void for_attributes(const unsigned char *at, const unsigned char *end, Each each)
{
    while (at + 4 <= end) {
        uint8_t format = at[0], attribute = at[1];
        uint16_t size = read<uint16_t>(at + 2);
        at += 4;
        if (format != SIZED_VALUE) continue;
        each(attribute, at);
        at += size;
    }
}

void read_kernel_info(const unsigned char *at, const unsigned char *end, ImageKernel &kernel)
{
    for_attributes(at, end, [&](uint8_t attribute, const unsigned char *value) {
        if (attribute == KPARAM_INFO) {
            size_t ordinal = read<uint16_t>(value + 4);
            kernel.param_sizes.resize(std::max(kernel.param_sizes.size(), ordinal + 1));
            kernel.param_sizes[ordinal] = read<uint32_t>(value + 8) >> 18;
        }
        if (attribute == MAX_THREADS || attribute == REQUIRED_THREADS)
            kernel.max_threads =
                read<uint32_t>(value) * read<uint32_t>(value + 4) * read<uint32_t>(value + 8);
    });
}

ImageError read_cubin(const unsigned char *data, int compute_capability, Image &image)
{
    auto header = read<Elf64_Ehdr>(data);
    if (header.e_machine != EM_CUDA_MACHINE) return ImageError::invalid;
    bool new_abi = header.e_ident[EI_ABIVERSION] >= NEW_ABI;
    int sm = int(new_abi ? header.e_flags >> 8 & 0xff : header.e_flags & 0xff);
    bool specific = !new_abi && header.e_flags & ARCHITECTURE_SPECIFIC;
    image.target = "sm_" + std::to_string(sm) + (specific ? "a" : "");
    bool fits =
        specific ? sm == compute_capability : sm / 10 == compute_capability / 10 && sm <= compute_capability;
    if (!fits) return ImageError::other_architecture;
    std::map<uint32_t, std::string> by_symbol;
    auto section = [&](int i) {
        return read<Elf64_Shdr>(data + header.e_shoff + size_t(i) * sizeof(Elf64_Shdr));
    };
    const char *names = reinterpret_cast<const char *>(data) + section(header.e_shstrndx).sh_offset;
    auto after = [](const std::string &name, const char *prefix) {
        return name.rfind(prefix, 0) == 0 ? name.substr(strlen(prefix)) : std::string();
    };
    for (int i = 0; i < header.e_shnum; ++i) {
        Elf64_Shdr s = section(i);
        std::string kernel = after(names + s.sh_name, ".text.");
        if (kernel.empty()) continue;
        image.kernels[kernel];
        by_symbol[s.sh_info & 0xffffff] = kernel;
    }
    for (int i = 0; i < header.e_shnum; ++i) {
        Elf64_Shdr s = section(i);
        std::string name = names + s.sh_name, kernel;
        const unsigned char *at = data + s.sh_offset;
        if (name == ".nv.info")
            for_attributes(at, at + s.sh_size, [&](uint8_t attribute, const unsigned char *value) {
                if (attribute != FRAME_SIZE && attribute != REGISTER_COUNT) return;
                auto owner = by_symbol.find(read<uint32_t>(value));
                if (owner == by_symbol.end()) return;
                if (attribute == FRAME_SIZE) image.kernels[owner->second].local = read<uint32_t>(value + 4);
                if (attribute == REGISTER_COUNT)
                    image.kernels[owner->second].registers = read<uint32_t>(value + 4);
            });
        else if (!(kernel = after(name, ".nv.info.")).empty())
            read_kernel_info(at, at + s.sh_size, image.kernels[kernel]);
        else if (!(kernel = after(name, ".nv.shared.")).empty() && image.kernels.contains(kernel))
            image.kernels[kernel].static_shared = uint32_t(s.sh_size) - (sm >= 90 ? RESERVED_SHARED : 0);
    }
    return ImageError::none;
}

ImageError read_ptx(const std::string &text, int compute_capability, Image &image)
{
    size_t target = text.find(".target ");
    if (text.find(".version") == text.npos || target == text.npos) return ImageError::invalid;
    target += strlen(".target ");
    image.target = text.substr(target, text.find_first_of(", \r\n", target) - target);
    int sm = atoi(image.target.c_str() + strlen("sm_"));
    bool fits = image.target.back() == 'a' ? sm == compute_capability : sm <= compute_capability;
    if (!fits) return ImageError::other_architecture;
    const char *entry = ".entry ";
    for (size_t at = 0; (at = text.find(entry, at)) != text.npos;) {
        at += strlen(entry);
        image.kernels[text.substr(at, text.find_first_of(" (\r\n", at) - at)];
    }
    return ImageError::none;
}

} // namespace

ImageError read_image(const void *data, int compute_capability, Image &image)
{
    auto *bytes = static_cast<const unsigned char *>(data);
    image.cubin = !memcmp(bytes, ELFMAG, SELFMAG);
    if (image.cubin) return read_cubin(bytes, compute_capability, image);
    return read_ptx(reinterpret_cast<const char *>(bytes), compute_capability, image);
}

} // namespace sim

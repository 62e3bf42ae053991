// Loaded before the C library: writes down every change to files below $RECORD_ROOT, in order, to $RECORD_LOG.
// A record: its kind (1 byte), two numbers (8 bytes each), two texts (a length of 4 bytes before each).
#include <cstdarg>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <mutex>
#include <string>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

enum Kind : uint8_t { Create = 1, Write, Truncate, SyncFile, SyncFolder, Rename, Link, Unlink, MakeFolder, Symlink, Unknown };

std::recursive_mutex one_at_a_time;

template <typename F> F *next(const char *name) { return reinterpret_cast<F *>(dlsym(RTLD_NEXT, name)); }

const std::string &root() {
    static const std::string *root = new std::string(getenv("RECORD_ROOT") ? getenv("RECORD_ROOT") : "");
    return *root;
}

bool below(const std::string &path) { return !root().empty() && path.compare(0, root().size(), root()) == 0; }

std::string path_of(int fd) {
    char name[64], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path);
    return std::string(path, length < 0 ? 0 : length);
}

std::string path_at(int folder, const char *path) {
    return path[0] == '/' || folder == AT_FDCWD ? std::string(path) : path_of(folder) + "/" + path;
}

void record(Kind kind, uint64_t a, uint64_t b, const std::string &first, const std::string &second = "") {
    static int log = syscall(SYS_openat, AT_FDCWD, getenv("RECORD_LOG"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    std::string text(1, char(kind));
    text.append(reinterpret_cast<char *>(&a), 8).append(reinterpret_cast<char *>(&b), 8);
    for (const std::string *part : {&first, &second}) {
        uint32_t length = part->size();
        text.append(reinterpret_cast<char *>(&length), 4).append(*part);
    }
    syscall(SYS_write, log, text.data(), text.size());
}

uint64_t number_of(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 ? found.st_ino : 0;
}

int opened(int (*real)(int, const char *, int, ...), int folder, const char *path, int flags, mode_t mode) {
    std::lock_guard<std::recursive_mutex> guard(one_at_a_time);
    std::string full = path_at(folder, path);
    struct stat found;
    bool is_new = (flags & O_CREAT) && lstat(full.c_str(), &found) != 0;
    int fd = real(folder, path, flags, mode);
    if (fd >= 0 && below(full)) {
        if (is_new) record(Create, number_of(fd), 0, full);
        else if (flags & O_TRUNC) record(Truncate, number_of(fd), 0, full);
    }
    return fd;
}

template <typename F> int named(Kind kind, const std::string &first, const std::string &second, F real) {
    std::lock_guard<std::recursive_mutex> guard(one_at_a_time);
    int result = real();
    if (result == 0 && (below(first) || below(second))) record(kind, 0, 0, first, second);
    return result;
}

int synchronised(const char *name, int fd) {
    std::lock_guard<std::recursive_mutex> guard(one_at_a_time);
    int result = next<int(int)>(name)(fd);
    std::string path = path_of(fd);
    struct stat found;
    if (result == 0 && fstat(fd, &found) == 0) {
        // The folder around the root too: the root's own name is in it.
        if (S_ISDIR(found.st_mode)) record(SyncFolder, 0, 0, path);
        else if (below(path)) record(SyncFile, found.st_ino, 0, path);
    }
    return result;
}

template <typename R, typename F> R unknown(const char *name, int fd, F real) {
    if (below(path_of(fd))) record(Unknown, 0, 0, name);
    return real();
}

mode_t mode_of(int flags, va_list more) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; }

} // namespace

extern "C" {

#define OPEN(name, at)                                                                                                 \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t mode = mode_of(flags, more);                                                                            \
        va_end(more);                                                                                                  \
        return opened(next<int(int, const char *, int, ...)>(#at), AT_FDCWD, path, flags, mode);                       \
    }                                                                                                                  \
    int at(int folder, const char *path, int flags, ...) {                                                             \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t mode = mode_of(flags, more);                                                                            \
        va_end(more);                                                                                                  \
        return opened(next<int(int, const char *, int, ...)>(#at), folder, path, flags, mode);                         \
    }
OPEN(open, openat)
OPEN(open64, openat64)

ssize_t write(int fd, const void *bytes, size_t count) {
    std::lock_guard<std::recursive_mutex> guard(one_at_a_time);
    ssize_t written = next<ssize_t(int, const void *, size_t)>("write")(fd, bytes, count);
    if (written > 0 && below(path_of(fd))) {
        uint64_t begin = lseek(fd, 0, SEEK_CUR) - written;
        record(Write, number_of(fd), begin, "", std::string(static_cast<const char *>(bytes), written));
    }
    return written;
}

int fsync(int fd) { return synchronised("fsync", fd); }
int fdatasync(int fd) { return synchronised("fdatasync", fd); }

int rename(const char *from, const char *to) {
    return named(Rename, from, to, [&] { return next<int(const char *, const char *)>("rename")(from, to); });
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    auto real = next<int(int, const char *, int, const char *, int)>("linkat");
    return named(Link, path_at(a, from), path_at(b, to), [&] { return real(a, from, b, to, flags); });
}
int symlink(const char *target, const char *path) {
    return named(Symlink, target, path, [&] { return next<int(const char *, const char *)>("symlink")(target, path); });
}
int unlink(const char *path) {
    return named(Unlink, path, "", [&] { return next<int(const char *)>("unlink")(path); });
}
int rmdir(const char *path) {
    return named(Unlink, path, "", [&] { return next<int(const char *)>("rmdir")(path); });
}
int unlinkat(int folder, const char *path, int flags) {
    auto real = next<int(int, const char *, int)>("unlinkat");
    return named(Unlink, path_at(folder, path), "", [&] { return real(folder, path, flags); });
}
int mkdir(const char *path, mode_t mode) {
    return named(MakeFolder, path, "", [&] { return next<int(const char *, mode_t)>("mkdir")(path, mode); });
}

// What the program does not ask for today; the simulation would not know what to make of it.
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    return unknown<ssize_t>("pwrite64", fd, [&] { return next<ssize_t(int, const void *, size_t, off64_t)>("pwrite64")(fd, bytes, count, at); });
}
ssize_t writev(int fd, const struct iovec *blocks, int count) {
    return unknown<ssize_t>("writev", fd, [&] { return next<ssize_t(int, const struct iovec *, int)>("writev")(fd, blocks, count); });
}
int ftruncate64(int fd, off64_t length) {
    return unknown<int>("ftruncate64", fd, [&] { return next<int(int, off64_t)>("ftruncate64")(fd, length); });
}
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t count, unsigned flags) {
    auto real = next<ssize_t(int, off64_t *, int, off64_t *, size_t, unsigned)>("copy_file_range");
    return unknown<ssize_t>("copy_file_range", to, [&] { return real(from, a, to, b, count, flags); });
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t count) {
    auto real = next<ssize_t(int, int, off64_t *, size_t)>("sendfile64");
    return unknown<ssize_t>("sendfile64", to, [&] { return real(to, from, at, count); });
}

} // extern "C"

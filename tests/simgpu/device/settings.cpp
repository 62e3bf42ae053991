#include "settings.h"
#include "fiber.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace sim {

Settings settings;

namespace {

struct Choice {
    const char *name;
    int value;
};

// Reads one variable that names one of `choices`.
std::string choose(const char *variable, std::initializer_list<Choice> choices, int &value)
{
    const char *text = getenv(variable);
    if (!text) return "";
    std::string names;
    for (const Choice &choice : choices) {
        if (!strcmp(text, choice.name)) {
            value = choice.value;
            return "";
        }
        names += std::string(names.empty() ? "" : ", ") + choice.name;
    }
    return std::string(variable) + " is \"" + text + "\"; it may be one of: " + names;
}

std::string number(const char *variable, uint64_t &value)
{
    const char *text = getenv(variable);
    if (!text) return "";
    char *end;
    value = strtoull(text, &end, 10);
    return *text && !*end ? "" : std::string(variable) + " is \"" + text + "\"; it must be a number";
}

std::mutex report_mutex;
std::string report_text;
std::map<std::string, int> reported;
Fault fault_seen = Fault::none;
constexpr size_t MAX_REPORTS = 20;

} // namespace

std::string read_settings()
{
    Settings read;
    int schedule = int(read.schedule), async = int(read.async), checks = read.checks;
    uint64_t memory = read.memory;
    std::string errors[] = {
        choose("SIMGPU_SCHEDULE",
               {{"forward", int(Schedule::forward)},
                {"reverse", int(Schedule::reverse)},
                {"random", int(Schedule::random)},
                {"ahead", int(Schedule::ahead)},
                {"behind", int(Schedule::behind)}},
               schedule),
        choose("SIMGPU_ASYNC", {{"lazy", int(Async::lazy)}, {"eager", int(Async::eager)}}, async),
        choose("SIMGPU_CHECKS", {{"on", 1}, {"off", 0}}, checks),
        choose("SIMGPU_CC", {{"75", 75},
                {"80", 80},
                {"86", 86},
                {"89", 89},
                {"90", 90},
                {"100", 100},
                {"120", 120}},
               read.compute_capability),
        choose("SIMGPU_DEVICES", {{"0", 0}, {"1", 1}}, read.devices),
        number("SIMGPU_DRIVER", read.driver),
        number("SIMGPU_MULTIPROCESSORS", read.multiprocessors),
        number("SIMGPU_SEED", read.seed),
        number("SIMGPU_MEMORY", memory),
    };
    for (const std::string &error : errors)
        if (!error.empty()) return error;
    read.schedule = Schedule(schedule);
    read.async = Async(async);
    read.checks = checks;
    read.memory = memory;
    settings = read;
    return "";
}

void report(Fault fault, const char *kind, Site site, const std::string &text)
{
    std::lock_guard lock(report_mutex);
    if (fault_seen == Fault::none) fault_seen = fault;
    const Block *block = tls.block;
    const char *kernel = block ? block->launch->kernel->name : "?";
    const char *slash = site.file ? strrchr(site.file, '/') : nullptr;
    const char *file = slash ? slash + 1 : site.file;
    std::string place = file ? std::string(file) + ":" + std::to_string(site.line) : "";
    if (reported[std::string(kind) + kernel + place]++ || reported.size() > MAX_REPORTS) return;
    auto index = [](Index i) {
        return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
    };
    std::string line = std::string("simgpu: ") + kind + " in kernel " + kernel + ", block " + index(tls.bid) +
                       ", thread " + index(tls.tid) + (place.empty() ? "" : ", at " + place) + ": " + text +
                       "\n";
    report_text += line;
    fputs(line.c_str(), stderr);
}

void stop(Fault fault, const char *kind, Site site, const std::string &text)
{
    report(fault, kind, site, text);
    tls.block->aborted = true;
    leave_block(*tls.block);
}

void trap(const char *message, Site site) { stop(Fault::launch_failed, "trap", site, message); }

Fault first_fault()
{
    std::lock_guard lock(report_mutex);
    return fault_seen;
}

std::string reports()
{
    std::lock_guard lock(report_mutex);
    return report_text;
}

void clear_reports()
{
    std::lock_guard lock(report_mutex);
    fault_seen = Fault::none;
    report_text.clear();
    reported.clear();
}

} // namespace sim

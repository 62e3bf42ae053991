// Streams, events and graphs. Work waits in its stream until somebody synchronises, and then streams advance
// in random order: as late and as mixed as CUDA allows. SIMGPU_ASYNC=eager runs it at once.
#include "driver.h"

namespace sim {

namespace {

constexpr int CAPTURE_MODE_THREAD_LOCAL = 1, CAPTURE_MODE_RELAXED = 2;

bool has_earlier(const Stream &stream, uint64_t sequence)
{
    return !stream.queue.empty() && stream.queue.front().sequence < sequence;
}

// The null stream and blocking streams wait for each other's earlier work.
bool held_back(const Stream &stream, uint64_t sequence)
{
    if (&stream != &driver.null_stream) return stream.blocking && has_earlier(driver.null_stream, sequence);
    for (const auto &other : driver.streams)
        if (other->blocking && has_earlier(*other, sequence)) return true;
    return false;
}

// Runs the head of a stream if it may.
bool step(Stream &stream)
{
    if (stream.queue.empty()) return false;
    Item &head = stream.queue.front();
    if ((head.waits_for && !head.waits_for->done) || held_back(stream, head.sequence)) return false;
    Item item = std::move(head);
    stream.queue.pop_front();
    if (!item.run || driver.sticky) return true;
    if (CUresult error = item.run()) driver.sticky = error;
    return true;
}

bool all_done()
{
    if (!driver.null_stream.queue.empty()) return false;
    for (const auto &stream : driver.streams)
        if (!stream->queue.empty()) return false;
    return true;
}

} // namespace

Stream *find_stream(void *handle)
{
    // Null, and the two values that stand for the legacy and the per-thread default stream.
    if (uintptr_t(handle) <= 2) return &driver.null_stream;
    for (const auto &stream : driver.streams)
        if (stream.get() == handle && !stream->destroyed) return stream.get();
    return nullptr;
}

// Runs one piece of work of some stream; false if none may run.
bool advance()
{
    size_t count = driver.streams.size() + 1;
    driver.random_state = driver.random_state * 6364136223846793005ull + 1442695040888963407ull;
    size_t first = size_t(driver.random_state >> 33) % count;
    for (size_t i = 0; i < count; ++i) {
        size_t at = (first + i) % count;
        if (step(at ? *driver.streams[at - 1] : driver.null_stream)) return true;
    }
    return false;
}

CUresult drain(const std::function<bool()> &done)
{
    while (!done() && !driver.sticky)
        if (!advance()) return driver.sticky = refuse(LAUNCH_FAILED, "every stream waits for another");
    std::erase_if(driver.streams,
                  [](const auto &stream) { return stream->destroyed && stream->queue.empty(); });
    return driver.sticky;
}

CUresult drain_stream(const Stream &stream)
{
    return drain([&] { return stream.queue.empty(); });
}

CUresult drain_all() { return drain(all_done); }

CUresult enqueue(Stream &stream, Work work)
{
    if (stream.capture) {
        if (stream.capture->invalid) return STREAM_CAPTURE_INVALIDATED;
        stream.capture->work.push_back(std::move(work));
        return SUCCESS;
    }
    for (const auto &other : driver.streams)
        if (&stream == &driver.null_stream && other->blocking && other->capture)
            return refuse(STREAM_CAPTURE_IMPLICIT,
                          "work in the null stream while a blocking stream captures");
    stream.queue.push_back({std::move(work), nullptr, ++driver.sequence});
    return settings.async == Async::eager ? drain_stream(stream) : SUCCESS;
}

CUresult check_not_capturing(const char *call)
{
    for (const auto &stream : driver.streams) {
        if (!stream->capture) continue;
        Capture &capture = *stream->capture;
        bool own = capture.thread == std::this_thread::get_id();
        if (capture.mode == CAPTURE_MODE_RELAXED || (capture.mode == CAPTURE_MODE_THREAD_LOCAL && !own))
            continue;
        capture.invalid = true;
        return refuse(STREAM_CAPTURE_UNSUPPORTED, std::string(call) + " while a stream captures");
    }
    return SUCCESS;
}

namespace {

// Runs `body` with the stream of a handle.
template <class Body> CUresult with_stream(void *handle, Body body)
{
    return entry([&]() -> CUresult {
        Stream *stream = find_stream(handle);
        return stream ? body(*stream) : refuse(INVALID_HANDLE, "not a stream, or one that was destroyed");
    });
}

template <class Body> CUresult with_event(void *handle, Body body)
{
    return entry([&]() -> CUresult {
        auto *event = static_cast<Event *>(handle);
        return driver.events.contains(event)
                   ? body(*event)
                   : refuse(INVALID_HANDLE, "not an event, or one that was destroyed");
    });
}

} // namespace

} // namespace sim

using namespace sim;

constexpr unsigned STREAM_NON_BLOCKING = 1, EVENT_DISABLE_TIMING = 2;

CU_API cuStreamCreate(void **handle, unsigned flags)
{
    return entry([&] {
        driver.streams.push_back(std::make_unique<Stream>());
        driver.streams.back()->blocking = !(flags & STREAM_NON_BLOCKING);
        *handle = driver.streams.back().get();
        return SUCCESS;
    });
}

CU_API cuStreamCreateWithPriority(void **handle, unsigned flags, int)
{
    return cuStreamCreate(handle, flags);
}

// Work already queued is still done.
CU_API cuStreamDestroy_v2(void *handle)
{
    return with_stream(handle, [&](Stream &stream) {
        if (&stream == &driver.null_stream) return INVALID_HANDLE;
        stream.destroyed = true;
        return SUCCESS;
    });
}

CU_API cuStreamSynchronize(void *handle)
{
    return with_stream(handle, [&](Stream &stream) {
        if (stream.capture) {
            stream.capture->invalid = true;
            return refuse(STREAM_CAPTURE_UNSUPPORTED, "cuStreamSynchronize of a capturing stream");
        }
        return drain_stream(stream);
    });
}

CU_API cuStreamQuery(void *handle)
{
    return with_stream(handle, [&](Stream &stream) {
        if (stream.capture) return STREAM_CAPTURE_UNSUPPORTED;
        bool done = stream.queue.empty();
        if (!done) advance(); // so that who asks again and again gets there
        return done ? SUCCESS : NOT_READY;
    });
}

CU_API cuStreamWaitEvent(void *stream_handle, void *event_handle, unsigned)
{
    return with_stream(stream_handle, [&](Stream &stream) {
        return with_event(event_handle, [&](Event &event) {
            if (event.capture) {
                if (stream.capture && stream.capture != event.capture)
                    return refuse(STREAM_CAPTURE_ISOLATION, "the event belongs to another capture");
                stream.capture = event.capture; // the stream joins the capture
                return SUCCESS;
            }
            if (stream.capture) {
                if (!event.record) return SUCCESS;
                stream.capture->invalid = true;
                return refuse(STREAM_CAPTURE_ISOLATION,
                              "a capturing stream waits for an event recorded outside the capture");
            }
            if (event.record) stream.queue.push_back({nullptr, event.record, ++driver.sequence});
            return SUCCESS;
        });
    });
}

CU_API cuStreamBeginCapture_v2(void *handle, int mode)
{
    return with_stream(handle, [&](Stream &stream) {
        if (&stream == &driver.null_stream)
            return refuse(STREAM_CAPTURE_UNSUPPORTED, "the null stream cannot capture");
        if (stream.capture) return refuse(INVALID_VALUE, "the stream captures already");
        stream.capture = std::make_shared<Capture>();
        stream.capture->mode = mode;
        stream.capture->thread = std::this_thread::get_id();
        stream.began_capture = true;
        return SUCCESS;
    });
}

CU_API cuStreamEndCapture(void *handle, void **graph)
{
    return with_stream(handle, [&](Stream &stream) {
        *graph = nullptr;
        if (!stream.began_capture) return refuse(INVALID_VALUE, "the stream did not begin a capture");
        std::shared_ptr<Capture> capture = stream.capture;
        stream.began_capture = false;
        for (const auto &other : driver.streams)
            if (other->capture == capture) other->capture = nullptr;
        if (capture->invalid) return STREAM_CAPTURE_INVALIDATED;
        *graph = new Graph(capture->work);
        return SUCCESS;
    });
}

CU_API cuStreamIsCapturing(void *handle, int *status)
{
    return with_stream(handle, [&](Stream &stream) {
        *status = !stream.capture ? 0 : stream.capture->invalid ? 2 : 1;
        return SUCCESS;
    });
}

CU_API cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long)
{
    return entry([&] {
        *executable = new std::shared_ptr<Graph>(std::make_shared<Graph>(*static_cast<Graph *>(graph)));
        return SUCCESS;
    });
}

CU_API cuGraphUpload(void *, void *) { return SUCCESS; }

CU_API cuGraphLaunch(void *executable, void *handle)
{
    return with_stream(handle, [&](Stream &stream) {
        std::shared_ptr<Graph> graph = *static_cast<std::shared_ptr<Graph> *>(executable);
        return enqueue(stream, [graph] {
            for (const Work &work : *graph)
                if (CUresult error = work()) return error;
            return SUCCESS;
        });
    });
}

CU_API cuGraphGetNodes(void *graph, void **nodes, size_t *count)
{
    if (nodes) return refuse(NOT_SUPPORTED, "cuGraphGetNodes gives the count only");
    *count = static_cast<Graph *>(graph)->size();
    return SUCCESS;
}

CU_API cuGraphDestroy(void *graph)
{
    delete static_cast<Graph *>(graph);
    return SUCCESS;
}

CU_API cuGraphExecDestroy(void *executable)
{
    delete static_cast<std::shared_ptr<Graph> *>(executable);
    return SUCCESS;
}

CU_API cuEventCreate(void **handle, unsigned flags)
{
    return entry([&] {
        auto *event = new Event{nullptr, nullptr, !(flags & EVENT_DISABLE_TIMING)};
        driver.events.insert(event);
        *handle = event;
        return SUCCESS;
    });
}

CU_API cuEventDestroy_v2(void *handle)
{
    return with_event(handle, [&](Event &event) {
        driver.events.erase(&event);
        delete &event;
        return SUCCESS;
    });
}

CU_API cuEventRecord(void *event_handle, void *stream_handle)
{
    return with_stream(stream_handle, [&](Stream &stream) {
        return with_event(event_handle, [&](Event &event) {
            event.capture = stream.capture;
            if (stream.capture) return SUCCESS;
            auto record = event.record = std::make_shared<Record>();
            return enqueue(stream, [record] {
                record->done = true;
                record->time = std::chrono::steady_clock::now();
                return SUCCESS;
            });
        });
    });
}

CU_API cuEventQuery(void *handle)
{
    return with_event(handle, [&](Event &event) {
        if (event.capture) return STREAM_CAPTURE_UNSUPPORTED;
        bool done = !event.record || event.record->done;
        if (!done) advance();
        return done ? SUCCESS : NOT_READY;
    });
}

CU_API cuEventSynchronize(void *handle)
{
    return with_event(handle, [&](Event &event) {
        if (event.capture) return STREAM_CAPTURE_UNSUPPORTED;
        std::shared_ptr<Record> record = event.record;
        return drain([record] { return !record || record->done; });
    });
}

CU_API cuEventElapsedTime(float *milliseconds, void *from, void *to)
{
    return with_event(from, [&](Event &a) {
        return with_event(to, [&](Event &b) {
            if (!a.timing || !b.timing || !a.record || !b.record) return INVALID_HANDLE;
            if (!a.record->done || !b.record->done) return NOT_READY;
            *milliseconds = std::chrono::duration<float, std::milli>(b.record->time - a.record->time).count();
            return SUCCESS;
        });
    });
}
CU_API cuEventElapsedTime_v2(float *milliseconds, void *from, void *to)
{
    return cuEventElapsedTime(milliseconds, from, to);
}

CU_API cuLaunchHostFunc(void *handle, void (*function)(void *), void *argument)
{
    return with_stream(handle, [&](Stream &stream) {
        return enqueue(stream, [=] {
            function(argument);
            return SUCCESS;
        });
    });
}

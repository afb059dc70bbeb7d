// A CUDA driver without a GPU, for tests of what calls it: memory is the host's, kernels are launched and do
// nothing, and what breaks the driver's rules ends the process with a sentence. Only the functions that the crate
// and cudarc call are here, with the driver's own names and types as far as they matter.
//
// FAKE_CUDA_VERSION is the version of CUDA that it is for (13000 by default).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};

constexpr size_t TOTAL = size_t(1) << 32;
constexpr size_t ALIGNMENT = 256;

struct Module {
    std::string image;
};
struct Function {
    Module* module;
};
// A step of a graph: a launch, a copy or a clearing.
struct Step {
    Function* function;
    uint64_t from, to;
    size_t bytes;
};
struct Graph {
    std::vector<Step> steps;
};
struct Stream {
    bool capturing = false, spoiled = false;
    Graph* graph = nullptr;
};
struct Pool {};
struct Event {};
struct Context {};

std::recursive_mutex turn;
bool started;
int retained;
Context primary;
thread_local Context* current;
std::map<uint64_t, size_t> allocations;
// A context takes some itself.
size_t used = 64 << 20;
std::set<void*> modules, functions, graphs, executables, streams, pools, events;
Stream legacy;

[[noreturn]] void broken(const char* call, const char* rule) {
    fprintf(stderr, "the driver's rules are broken: %s: %s\n", call, rule);
    abort();
}

template <typename T> T* alive(const char* call, const std::set<void*>& all, void* handle) {
    if (!all.count(handle)) broken(call, "this handle is not alive");
    return (T*)handle;
}

// A new handle, and the end of one.
template <typename T> Result made(std::set<void*>& all, void** handle, T* value) {
    all.insert(*handle = value);
    return SUCCESS;
}
template <typename T> Result destroyed(const char* call, std::set<void*>& all, void* handle) {
    delete alive<T>(call, all, handle);
    all.erase(handle);
    return SUCCESS;
}

Stream* stream_of(const char* call, void* handle) {
    return handle ? alive<Stream>(call, streams, handle) : &legacy;
}

void in_memory(const char* call, uint64_t address, size_t bytes) {
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) broken(call, "this is no device memory");
    --after;
    if (address + bytes > after->first + after->second) broken(call, "outside of device memory");
}

bool capturing_anywhere() {
    for (void* stream : streams)
        if (((Stream*)stream)->capturing) return true;
    return false;
}

// What a capture does not allow spoils it.
Result not_while_capturing() {
    if (!capturing_anywhere()) return SUCCESS;
    for (void* stream : streams) ((Stream*)stream)->spoiled = true;
    return CAPTURE_UNSUPPORTED;
}

Result allocate(uint64_t* address, size_t bytes) {
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > TOTAL - used) return OUT_OF_MEMORY;
    void* memory = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, 0xff, bytes);
    *address = (uint64_t)memory;
    allocations[*address] = bytes;
    used += bytes;
    return SUCCESS;
}

void release(const char* call, uint64_t address) {
    auto found = allocations.find(address);
    if (found == allocations.end()) broken(call, "nothing is allocated there");
    used -= found->second;
    allocations.erase(found);
    free((void*)address);
}

void perform(const char* call, const Step& step) {
    if (step.function) {
        Function* function = alive<Function>(call, functions, step.function);
        alive<Module>(call, modules, function->module);
    } else {
        in_memory(call, step.to, step.bytes);
        if (!step.from) {
            memset((void*)step.to, 0, step.bytes);
        } else {
            in_memory(call, step.from, step.bytes);
            memcpy((void*)step.to, (void*)step.from, step.bytes);
        }
    }
}

Result queue(const char* call, void* handle, const Step& step) {
    Stream* stream = stream_of(call, handle);
    if (stream->capturing)
        stream->graph->steps.push_back(step);
    else
        perform(call, step);
    return SUCCESS;
}

}  // namespace

#define CALL extern "C" __attribute__((visibility("default"))) int
#define TURN std::lock_guard<std::recursive_mutex> guard(turn)
// For what needs a context.
#define IN_CONTEXT                                  \
    TURN;                                           \
    if (!started) return NOT_INITIALIZED;           \
    if (current != &primary || retained == 0) return INVALID_CONTEXT

CALL cuInit(unsigned) {
    TURN;
    started = true;
    return SUCCESS;
}
CALL cuDriverGetVersion(int* version) {
    const char* given = getenv("FAKE_CUDA_VERSION");
    *version = given ? atoi(given) : 13000;
    return SUCCESS;
}
CALL cuDeviceGetCount(int* count) {
    *count = 1;
    return started ? SUCCESS : NOT_INITIALIZED;
}
CALL cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}
CALL cuDeviceGetName(char* name, int bytes, int) {
    snprintf(name, bytes, "Fake GPU");
    return SUCCESS;
}
CALL cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 16: *value = 132; break;  // multiprocessors
        case 75: *value = 9; break;    // capability
        case 76: *value = 0; break;
        case 115: *value = 1; break;   // memory pools
        default: *value = 0;
    }
    return SUCCESS;
}
CALL cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = TOTAL;
    return SUCCESS;
}
CALL cuDevicePrimaryCtxRetain(void** context, int) {
    TURN;
    retained++;
    *context = &primary;
    return SUCCESS;
}
CALL cuDevicePrimaryCtxRelease_v2(int) {
    TURN;
    if (retained-- == 0) broken("cuDevicePrimaryCtxRelease", "it was not retained");
    return SUCCESS;
}
CALL cuCtxSetCurrent(void* context) {
    current = (Context*)context;
    return SUCCESS;
}
CALL cuCtxGetCurrent(void** context) {
    *context = current;
    return SUCCESS;
}
CALL cuCtxSynchronize() {
    IN_CONTEXT;
    return not_while_capturing();
}
CALL cuGetErrorString(int, const char** text) {
    *text = "words of the fake driver";
    return SUCCESS;
}
CALL cuGetErrorName(int, const char** text) {
    *text = "CUDA_ERROR";
    return SUCCESS;
}

CALL cuStreamCreate(void** stream, unsigned) {
    IN_CONTEXT;
    return made(streams, stream, new Stream);
}
CALL cuStreamDestroy_v2(void* handle) {
    IN_CONTEXT;
    Stream* stream = alive<Stream>("cuStreamDestroy", streams, handle);
    if (stream->capturing) broken("cuStreamDestroy", "it is being captured");
    streams.erase(handle);
    delete stream;
    return SUCCESS;
}
CALL cuStreamSynchronize(void* handle) {
    IN_CONTEXT;
    Stream* stream = stream_of("cuStreamSynchronize", handle);
    if (!stream->capturing) return SUCCESS;
    stream->spoiled = true;
    return CAPTURE_UNSUPPORTED;
}
CALL cuStreamIsCapturing(void* handle, int* status) {
    IN_CONTEXT;
    Stream* stream = stream_of("cuStreamIsCapturing", handle);
    *status = !stream->capturing ? 0 : stream->spoiled ? 2 : 1;
    return SUCCESS;
}
CALL cuStreamBeginCapture_v2(void* handle, int) {
    IN_CONTEXT;
    Stream* stream = stream_of("cuStreamBeginCapture", handle);
    if (stream == &legacy || stream->capturing) return CAPTURE_UNSUPPORTED;
    stream->capturing = true;
    stream->spoiled = false;
    stream->graph = new Graph;
    return SUCCESS;
}
CALL cuStreamEndCapture(void* handle, void** graph) {
    IN_CONTEXT;
    Stream* stream = stream_of("cuStreamEndCapture", handle);
    if (!stream->capturing) return INVALID_VALUE;
    stream->capturing = false;
    *graph = nullptr;
    if (stream->spoiled) {
        delete stream->graph;
        return CAPTURE_INVALIDATED;
    }
    *graph = stream->graph;
    graphs.insert(*graph);
    return SUCCESS;
}
CALL cuStreamWaitEvent(void* handle, void* event, unsigned) {
    IN_CONTEXT;
    stream_of("cuStreamWaitEvent", handle);
    alive<Event>("cuStreamWaitEvent", events, event);
    return SUCCESS;
}
CALL cuEventCreate(void** event, unsigned) {
    IN_CONTEXT;
    return made(events, event, new Event);
}
CALL cuEventDestroy_v2(void* event) {
    IN_CONTEXT;
    return destroyed<Event>("cuEventDestroy", events, event);
}
CALL cuEventRecord(void* event, void* handle) {
    IN_CONTEXT;
    alive<Event>("cuEventRecord", events, event);
    stream_of("cuEventRecord", handle);
    return SUCCESS;
}
CALL cuEventSynchronize(void* event) {
    IN_CONTEXT;
    alive<Event>("cuEventSynchronize", events, event);
    return not_while_capturing();
}
CALL cuEventQuery(void* event) {
    IN_CONTEXT;
    alive<Event>("cuEventQuery", events, event);
    return SUCCESS;
}

CALL cuGraphInstantiateWithFlags(void** executable, void* graph, uint64_t) {
    IN_CONTEXT;
    return made(executables, executable, new Graph(*alive<Graph>("cuGraphInstantiate", graphs, graph)));
}
CALL cuGraphLaunch(void* executable, void* handle) {
    IN_CONTEXT;
    for (const Step& step : alive<Graph>("cuGraphLaunch", executables, executable)->steps)
        queue("cuGraphLaunch", handle, step);
    return SUCCESS;
}
CALL cuGraphDestroy(void* graph) {
    IN_CONTEXT;
    return destroyed<Graph>("cuGraphDestroy", graphs, graph);
}
CALL cuGraphExecDestroy(void* executable) {
    IN_CONTEXT;
    return destroyed<Graph>("cuGraphExecDestroy", executables, executable);
}

CALL cuMemPoolCreate(void** pool, const void*) {
    IN_CONTEXT;
    return made(pools, pool, new Pool);
}
CALL cuMemPoolDestroy(void* pool) {
    IN_CONTEXT;
    return destroyed<Pool>("cuMemPoolDestroy", pools, pool);
}
CALL cuMemPoolSetAttribute(void* pool, int, void*) {
    IN_CONTEXT;
    alive<Pool>("cuMemPoolSetAttribute", pools, pool);
    return SUCCESS;
}
CALL cuMemPoolTrimTo(void* pool, size_t) {
    IN_CONTEXT;
    alive<Pool>("cuMemPoolTrimTo", pools, pool);
    return SUCCESS;
}
// In a capture it would be the graph's memory, which the crate does not want.
CALL cuMemAllocFromPoolAsync(uint64_t* address, size_t bytes, void* pool, void* handle) {
    IN_CONTEXT;
    alive<Pool>("cuMemAllocFromPoolAsync", pools, pool);
    if (stream_of("cuMemAllocFromPoolAsync", handle)->capturing)
        broken("cuMemAllocFromPoolAsync", "this stream is being captured");
    return allocate(address, bytes);
}
CALL cuMemAllocAsync(uint64_t* address, size_t bytes, void* handle) {
    IN_CONTEXT;
    stream_of("cuMemAllocAsync", handle);
    return allocate(address, bytes);
}
CALL cuMemFreeAsync(uint64_t address, void* handle) {
    IN_CONTEXT;
    if (stream_of("cuMemFreeAsync", handle)->capturing)
        broken("cuMemFreeAsync", "this stream is being captured");
    release("cuMemFreeAsync", address);
    return SUCCESS;
}
CALL cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    IN_CONTEXT;
    if (int refused = not_while_capturing()) return refused;
    return allocate(address, bytes);
}
CALL cuMemFree_v2(uint64_t address) {
    IN_CONTEXT;
    if (int refused = not_while_capturing()) return refused;
    release("cuMemFree", address);
    return SUCCESS;
}
CALL cuMemGetInfo_v2(size_t* free, size_t* total) {
    IN_CONTEXT;
    *free = TOTAL - used;
    *total = TOTAL;
    return SUCCESS;
}
// Pageable memory of the host is copied before the call returns; a graph would read it at each launch.
CALL cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* handle) {
    IN_CONTEXT;
    if (stream_of("cuMemcpyHtoDAsync", handle)->capturing)
        broken("cuMemcpyHtoDAsync", "the graph would keep the address of the host's memory");
    in_memory("cuMemcpyHtoDAsync", to, bytes);
    memcpy((void*)to, from, bytes);
    return SUCCESS;
}
CALL cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* handle) {
    IN_CONTEXT;
    if (stream_of("cuMemcpyDtoHAsync", handle)->capturing)
        broken("cuMemcpyDtoHAsync", "the graph would keep the address of the host's memory");
    in_memory("cuMemcpyDtoHAsync", from, bytes);
    memcpy(to, (void*)from, bytes);
    return SUCCESS;
}
CALL cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* handle) {
    IN_CONTEXT;
    return queue("cuMemcpyDtoDAsync", handle, {nullptr, from, to, bytes});
}
CALL cuMemsetD8Async(uint64_t to, unsigned char, size_t bytes, void* handle) {
    IN_CONTEXT;
    return queue("cuMemsetD8Async", handle, {nullptr, 0, to, bytes});
}
// Of the host's memory it knows nothing.
CALL cuPointerGetAttribute(void*, int, uint64_t) { return INVALID_VALUE; }

CALL cuModuleLoadData(void** module, const void* image) {
    IN_CONTEXT;
    if (int refused = not_while_capturing()) return refused;
    // Machine code is an ELF file. Its size is where the section headers end.
    const char* bytes = (const char*)image;
    if (memcmp(bytes, "\x7f" "ELF", 4)) return INVALID_IMAGE;
    uint64_t headers;
    uint16_t size, count;
    memcpy(&headers, bytes + 40, 8), memcpy(&size, bytes + 58, 2), memcpy(&count, bytes + 60, 2);
    return made(modules, module, new Module{std::string(bytes, headers + size * count)});
}
CALL cuModuleUnload(void* module) {
    IN_CONTEXT;
    delete alive<Module>("cuModuleUnload", modules, module);
    modules.erase(module);
    for (auto at = functions.begin(); at != functions.end();) {
        Function* function = (Function*)*at;
        if (function->module == module) {
            at = functions.erase(at);
            delete function;
        } else {
            ++at;
        }
    }
    return SUCCESS;
}
CALL cuModuleGetFunction(void** function, void* handle, const char* name) {
    IN_CONTEXT;
    Module* module = alive<Module>("cuModuleGetFunction", modules, handle);
    if (module->image.find(std::string(".text.") + name + '\0') == std::string::npos) return NOT_FOUND;
    return made(functions, function, new Function{module});
}
CALL cuFuncGetAttribute(int* value, int, void* function) {
    IN_CONTEXT;
    alive<Function>("cuFuncGetAttribute", functions, function);
    *value = 32;
    return SUCCESS;
}
CALL cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                    unsigned, void* handle, void** parameters, void** extra) {
    IN_CONTEXT;
    if (!x || !y || !z || x > 0x7fffffffu || y > 65535 || z > 65535 || !threads || threads > 1024)
        return INVALID_VALUE;
    if (!parameters && !extra) return INVALID_VALUE;
    alive<Function>("cuLaunchKernel", functions, function);
    return queue("cuLaunchKernel", handle, {(Function*)function, 0, 0, 0});
}

// unfold, channels last, where the channels of a group fill no sector of memory: A[n, o, g, k, c], whose rows
// of all groups and taps are put together in shared memory, so that they are stored as wide as the machine
// can. Compiled for one layer's taps and channels.
//
// A block has POSITIONS neighbouring rows, and of these CHANNELS, whole groups. It first works out which
// lines of the input its rows read. Threads that follow each other then read neighbouring channels; one keeps
// its channel and its tap on the last axis, and reads all lines at once.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(CHANNELS, PER_GROUP, POSITIONS, VECTOR)

HOST struct UnfoldRowsArgs {
    const ELEMENT* input;
    ELEMENT* patches;
    i64 count;    // positions, over all images
    i64 channels; // over all groups
    Axes axes;
    Divisor chunks; // of the channels
    Divisor positions;
    Divisor plane, line;
};

constexpr int THREADS = 256, LINES = three<0>(TAPS) * three<1>(TAPS), WIDTH = three<2>(TAPS);
constexpr int ROW = CHANNELS * LINES * WIDTH, SLOTS = WIDTH * CHANNELS;
// Threads of a row, as many as it has use for.
DEVICE constexpr int lanes(int slots) { return slots > 128 ? 256 : slots > 64 ? 128 : slots > 32 ? 64 : 32; }
constexpr int LANES = lanes(SLOTS);

KERNEL(unfold_rows, UnfoldRowsArgs, THREADS) {
    SHARED(ELEMENT, rows, POSITIONS * ROW);
    // Where the lines begin that a row reads, and its first column: padded, and -1 where there is none.
    SHARED(Index, lines, POSITIONS * LINES);
    SHARED(Index, columns, POSITIONS);
    const Axes& axes = args.axes;
    int thread = (int)threadIdx.x;
    Index channels = (Index)args.channels;
    Index first = divide((Index)blockIdx.x, args.chunks);
    Index chunk = (Index)blockIdx.x - first * (Index)args.chunks.by;
    first *= POSITIONS;
    for (int i = thread; i < POSITIONS * LINES; i += THREADS) {
        int row = i / LINES, line = i % LINES;
        Index image_position = smaller<Index>(first + row, (Index)args.count - 1);
        Index image = divide(image_position, args.positions);
        Position at = position(image_position - image * (Index)args.positions.by, args.plane, args.line);
        Index d = source<0>(axes, at.d, line / three<1>(TAPS));
        Index h = source<1>(axes, at.h, line % three<1>(TAPS));
        Index start = ((image * inputs<0>(axes) + d) * inputs<1>(axes) + h) * inputs<2>(axes) * channels;
        lines[i] = d < 0 || h < 0 ? -1 : start;
        if (line == 0) columns[row] = at.w * stride<2>(axes);
    }
    barrier();
    for (int slot = thread % LANES; slot < SLOTS; slot += LANES) {
        int kw = slot / CHANNELS, c = slot % CHANNELS;
        const ELEMENT* from = args.input + chunk * CHANNELS + c;
        ELEMENT* to = rows + (c / PER_GROUP * (LINES * WIDTH) + kw) * PER_GROUP + c % PER_GROUP;
        for (int row = thread / LANES; row < POSITIONS; row += THREADS / LANES) {
            Index w = padded_source<2>(axes, columns[row] + kw * dilation<2>(axes));
            const ELEMENT* its = from + w * channels;
            ELEMENT values[LINES];
            UNROLL
            for (int line = 0; line < LINES; ++line) {
                Index start = lines[row * LINES + line];
                values[line] = zero<ELEMENT>();
                if (start >= 0 && w >= 0) values[line] = load(its + start);
            }
            UNROLL
            for (int line = 0; line < LINES; ++line)
                to[row * ROW + line * (WIDTH * PER_GROUP)] = values[line];
        }
    }
    barrier();
    // What lies between the ends of rows that the block has a part of.
    Index gap = (channels - CHANNELS) * (LINES * WIDTH);
    Index length = smaller<Index>(POSITIONS, (Index)args.count - first) * ROW;
    ELEMENT* patches = args.patches + (first * channels + chunk * CHANNELS) * (LINES * WIDTH);
    for (int at = thread * VECTOR; at < length; at += THREADS * VECTOR) {
        ELEMENT* to = patches + at / ROW * gap + at;
        if (at + VECTOR <= length) {
            store_global<ELEMENT, VECTOR>(to, load_pack<ELEMENT, VECTOR>(rows + at));
        } else {
            UNROLL
            for (int v = 0; v < VECTOR - 1; ++v)
                if (at + v < length) to[v] = rows[at + v];
        }
    }
}

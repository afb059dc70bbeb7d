// direct: convolutions of groups with few channels, depthwise above all, which are bound by memory, where
// direct_tiles.cu has no room for tiles, and the gradient by the input with strides. The kernel is compiled
// for one layer: with its taps, strides and dilations known, every position that a thread reads is a constant
// distance from its first.
//
// A thread computes OUTS channels of the result at one column of the last axis and several rows of the
// axis before. It walks over the taps column by column and reads each row of the input once for all rows
// and taps that share it, and each weight once for all rows. Columns are a loop: unrolled, the compiler
// would load them all at once and leave room for few threads. Threads that follow each other in a warp
// compute neighbouring columns (channels first) or channels (channels last), so their reads and writes are
// contiguous; the columns and planes that neighbours share come from the caches.
//
// DEPTHWISE: a group is one channel, and OUTS groups are computed at a time (channels last). Otherwise
// OUTS divides the channels of the result in a group, and INS those of the operand, which are read at a
// time. Channels last, both are loads of so many neighbours.
#include "convolution.cuh"
#include "element.cuh"

SWITCHES(DEPTHWISE, OUTS, INS, ROWS, LANES)

HOST struct DirectArgs {
    const ELEMENT* x; // or where dx goes
    const ELEMENT* y; // or dy
    const ELEMENT* weight;
    const ELEMENT* bias; // none: null
    ELEMENT* result;     // for the weight: partial sums
    i64 count;           // threads that have work; for the weight: columns of rows over all images
    Convolution conv;
    i64 cells[2]; // the adjoint: the first row and column of cells
    i64 length;   // the weight: columns of rows in a chunk
    i64 elements; // the weight: elements of the result
    // A thread's place, innermost last: image, depth, rows, column; and its vector of channels, which is
    // innermost (channels last) or follows the image (channels first).
    Divisor depths, rows, columns, vectors;
    Divisor group; // vectors in a group's channels
    Divisor units; // the weight: blocks of units
};

constexpr int KD = three<0>(TAPS), KH = three<1>(TAPS), KW = three<2>(TAPS);
constexpr int SD = three<0>(STRIDES), SH = three<1>(STRIDES), SW = three<2>(STRIDES);
constexpr int DH = three<1>(DILATIONS), DW = three<2>(DILATIONS);
#ifndef DEPTHWISE
#define DEPTHWISE 0
#endif

typedef Pack<ELEMENT, INS> Ins;

struct Place {
    Index image, vector, depth, row, column;
};
DEVICE Index take(Index& rest, const Divisor& divisor) {
    Index quotient = divide(rest, divisor), digit = rest - quotient * (Index)divisor.by;
    rest = quotient;
    return digit;
}
DEVICE Place place(const DirectArgs& args, Index thread) {
    Place at;
#if LAYOUT == CHANNELS_LAST
    at.vector = take(thread, args.vectors);
#endif
    at.column = take(thread, args.columns);
    at.row = take(thread, args.rows);
    at.depth = take(thread, args.depths);
#if LAYOUT == CHANNELS_FIRST
    at.vector = take(thread, args.vectors);
#endif
    at.image = thread;
    return at;
}

// What the rows of a column hold, for INS channels; zeros where there is nothing.
template <int ROWS_READ>
DEVICE void read_column(Ins (&values)[ROWS_READ], const ELEMENT* from, const Index (&lines)[ROWS_READ],
                        Index column, Index position) {
    UNROLL
    for (int r = 0; r < ROWS_READ; ++r) {
        values[r] = Ins{};
        if (lines[r] >= 0 && column >= 0)
            values[r] = load_pack<ELEMENT, INS>(from + (lines[r] + column) * position);
    }
}
DEVICE Acc value(const Ins& values, int in, int out) { return to_acc(values.at[DEPTHWISE ? out : in]); }

// Stores OUTS channels of an element.
DEVICE void write(ELEMENT* to, Acc (&sums)[OUTS], const ELEMENT* bias, Index channel_step) {
    UNROLL
    for (int o = 0; o < OUTS; ++o)
        if (bias) sums[o] += to_acc(bias[o]);
#if LAYOUT == CHANNELS_LAST
    Pack<ELEMENT, OUTS> out;
    UNROLL
    for (int o = 0; o < OUTS; ++o) out.at[o] = from_acc<ELEMENT>(sums[o]);
    store_pack<ELEMENT, OUTS>(to, out);
#else
    UNROLL
    for (int o = 0; o < OUTS; ++o) to[o * channel_step] = from_acc<ELEMENT>(sums[o]);
#endif
}
// Loads them.
DEVICE void read(Acc (&values)[OUTS], const ELEMENT* from, Index channel_step) {
#if LAYOUT == CHANNELS_LAST
    Pack<ELEMENT, OUTS> in = load_pack<ELEMENT, OUTS>(from);
    UNROLL
    for (int o = 0; o < OUTS; ++o) values[o] = to_acc(in.at[o]);
#else
    UNROLL
    for (int o = 0; o < OUTS; ++o) values[o] = to_acc(load(from + o * channel_step));
#endif
}

#if LAYOUT == CHANNELS_LAST
#define POSITION(strides) (Index)strides.position
#else
#define POSITION(strides) Index(1)
#endif

// ROWS outputs on the middle axis.
KERNEL(direct_forward, DirectArgs, 256) {
    constexpr int SPAN = (ROWS - 1) * SH + (KH - 1) * DH + 1;
    Index thread = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (thread >= (Index)args.count) return;
    const Axes& axes = args.conv.axes;
    const WeightStrides& ws = args.conv.weight;
    Place at = place(args, thread);
    Index first = at.row * ROWS, channel = at.vector * OUTS;
    Index input = DEPTHWISE ? channel : divide(at.vector, args.group) * (Index)args.conv.channels;
    const ELEMENT* x = args.x + offset(args.conv.x, at.image, input, 0);

    Acc sums[ROWS][OUTS] = {};
    for (Index c = 0; c < (DEPTHWISE ? 1 : (Index)args.conv.channels); c += DEPTHWISE ? 1 : INS) {
        UNROLL_BY(1)
        for (int kd = 0; kd < KD; ++kd) {
            Index d = source<0>(axes, at.depth, kd);
            if (d < 0) continue;
            Index lines[SPAN];
            UNROLL
            for (int r = 0; r < SPAN; ++r) {
                // Rows that no output reads have no source in some modes.
                Index q = first * SH + r, h = q > last_padded<1>(axes) ? -1 : padded_source<1>(axes, q);
                lines[r] = h < 0 ? -1 : input_at(axes, d, h, 0);
            }
            UNROLL_BY(1)
            for (int kw = 0; kw < KW; ++kw) {
                Ins values[SPAN];
                read_column(values, x + offset(args.conv.x, 0, c, 0), lines, source<2>(axes, at.column, kw),
                            POSITION(args.conv.x));
                UNROLL
                for (int i = 0; i < (DEPTHWISE ? 1 : INS); ++i) {
                    UNROLL
                    for (int kh = 0; kh < KH; ++kh) {
                        Acc weights[OUTS];
                        UNROLL
                        for (int o = 0; o < OUTS; ++o)
                            weights[o] = to_acc(load(
                                args.weight + offset(ws, channel + o, c + i, tap_at(axes, kd, kh, kw))));
                        UNROLL
                        for (int row = 0; row < ROWS; ++row) {
                            UNROLL
                            for (int o = 0; o < OUTS; ++o)
                                sums[row][o] =
                                    fused(weights[o], value(values[row * SH + kh * DH], i, o), sums[row][o]);
                        }
                    }
                }
            }
        }
    }
    UNROLL
    for (int row = 0; row < ROWS; ++row) {
        if (first + row >= outputs<1>(axes)) continue;
        Index to = output_at(axes, at.depth, first + row, at.column);
        write(args.result + offset(args.conv.y, at.image, channel, to), sums[row],
              args.bias ? args.bias + channel : args.bias, (Index)args.conv.y.channel);
    }
}

// ROWS cells on the middle axis: a cell is as many inputs on the last two axes as the strides have phases,
// so that the taps which reach each of them are known. Zero padding only: with other modes, several padded
// positions read one input.
KERNEL(direct_backward_input, DirectArgs, 256) {
    constexpr int BACK = (KH - 1) * DH / SH; // cells back to the first output that reads a cell
    constexpr int SPAN = ROWS + BACK;
    Index thread = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (thread >= (Index)args.count) return;
    const Axes& axes = args.conv.axes;
    const WeightStrides& ws = args.conv.weight;
    Place at = place(args, thread);
    Index first = (Index)args.cells[0] + at.row * ROWS, column = (Index)args.cells[1] + at.column;
    Index channel = at.vector * OUTS;
    Index group = DEPTHWISE ? 0 : divide(at.vector, args.group);
    Index output = DEPTHWISE ? channel : group * (Index)args.conv.outputs;
    Index input = DEPTHWISE ? 0 : channel - group * (Index)args.conv.channels;
    const ELEMENT* dy = args.y + offset(args.conv.y, at.image, output, 0);

    Acc sums[ROWS * SH][SW][OUTS] = {};
    for (Index c = 0; c < (DEPTHWISE ? 1 : (Index)args.conv.outputs); c += DEPTHWISE ? 1 : INS) {
        UNROLL_BY(1)
        for (int kd = 0; kd < KD; ++kd) {
            Index d = reader_output<0>(axes, (Index)axes.at[0].low + at.depth, kd);
            if (d < 0) continue;
            Index lines[SPAN];
            UNROLL
            for (int r = 0; r < SPAN; ++r) {
                Index h = first - BACK + r;
                lines[r] = (Unsigned)h < (Unsigned)outputs<1>(axes) ? output_at(axes, d, h, 0) : -1;
            }
            // The taps that reach one phase after the other: sums are then known by constants.
            UNROLL
            for (int phase = 0; phase < SW; ++phase) {
                UNROLL_BY(1)
                for (int kw = 0; kw < KW; ++kw) {
                    if (kw * DW % SW != phase) continue;
                    Ins values[SPAN];
                    Index w = column - kw * DW / SW;
                    read_column(values, dy + offset(args.conv.y, 0, c, 0), lines,
                                (Unsigned)w < (Unsigned)outputs<2>(axes) ? w : -1, POSITION(args.conv.y));
                    UNROLL
                    for (int i = 0; i < (DEPTHWISE ? 1 : INS); ++i) {
                        UNROLL
                        for (int kh = 0; kh < KH; ++kh) {
                            Acc weights[OUTS];
                            UNROLL
                            for (int o = 0; o < OUTS; ++o) {
                                Index out = output + (DEPTHWISE ? o : c + i), in = DEPTHWISE ? 0 : input + o;
                                Index tap = tap_at(axes, kd, kh, kw);
                                weights[o] = to_acc(load(args.weight + offset(ws, out, in, tap)));
                            }
                            UNROLL
                            for (int row = 0; row < ROWS; ++row) {
                                UNROLL
                                for (int o = 0; o < OUTS; ++o) {
                                    Acc& sum = sums[row * SH + kh * DH % SH][phase][o];
                                    Acc read = value(values[row + BACK - kh * DH / SH], i, o);
                                    sum = fused(weights[o], read, sum);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    UNROLL
    for (int row = 0; row < ROWS * SH; ++row) {
        Index h = first * SH + row - (Index)axes.at[1].low;
        UNROLL
        for (int phase = 0; phase < SW; ++phase) {
            Index w = column * SW + phase - (Index)axes.at[2].low;
            if ((Unsigned)h >= (Unsigned)inputs<1>(axes)) continue;
            if ((Unsigned)w >= (Unsigned)inputs<2>(axes)) continue;
            Index to = input_at(axes, at.depth, h, w);
            write(args.result + offset(args.conv.x, at.image, channel, to), sums[row][phase],
                  args.bias ? args.bias + channel : args.bias, (Index)args.conv.x.channel);
        }
    }
}

// A unit is OUTS output channels by one input channel of their group (DEPTHWISE: OUTS channels by
// themselves). LANES neighbours of a warp have a unit each; the other threads share the positions of a
// chunk, ROWS outputs on the middle axis at a time, and their sums are added up at the end, in one order.
#ifdef LANES
KERNEL(direct_backward_weight, DirectArgs, 128) {
    constexpr int SPAN = (ROWS - 1) * SH + (KH - 1) * DH + 1;
    constexpr int SUMS = KD * KH * KW * OUTS, WARPS = 4;
    SHARED(Acc, shared, WARPS * SUMS * LANES);
    const Axes& axes = args.conv.axes;
    const Strides &xs = args.conv.x, &ys = args.conv.y;
    Index chunk = divide((Index)blockIdx.x, args.units);
    Index unit = ((Index)blockIdx.x - chunk * (Index)args.units.by) * LANES + (Index)threadIdx.x % LANES;
    // Which input channel of the group, and which vector of outputs.
    Index input = divide(unit, args.vectors);
    Index channel = (unit - input * (Index)args.vectors.by) * OUTS;
    Index source_channel = channel;
    if (!DEPTHWISE) source_channel = divide(channel / OUTS, args.group) * (Index)args.conv.channels + input;
    bool works = input < (DEPTHWISE ? 1 : (Index)args.conv.channels);

    Acc sums[KD][KH][KW][OUTS] = {};
    Index end = works ? smaller((Index)args.count, (chunk + 1) * (Index)args.length) : 0;
    Index start = chunk * (Index)args.length + (Index)threadIdx.x / LANES;
    for (Index item = start; item < end; item += 128 / LANES) {
        Place at;
        Index rest = item;
        at.column = take(rest, args.columns);
        at.row = take(rest, args.rows);
        at.depth = take(rest, args.depths);
        Index first = at.row * ROWS;
        const ELEMENT* x = args.x + offset(xs, rest, source_channel, 0);
        const ELEMENT* dy = args.y + offset(ys, rest, channel, 0);
        Acc gradients[ROWS][OUTS] = {};
        UNROLL
        for (int row = 0; row < ROWS; ++row) {
            Index from = output_at(axes, at.depth, first + row, at.column) * POSITION(ys);
            if (first + row < outputs<1>(axes)) read(gradients[row], dy + from, (Index)ys.channel);
        }
        UNROLL
        for (int kd = 0; kd < KD; ++kd) {
            Index d = source<0>(axes, at.depth, kd);
            if (d < 0) continue;
            Index lines[SPAN];
            UNROLL
            for (int r = 0; r < SPAN; ++r) {
                Index q = first * SH + r, h = q > last_padded<1>(axes) ? -1 : padded_source<1>(axes, q);
                lines[r] = h < 0 ? -1 : input_at(axes, d, h, 0);
            }
            UNROLL
            for (int kw = 0; kw < KW; ++kw) {
                Ins values[SPAN];
                read_column(values, x, lines, source<2>(axes, at.column, kw), POSITION(xs));
                UNROLL
                for (int kh = 0; kh < KH; ++kh) {
                    UNROLL
                    for (int row = 0; row < ROWS; ++row) {
                        // What other rows read may be infinite.
                        if (first + row >= outputs<1>(axes)) continue;
                        UNROLL
                        for (int o = 0; o < OUTS; ++o) {
                            Acc& sum = sums[kd][kh][kw][o];
                            sum = fused(gradients[row][o], value(values[row * SH + kh * DH], 0, o), sum);
                        }
                    }
                }
            }
        }
    }

    // Over the threads of a warp with the same unit, then over the warps.
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    UNROLL
    for (int tap = 0; tap < KD * KH * KW; ++tap) {
        UNROLL
        for (int o = 0; o < OUTS; ++o) {
            Acc sum = sums[tap / (KH * KW)][tap / KW % KH][tap % KW][o];
            UNROLL
            for (int mask = 16; mask >= LANES; mask /= 2) sum += shuffle_xor(sum, mask);
            if (lane < LANES) shared[(warp * SUMS + tap * OUTS + o) * LANES + lane] = sum;
        }
    }
    barrier();
    for (int at = (int)threadIdx.x; at < SUMS * LANES; at += 128) {
        int of = at % LANES, entry = at / LANES;
        Acc sum = shared[at];
        UNROLL
        for (int w = 1; w < WARPS; ++w) sum += shared[w * SUMS * LANES + at];
        Index its = unit - (Index)threadIdx.x % LANES + of, in = divide(its, args.vectors);
        Index out = (its - in * (Index)args.vectors.by) * OUTS + entry % OUTS;
        if (in >= (DEPTHWISE ? 1 : (Index)args.conv.channels)) continue;
        Acc* partial = (Acc*)args.result + chunk * (Index)args.elements;
        partial[offset(args.conv.weight, out, in, entry / OUTS)] = sum;
    }
}
#endif

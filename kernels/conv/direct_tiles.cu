// direct, by tiles: forward, and the gradient by the input where strides are 1 (MIRRORED), which is the same
// with taps in reverse order and zeros around; and the gradient by the weight. The kernels are compiled for
// one layer.
//
// A block computes a tile of the result for a few neighbouring groups. It copies the part of the operand that
// the tile reads into shared memory, zeros where there is nothing, so that nothing is left to be checked: all
// that a thread reads lies at constant distances from its first. A thread computes OUTS channels at ROWS by
// COLUMNS positions. It keeps the weights of an input channel in registers and walks over the operand's
// columns, reading each once for all the positions and taps that share it. So an element is loaded and
// converted a few times for all its products, which take most instructions.
//
// For the weight, dy has a tile as well, and threads keep sums in the place of weights.
//
// Every sum of a result adds up planes of taps, in each of them input channels, in each of them columns of
// taps, from top to bottom, MIRRORED with the last row and column of taps first.
//
// Channels last, threads that follow each other have neighbouring channels, else positions.
#include "convolution.cuh"
#include "element.cuh"

SWITCHES(MIRRORED, WEIGHT, ALL_GROUPS, CHANNELS, OUTS, SLICES, GROUPS, ROWS, COLUMNS, DOWN, ACROSS, COPY,
         SHIFT, PITCH, STORED, DY_PITCH, NEIGHBOURS, DY_NEIGHBOURS)

HOST struct DirectTilesArgs {
    const ELEMENT* operand; // x, or dy
    const ELEMENT* weight;
    const ELEMENT* bias; // none: null
    ELEMENT* result;
    Convolution conv;
    // A block's place, innermost last: image, groups (channels first), depth, rows, columns, groups (channels
    // last).
    Divisor group_blocks, depths, rows, columns;
};

constexpr int KD = three<0>(TAPS), KH = three<1>(TAPS), KW = three<2>(TAPS);
constexpr int SH = three<1>(STRIDES), SW = three<2>(STRIDES);
constexpr int DH = three<1>(DILATIONS), DW = three<2>(DILATIONS);

// CHANNELS of the operand in a group; a group's outputs are SLICES of OUTS. A block has GROUPS, and DOWN by
// ACROSS threads for each slice (WEIGHT: for each input channel of each).
#ifndef WEIGHT
#define WEIGHT 0
#endif
constexpr int UNITS = GROUPS * SLICES * (WEIGHT ? CHANNELS : 1), THREADS = UNITS * DOWN * ACROSS;
constexpr int BLOCK_CHANNELS = GROUPS * CHANNELS;
// Of the operand: what a thread reads, and the tile.
constexpr int SPAN_ROWS = (ROWS - 1) * SH + (KH - 1) * DH + 1;
constexpr int SPAN_COLUMNS = (COLUMNS - 1) * SW + (KW - 1) * DW + 1;
constexpr int TILE_ROWS = (DOWN * ROWS - 1) * SH + (KH - 1) * DH + 1;
constexpr int TILE_COLUMNS = (ACROSS * COLUMNS - 1) * SW + (KW - 1) * DW + 1;

// The tile: rows of columns of channels, or a plane for each channel. Its lines, PITCH elements from one to
// the next, are copied COPY neighbours at a time, SLOTS of these by LANES neighbours of a warp. (Channels
// first, a line begins SHIFT columns early, where the operand's addresses are multiples of what is copied.)
#if LAYOUT == CHANNELS_LAST
constexpr int CHANNEL = 1, COLUMN = BLOCK_CHANNELS, LINES = TILE_ROWS, LINE = TILE_COLUMNS * BLOCK_CHANNELS;
#else
constexpr int CHANNEL = TILE_ROWS * PITCH, COLUMN = 1, LINES = BLOCK_CHANNELS * TILE_ROWS;
constexpr int LINE = (SHIFT + TILE_COLUMNS + COPY - 1) / COPY * COPY;
#endif
DEVICE constexpr int lanes(int slots) { return slots > 16 ? 32 : slots > 8 ? 16 : slots > 4 ? 8 : 4; }
constexpr int SLOTS = LINE / COPY, LANES = lanes(SLOTS), COPIES = (SLOTS + LANES - 1) / LANES;

// Distances in memory that are known: with channels last they are made of the numbers of channels.
constexpr int OUTPUTS = SLICES * OUTS;
#if LAYOUT == CHANNELS_LAST
constexpr Index OPERAND_POSITION = ALL_GROUPS * CHANNELS, RESULT_POSITION = ALL_GROUPS * OUTPUTS;
constexpr Index WEIGHT_CHANNEL = MIRRORED ? 1 : RESULT_POSITION, WEIGHT_OUT = MIRRORED ? OPERAND_POSITION : 1;
constexpr Index WEIGHT_TAP = MIRRORED ? OUTPUTS * OPERAND_POSITION : CHANNELS * RESULT_POSITION;
#else
constexpr Index OPERAND_POSITION = 1, WEIGHT_TAP = 1;
constexpr Index WEIGHT_CHANNEL = (MIRRORED ? OUTPUTS : 1) * (KD * KH * KW);
constexpr Index WEIGHT_OUT = (MIRRORED ? 1 : CHANNELS) * (KD * KH * KW);
#endif

#if MIRRORED
#define OPERAND args.conv.y
#define RESULT args.conv.x
template <int A> DEVICE Index operand_extent(const Axes& axes) { return outputs<A>(axes); }
template <int A> DEVICE Index result_extent(const Axes& axes) { return inputs<A>(axes); }
DEVICE Index result_at(const Axes& axes, Index d, Index h, Index w) { return input_at(axes, d, h, w); }
// The position of the operand that is read `ahead` of the first one for result `first`; -1 for none.
template <int A> DEVICE Index operand_source(const Axes& axes, Index first, Index ahead) {
    Index at = first + (Index)axes.at[A].low - (taps<A>(axes) - 1) * dilation<A>(axes) + ahead;
    return (Unsigned)at < (Unsigned)outputs<A>(axes) ? at : -1;
}
DEVICE Index operand_plane(const Axes& axes, Index depth, int kd) {
    return reader_output<0>(axes, (Index)axes.at[0].low + depth, kd);
}
#else
#define OPERAND args.conv.x
#define RESULT args.conv.y
template <int A> DEVICE Index operand_extent(const Axes& axes) { return inputs<A>(axes); }
template <int A> DEVICE Index result_extent(const Axes& axes) { return outputs<A>(axes); }
DEVICE Index result_at(const Axes& axes, Index d, Index h, Index w) { return output_at(axes, d, h, w); }
template <int A> DEVICE Index operand_source(const Axes& axes, Index first, Index ahead) {
    Index q = first * stride<A>(axes) + ahead;
    // Some modes have no source for what no output reads.
    return q > last_padded<A>(axes) ? -1 : padded_source<A>(axes, q);
}
DEVICE Index operand_plane(const Axes& axes, Index depth, int kd) { return source<0>(axes, depth, kd); }
#endif

// N elements, or zeros.
template <int N> DEVICE void copy(ELEMENT* to, const ELEMENT* from, bool valid) {
    if constexpr (N * sizeof(ELEMENT) == 16) {
        copy_async_16(to, from, valid);
    } else if constexpr (N * sizeof(ELEMENT) == 8) {
        copy_async_8(to, from, valid);
    } else if constexpr (N * sizeof(ELEMENT) == 4) {
        copy_async_4(to, from, valid);
    } else {
        Pack<ELEMENT, N> moved = {};
        if (valid) moved = load_pack<ELEMENT, N>(from);
        store_pack<ELEMENT, N>(to, moved);
    }
}

// The part of plane `depth` of the operand that the tile at this row and column of the result reads.
DEVICE void copy_tile(ELEMENT* tile, const DirectTilesArgs& args, Index image, Index group, Index depth,
                      Index row, Index column) {
    const Axes& axes = args.conv.axes;
    int lane = (int)threadIdx.x % LANES;
    const ELEMENT* from = args.operand
        + offset(OPERAND, image, group * CHANNELS, depth * operand_extent<1>(axes) * operand_extent<2>(axes));
    Index channels = (ALL_GROUPS - group) * CHANNELS;
    const ELEMENT* columns[COPIES];
    bool valid[COPIES];
    UNROLL
    for (int i = 0; i < COPIES; ++i) {
        int at = (lane + i * LANES) * COPY, ahead = at / COLUMN, channel = at % COLUMN;
        Index w = operand_source<2>(axes, column, ahead - SHIFT);
        valid[i] = w >= 0 && channel < channels;
        columns[i] = from + (valid[i] ? w * OPERAND_POSITION + channel : 0);
    }
    UNROLL_BY(4)
    for (int line = (int)threadIdx.x / LANES; line < LINES; line += THREADS / LANES) {
        int channel = line / TILE_ROWS;
        Index h = operand_source<1>(axes, row, line - channel * TILE_ROWS);
        bool inside = h >= 0 && channel < channels;
        Index start = inside ? offset(OPERAND, 0, channel, h * operand_extent<2>(axes)) : 0;
        UNROLL
        for (int i = 0; i < COPIES; ++i) {
            int slot = lane + i * LANES;
            if (slot < SLOTS) copy<COPY>(tile + line * PITCH + slot * COPY, columns[i] + start, inside && valid[i]);
        }
    }
    copy_async_commit();
}

// Reads the tile from a thread's first element on, column by column, and calls use(kh, kw, y, x, value) for each tap
// and position of its that share an element.
template <typename Use> DEVICE void each_read(const ELEMENT* from, Use use) {
    UNROLL
    for (int column = 0; column < SPAN_COLUMNS; ++column) {
        Acc values[SPAN_ROWS];
        UNROLL
        for (int row = 0; row < SPAN_ROWS; ++row) values[row] = to_acc(from[row * PITCH + column * COLUMN]);
        UNROLL
        for (int kw = 0; kw < KW; ++kw) {
            // The position on this axis that reads the column through tap kw.
            int ahead = column - kw * DW, x = ahead / SW;
            if (ahead < 0 || ahead % SW != 0 || x >= COLUMNS) continue;
            UNROLL
            for (int kh = 0; kh < KH; ++kh) {
                UNROLL
                for (int y = 0; y < ROWS; ++y) use(kh, kw, y, x, values[y * SH + kh * DH]);
            }
        }
    }
}

DEVICE Index take(Index& rest, const Divisor& divisor) {
    Index quotient = divide(rest, divisor), digit = rest - quotient * (Index)divisor.by;
    rest = quotient;
    return digit;
}

#if LAYOUT == CHANNELS_FIRST
constexpr int RESULTS = UNITS * OUTS * DOWN * ROWS * ACROSS * COLUMNS;
// Stores a tile of the result, STORED neighbours at a time.
DEVICE void store_lines(const DirectTilesArgs& args, const ELEMENT* tile, Index image, Index channel,
                        Index depth, Index row, Index column) {
    constexpr int SLOTS = ACROSS * COLUMNS / STORED, LANES = lanes(SLOTS), LINES = UNITS * OUTS * DOWN * ROWS;
    const Axes& axes = args.conv.axes;
    Index rows = result_extent<1>(axes) - row, columns = result_extent<2>(axes) - column;
    Index channels = ALL_GROUPS * OUTPUTS - channel;
    ELEMENT* to = args.result + offset(RESULT, image, channel, result_at(axes, depth, row, column));
    UNROLL_BY(4)
    for (int line = (int)threadIdx.x / LANES; line < LINES; line += THREADS / LANES) {
        int its_channel = line / (DOWN * ROWS), its_row = line - its_channel * (DOWN * ROWS);
        if (its_channel >= channels || its_row >= rows) continue;
        Index start = offset(RESULT, 0, its_channel, its_row * result_extent<2>(axes));
        UNROLL
        for (int slot = (int)threadIdx.x % LANES; slot < SLOTS; slot += LANES)
            if (slot * STORED < columns)
                store_global<ELEMENT, STORED>(
                    to + start + slot * STORED,
                    load_pack<ELEMENT, STORED>(tile + line * (ACROSS * COLUMNS) + slot * STORED));
    }
}
#else
constexpr int RESULTS = 0;
#endif

#if !WEIGHT
// Where the weights lie of these neighbours of the result, of which `slice` is the first in its group.
DEVICE Index first_weight(Index group, Index slice) {
#if LAYOUT == CHANNELS_LAST
    return group * (MIRRORED ? CHANNELS : OUTPUTS) + slice * WEIGHT_OUT;
#else
    return group * (OUTPUTS * CHANNELS * (KD * KH * KW)) + slice * WEIGHT_OUT;
#endif
}

KERNEL(direct_tiles, DirectTilesArgs, THREADS) {
    SHARED(ELEMENT, tile, LINES * PITCH > RESULTS ? LINES * PITCH : RESULTS);
    const Axes& axes = args.conv.axes;
    Index block = (Index)blockIdx.x;
    int thread = (int)threadIdx.x;
#if LAYOUT == CHANNELS_LAST
    Index first_group = take(block, args.group_blocks) * GROUPS;
    int unit = thread % UNITS, place = thread / UNITS;
#endif
    Index column = take(block, args.columns) * (ACROSS * COLUMNS);
    Index row = take(block, args.rows) * (DOWN * ROWS);
    Index depth = take(block, args.depths);
#if LAYOUT == CHANNELS_FIRST
    Index first_group = take(block, args.group_blocks) * GROUPS;
    int unit = thread / (DOWN * ACROSS), place = thread % (DOWN * ACROSS);
#endif
    int its_row = place / ACROSS * ROWS, its_column = place % ACROSS * COLUMNS, its_group = unit / SLICES;
    Index group = first_group + its_group;
    bool works = group < ALL_GROUPS;
    // Of the result, from the group's first and from the layer's.
    Index slice = unit % SLICES * OUTS, channel = group * OUTPUTS + slice;
    const ELEMENT* weight = args.weight + (works ? first_weight(group, slice) : 0);
    const ELEMENT* from = tile + its_group * CHANNELS * CHANNEL + its_row * SH * PITCH
        + (SHIFT + its_column * SW) * COLUMN;

    Acc sums[ROWS][COLUMNS][OUTS] = {};
    UNROLL_BY(1)
    for (int kd = 0; kd < KD; ++kd) {
        Index plane = operand_plane(axes, depth, kd);
        if (plane < 0) continue;
        if (KD > 1) barrier();
        copy_tile(tile, args, block, first_group, plane, row, column);
        UNROLL_BY(1)
        for (int c = 0; c < CHANNELS; ++c) {
            Acc weights[KH][KW][OUTS];
            UNROLL
            for (int tap = 0; tap < KH * KW; ++tap) {
                UNROLL
                for (int o = 0; o < OUTS; ++o) {
                    Index at = kd * (KH * KW) + (MIRRORED ? KH * KW - 1 - tap : tap);
                    weights[tap / KW][tap % KW][o] =
                        to_acc(load(weight + c * WEIGHT_CHANNEL + at * WEIGHT_TAP + o * WEIGHT_OUT));
                }
            }
            if (c == 0) {
                copy_async_wait<0>();
                barrier();
            }
            each_read(from + c * CHANNEL, [&](int kh, int kw, int y, int x, Acc value) {
                UNROLL
                for (int o = 0; o < OUTS; ++o) sums[y][x][o] = fused(weights[kh][kw][o], value, sums[y][x][o]);
            });
        }
    }

    if (args.bias && works) {
        UNROLL
        for (int o = 0; o < OUTS; ++o) {
            Acc bias = to_acc(args.bias[channel + o]);
            UNROLL
            for (int at = 0; at < ROWS * COLUMNS; ++at) sums[at / COLUMNS][at % COLUMNS][o] += bias;
        }
    }
#if LAYOUT == CHANNELS_LAST
    if (!works) return;
    Index rows = result_extent<1>(axes) - row - its_row;
    Index columns = result_extent<2>(axes) - column - its_column;
    ELEMENT* to = args.result
        + offset(RESULT, block, channel, result_at(axes, depth, row + its_row, column + its_column));
    UNROLL
    for (int y = 0; y < ROWS; ++y) {
        if (y >= rows) break;
        UNROLL
        for (int x = 0; x < COLUMNS; ++x) {
            if (x >= columns) break;
            Pack<ELEMENT, OUTS> out;
            UNROLL
            for (int o = 0; o < OUTS; ++o) out.at[o] = from_acc<ELEMENT>(sums[y][x][o]);
            store_global<ELEMENT, OUTS>(to + x * RESULT_POSITION, out);
        }
        to += result_extent<2>(axes) * RESULT_POSITION;
    }
#else
    // Threads hold columns that are far apart from each other's: lines are put together where the tile was.
    barrier();
    UNROLL
    for (int y = 0; y < ROWS; ++y) {
        UNROLL
        for (int x = 0; x < COLUMNS; ++x) {
            UNROLL
            for (int o = 0; o < OUTS; ++o) {
                int line = (unit * OUTS + o) * (DOWN * ROWS) + its_row + y;
                tile[line * (ACROSS * COLUMNS) + its_column + x] = from_acc<ELEMENT>(sums[y][x][o]);
            }
        }
    }
    barrier();
    store_lines(args, tile, block, first_group * OUTPUTS, depth, row, column);
#endif
}
#else
HOST struct DirectTilesWeightArgs {
    DirectTilesArgs tiles; // the operand is x
    const ELEMENT* gradient; // dy
    Acc* partial;          // sums of each chunk
    i32* counters;         // one for each block of groups
    i64 length;            // of a chunk, in tiles
    i64 longer;            // how many chunks have one more
    i64 parts;             // chunks that the last block adds up; 0 where another launch does that
    i64 elements;          // of the weight
};

// The tile of dy, as that of x: rows of columns of channels, or a plane for each channel, copied STORED at a time.
constexpr int DY_ROWS = DOWN * ROWS, DY_COLUMNS = ACROSS * COLUMNS;
#if LAYOUT == CHANNELS_LAST
constexpr int DY_CHANNEL = 1, DY_COLUMN = GROUPS * OUTPUTS, DY_LINES = DY_ROWS;
#else
constexpr int DY_CHANNEL = DY_ROWS * DY_PITCH, DY_COLUMN = 1, DY_LINES = GROUPS * OUTPUTS * DY_ROWS;
#endif
DEVICE void copy_gradients(ELEMENT* tile, const DirectTilesWeightArgs& args, Index image, Index group,
                           Index depth, Index row, Index column) {
    constexpr int SLOTS = DY_COLUMNS * DY_COLUMN / STORED, LANES = lanes(SLOTS);
    const Axes& axes = args.tiles.conv.axes;
    const Strides& ys = args.tiles.conv.y;
    Index channels = (ALL_GROUPS - group) * OUTPUTS, rows = outputs<1>(axes) - row;
    Index columns = outputs<2>(axes) - column;
    const ELEMENT* from = args.gradient + offset(ys, image, group * OUTPUTS, output_at(axes, depth, row, column));
    UNROLL_BY(4)
    for (int line = (int)threadIdx.x / LANES; line < DY_LINES; line += THREADS / LANES) {
        int channel = line / DY_ROWS, its_row = line - channel * DY_ROWS;
        const ELEMENT* start = from + offset(ys, 0, channel, its_row * outputs<2>(axes));
        UNROLL
        for (int slot = (int)threadIdx.x % LANES; slot < SLOTS; slot += LANES) {
            int at = slot * STORED, ahead = at / DY_COLUMN, ahead_channel = at % DY_COLUMN;
            bool valid = its_row < rows && ahead < columns && channel + ahead_channel < channels;
            const ELEMENT* its = valid ? start + offset(ys, 0, ahead_channel, ahead) : args.gradient;
            copy<STORED>(tile + line * DY_PITCH + at, its, valid);
        }
    }
    copy_async_commit();
}

// OUTS channels of dy at a position.
DEVICE void read_gradient(Acc (&values)[OUTS], const ELEMENT* from) {
#if LAYOUT == CHANNELS_LAST
    Pack<ELEMENT, OUTS> read = load_whole((const Pack<ELEMENT, OUTS>*)from);
    UNROLL
    for (int o = 0; o < OUTS; ++o) values[o] = to_acc(read.at[o]);
#else
    UNROLL
    for (int o = 0; o < OUTS; ++o) values[o] = to_acc(from[o * DY_CHANNEL]);
#endif
}

// Reads some columns of a line of a tile from `first` on, in vectors of so many from `line`, which is a multiple of
// them: where lanes are that far apart, one after the other they fill all banks. (Channels last, columns are no
// neighbours.)
template <int VECTOR, int FIRST, int COUNT, int STEP>
DEVICE void read_line(Acc (&values)[COUNT], const ELEMENT* line) {
    if constexpr (VECTOR == 1) {
        UNROLL
        for (int at = 0; at < COUNT; ++at) values[at] = to_acc(line[(FIRST + at) * STEP]);
    } else {
        UNROLL
        for (int from = FIRST / VECTOR * VECTOR; from < FIRST + COUNT; from += VECTOR) {
            Pack<ELEMENT, VECTOR> read = load_whole((const Pack<ELEMENT, VECTOR>*)(line + from));
            UNROLL
            for (int i = 0; i < VECTOR; ++i)
                if (from + i >= FIRST && from + i < FIRST + COUNT) values[from + i - FIRST] = to_acc(read.at[i]);
        }
    }
}

// The products of a plane of taps at all of a thread's positions, row by row of x.
DEVICE void add_products(Acc (&sums)[KH][KW][OUTS], const ELEMENT* x, const ELEMENT* dy) {
    Acc gradients[ROWS][OUTS][COLUMNS];
    UNROLL
    for (int row = 0; row < SPAN_ROWS; ++row) {
        if (row % SH == 0 && row / SH < ROWS) {
            int y = row / SH;
#if LAYOUT == CHANNELS_LAST
            UNROLL
            for (int column = 0; column < COLUMNS; ++column) {
                Acc values[OUTS];
                read_gradient(values, dy + y * DY_PITCH + column * DY_COLUMN);
                UNROLL
                for (int o = 0; o < OUTS; ++o) gradients[y][o][column] = values[o];
            }
#else
            UNROLL
            for (int o = 0; o < OUTS; ++o)
                read_line<DY_NEIGHBOURS, 0, COLUMNS, 1>(gradients[y][o], dy + o * DY_CHANNEL + y * DY_PITCH);
#endif
        }
        Acc values[SPAN_COLUMNS];
        read_line<NEIGHBOURS, SHIFT, SPAN_COLUMNS, COLUMN>(values, x + row * PITCH);
        UNROLL
        for (int kh = 0; kh < KH; ++kh) {
            // The position on this axis that reads the row through tap kh.
            int ahead = row - kh * DH, y = ahead / SH;
            if (ahead < 0 || ahead % SH != 0 || y >= ROWS) continue;
            UNROLL
            for (int kw = 0; kw < KW; ++kw) {
                UNROLL
                for (int column = 0; column < COLUMNS; ++column) {
                    UNROLL
                    for (int o = 0; o < OUTS; ++o)
                        sums[kh][kw][o] =
                            fused(gradients[y][o][column], values[column * SW + kw * DW], sums[kh][kw][o]);
                }
            }
        }
    }
}

// The products of a thread's OUTS channels by an input channel, at its positions of the block's tiles one
// after the other; then the sums of the threads are added up in their order, and, by the last block that has some
// for the same groups, those of all chunks in theirs.
KERNEL(direct_tiles_weight, DirectTilesWeightArgs, THREADS) {
    constexpr int TAPS_IN_ALL = KD * KH * KW, ENTRIES = TAPS_IN_ALL * OUTS, PLACES = DOWN * ACROSS;
    constexpr int TILE_BYTES = (LINES * PITCH * (int)sizeof(ELEMENT) + 15) / 16 * 16;
    constexpr int DY_BYTES = DY_LINES * DY_PITCH * (int)sizeof(ELEMENT), READ_BYTES = TILE_BYTES + DY_BYTES;
    constexpr int SUM_PITCH = THREADS + 1, SUM_BYTES = ENTRIES * SUM_PITCH * (int)sizeof(Acc);
    SHARED(char, memory, READ_BYTES > SUM_BYTES ? READ_BYTES : SUM_BYTES);
    ELEMENT *tile = (ELEMENT*)memory, *dy_tile = (ELEMENT*)(memory + TILE_BYTES);
    const DirectTilesArgs& tiles = args.tiles;
    const Axes& axes = tiles.conv.axes;
    int thread = (int)threadIdx.x;
    Index chunk = (Index)blockIdx.x, group_block = take(chunk, tiles.group_blocks);
    Index first_group = group_block * GROUPS;
#if LAYOUT == CHANNELS_LAST
    int unit = thread % UNITS, place = thread / UNITS;
#else
    int unit = thread / PLACES, place = thread % PLACES;
#endif
    int its_row = place / ACROSS * ROWS, its_column = place % ACROSS * COLUMNS;
    int its_group = unit / (SLICES * CHANNELS), its_channel = its_group * CHANNELS + unit % CHANNELS;
    int its_output = its_group * OUTPUTS + unit / CHANNELS % SLICES * OUTS;
    const ELEMENT* from = tile + its_channel * CHANNEL + its_row * SH * PITCH + its_column * SW * COLUMN;
    const ELEMENT* dy = dy_tile + its_output * DY_CHANNEL + its_row * DY_PITCH + its_column * DY_COLUMN;

    Acc sums[KD][KH][KW][OUTS] = {};
    Index start = chunk * (Index)args.length + smaller(chunk, (Index)args.longer);
    Index end = start + (Index)args.length + (chunk < (Index)args.longer ? 1 : 0);
    for (Index at = start; at < end; ++at) {
        Index image = at;
        Index column = take(image, tiles.columns) * DY_COLUMNS;
        Index row = take(image, tiles.rows) * DY_ROWS;
        Index depth = take(image, tiles.depths);
        Index rows = first_group + its_group < ALL_GROUPS ? outputs<1>(axes) - row - its_row : 0;
        Index columns = outputs<2>(axes) - column - its_column;
        barrier();
        copy_gradients(dy_tile, args, image, first_group, depth, row, column);
        UNROLL
        for (int kd = 0; kd < KD; ++kd) {
            Index plane = source<0>(axes, depth, kd);
            if (plane < 0) continue;
            if (kd > 0) barrier();
            copy_tile(tile, tiles, image, first_group, plane, row, column);
            copy_async_wait<0>();
            barrier();
            if (rows >= ROWS && columns >= COLUMNS) {
                add_products(sums[kd], from, dy);
                continue;
            }
            // At the end of an axis, position by position in the same order: what others read may be
            // infinite.
            UNROLL_BY(1)
            for (int y = 0; y < smaller<Index>(rows, ROWS); ++y) {
                UNROLL_BY(1)
                for (int x = 0; x < smaller<Index>(columns, COLUMNS); ++x) {
                    Acc gradient[OUTS];
                    read_gradient(gradient, dy + y * DY_PITCH + x * DY_COLUMN);
                    const ELEMENT* its = from + y * SH * PITCH + (SHIFT + x * SW) * COLUMN;
                    UNROLL
                    for (int tap = 0; tap < KH * KW; ++tap) {
                        int kh = tap / KW, kw = tap % KW;
                        Acc value = to_acc(its[kh * DH * PITCH + kw * DW * COLUMN]);
                        UNROLL
                        for (int o = 0; o < OUTS; ++o)
                            sums[kd][kh][kw][o] = fused(gradient[o], value, sums[kd][kh][kw][o]);
                    }
                }
            }
        }
        // Where no plane of x was waited for.
        copy_async_wait<0>();
    }

    barrier();
    Acc* shared = (Acc*)memory;
    UNROLL
    for (int tap = 0; tap < TAPS_IN_ALL; ++tap) {
        UNROLL
        for (int o = 0; o < OUTS; ++o)
            shared[(tap * OUTS + o) * SUM_PITCH + thread] = sums[tap / (KH * KW)][tap / KW % KH][tap % KW][o];
    }
    barrier();
    // Neighbours in the weight follow each other: entry `at % ENTRIES` or `at / UNITS` of a unit.
    auto unit_of = [](int at) { return LAYOUT == CHANNELS_LAST ? at % UNITS : at / ENTRIES; };
    auto entry_of = [](int at) { return LAYOUT == CHANNELS_LAST ? at / UNITS : at % ENTRIES; };
    auto weight_of = [&](int at) {
        int its = unit_of(at), entry = entry_of(at);
        Index of = first_group + its / (SLICES * CHANNELS);
        Index out = of * OUTPUTS + its / CHANNELS % SLICES * OUTS + entry % OUTS;
        return of < ALL_GROUPS ? offset(tiles.conv.weight, out, its % CHANNELS, entry / OUTS) : -1;
    };
    Index parts = (Index)args.parts, part = (Index)args.elements;
    for (int at = thread; at < ENTRIES * UNITS; at += THREADS) {
        constexpr int STEP = LAYOUT == CHANNELS_LAST ? UNITS : 1;
        int first = entry_of(at) * SUM_PITCH + unit_of(at) * (LAYOUT == CHANNELS_LAST ? 1 : PLACES);
        Acc sum = shared[first];
        for (int other = 1; other < PLACES; ++other) sum += shared[first + other * STEP];
        Index to = weight_of(at);
        if (to < 0) continue;
        if (parts == 1)
            tiles.result[to] = from_acc<ELEMENT>(sum);
        else
            args.partial[chunk * part + to] = sum;
    }
    if (parts <= 1 || !last_to_arrive(args.counters + group_block, (i32)parts)) return;
    for (int at = thread; at < ENTRIES * UNITS; at += THREADS) {
        Index to = weight_of(at);
        if (to < 0) continue;
        Acc sum = args.partial[to];
        UNROLL_BY(8)
        for (Index other = 1; other < parts; ++other) sum += args.partial[other * part + to];
        tiles.result[to] = from_acc<ELEMENT>(sum);
    }
}
#endif

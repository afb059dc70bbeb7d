// Matrices of channels by positions, transposed: images channels first as images channels last, so that a
// product reads neighbouring channels at once.
//
// A block transposes a tile, which it reads along the positions and writes along the channels; READ and WRITE
// say how many neighbours are moved together.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(READ, WRITE)

HOST struct ChannelsLastArgs {
    const ELEMENT* source;
    ELEMENT* target;
    i64 rows, columns;  // of a matrix of the source
    Divisor row_tiles, column_tiles;
};

constexpr int SIDE = 64, THREADS = 256;
// Four bytes more in a line: what lanes read below each other lies in different banks.
constexpr int PITCH = SIDE + 4 / (int)sizeof(ELEMENT);

KERNEL(to_channels_last, ChannelsLastArgs, THREADS) {
    SHARED(ELEMENT, tile, SIDE * PITCH);
    Index rows = (Index)args.rows, columns = (Index)args.columns;
    Index line = divide((Index)blockIdx.x, args.column_tiles), matrix = divide(line, args.row_tiles);
    Index first_column = ((Index)blockIdx.x - line * (Index)args.column_tiles.by) * SIDE;
    Index first_row = (line - matrix * (Index)args.row_tiles.by) * SIDE;
    Index start = matrix * rows * columns;
    int thread = (int)threadIdx.x;
    UNROLL
    for (int at = 0; at < SIDE * SIDE / READ; at += THREADS) {
        int row = (at + thread) / (SIDE / READ), column = (at + thread) % (SIDE / READ) * READ;
        if (first_row + row >= rows || first_column + column >= columns) continue;
        Index from = start + (first_row + row) * columns + first_column + column;
        Pack<ELEMENT, READ> values = load_pack<ELEMENT, READ>(args.source + from);
        UNROLL
        for (int i = 0; i < READ; ++i) tile[row * PITCH + column + i] = values.at[i];
    }
    barrier();
    UNROLL
    for (int at = 0; at < SIDE * SIDE / WRITE; at += THREADS) {
        int column = (at + thread) / (SIDE / WRITE), row = (at + thread) % (SIDE / WRITE) * WRITE;
        if (first_row + row >= rows || first_column + column >= columns) continue;
        Pack<ELEMENT, WRITE> values;
        UNROLL
        for (int i = 0; i < WRITE; ++i) values.at[i] = tile[(row + i) * PITCH + column];
        Index to = start + (first_column + column) * rows + first_row + row;
        store_global<ELEMENT, WRITE>(args.target + to, values);
    }
}

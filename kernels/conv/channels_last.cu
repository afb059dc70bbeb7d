// Matrices of channels by positions, transposed: images channels first as images channels last, so that a
// product reads neighbouring channels at once. A launch does so for both operands of a product.
//
// A block transposes a tile, which it reads along the positions and writes along the channels; READ and WRITE
// say how many neighbours of the first operand are moved together, READ_SECOND and WRITE_SECOND of the second.
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(READ, WRITE, READ_SECOND, WRITE_SECOND)

HOST struct Matrices {
    const ELEMENT* source;
    ELEMENT* target;
    i64 rows, columns;  // of a matrix of the source
    Divisor row_tiles, column_tiles;
};
HOST struct ChannelsLastArgs {
    Matrices first, second;
    i64 blocks;  // of the first
};

constexpr int SIDE = 64, THREADS = 256;
// Four bytes more in a line: what lanes read below each other lies in different banks.
constexpr int PITCH = SIDE + 4 / (int)sizeof(ELEMENT);

template <int FROM, int TO> DEVICE void transpose(const Matrices& matrices, Index block, ELEMENT* tile) {
    Index rows = (Index)matrices.rows, columns = (Index)matrices.columns;
    Index line = divide(block, matrices.column_tiles), matrix = divide(line, matrices.row_tiles);
    Index first_column = (block - line * (Index)matrices.column_tiles.by) * SIDE;
    Index first_row = (line - matrix * (Index)matrices.row_tiles.by) * SIDE;
    Index start = matrix * rows * columns;
    int thread = (int)threadIdx.x;
    UNROLL
    for (int at = 0; at < SIDE * SIDE / FROM; at += THREADS) {
        int row = (at + thread) / (SIDE / FROM), column = (at + thread) % (SIDE / FROM) * FROM;
        if (first_row + row >= rows || first_column + column >= columns) continue;
        Index from = start + (first_row + row) * columns + first_column + column;
        Pack<ELEMENT, FROM> values = load_pack<ELEMENT, FROM>(matrices.source + from);
        UNROLL
        for (int i = 0; i < FROM; ++i) tile[row * PITCH + column + i] = values.at[i];
    }
    barrier();
    UNROLL
    for (int at = 0; at < SIDE * SIDE / TO; at += THREADS) {
        int column = (at + thread) / (SIDE / TO), row = (at + thread) % (SIDE / TO) * TO;
        if (first_row + row >= rows || first_column + column >= columns) continue;
        Pack<ELEMENT, TO> values;
        UNROLL
        for (int i = 0; i < TO; ++i) values.at[i] = tile[(row + i) * PITCH + column];
        Index to = start + (first_column + column) * rows + first_row + row;
        store_global<ELEMENT, TO>(matrices.target + to, values);
    }
}

KERNEL(to_channels_last, ChannelsLastArgs, THREADS) {
    SHARED(ELEMENT, tile, SIDE * PITCH);
    Index block = (Index)blockIdx.x, blocks = (Index)args.blocks;
    if (block < blocks) transpose<READ, WRITE>(args.first, block, tile);
    else transpose<READ_SECOND, WRITE_SECOND>(args.second, block - blocks, tile);
}

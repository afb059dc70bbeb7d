// The last step of a covariance: the sums of tiles of the lower triangle become elements of the result, of
// both triangles where both are stored.
#include "covariance.cuh"
#include "symmetric.cuh"

HOST struct UpdateTilesArgs {
    Covariance covariance;
    PartRows rows;
    const Acc* sums;
    Triangle triangle;
};

// A block has a square of so many sums, and turns it over in shared memory: both triangles are written
// along their rows.
constexpr int SQUARE = 32, SQUARES = TILE_ROWS / SQUARE;

KERNEL(update_tiles, UpdateTilesArgs, 256) {
    SHARED(Acc, turned, SQUARE * (SQUARE + 1));
    Index block = (Index)blockIdx.x, number = block / (SQUARES * SQUARES);
    Index square = block - number * (SQUARES * SQUARES);
    Index down = square / SQUARES * SQUARE, across = square % SQUARES * SQUARE;
    TriangleTile tile = triangle_tile<TILE_ROWS>(args.triangle, number);
    Index lane = (Index)threadIdx.x % SQUARE, warp = (Index)threadIdx.x / SQUARE;
    Index rows = (Index)args.triangle.rows, column = tile.column + across + lane;
    Index to = column < rows ? layer_row(args.rows, column) : 0;
    UNROLL
    for (Index line = warp; line < SQUARE; line += 8) {
        Index row = tile.row + down + line;
        if (row >= rows || column > row) continue;
        Acc sum = 0;
        i64 at = (i64)(down + line) * TILE_ROWS + across + lane;
        for (Index part = 0; part < (Index)args.triangle.parts; ++part)
            sum += load(args.sums + tile_offset<TILE_ROWS>(args.triangle, part, number) + at);
        Acc* lower = entry(args.covariance, tile.group, layer_row(args.rows, row), to).lower;
        Acc value = updated(args.covariance, lower, sum);
        *lower = value;
        turned[line * (SQUARE + 1) + lane] = value;
    }
    barrier();
    Index row = tile.row + down + lane;
    if (args.covariance.packed || row >= rows) return;
    Index from = layer_row(args.rows, row);
    UNROLL
    for (Index line = warp; line < SQUARE; line += 8) {
        Index column = tile.column + across + line;
        if (column >= row) continue;
        *entry(args.covariance, tile.group, from, layer_row(args.rows, column)).upper =
            turned[lane * (SQUARE + 1) + line];
    }
}

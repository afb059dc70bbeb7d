// The lower triangle of a symmetric product A·Aᵀ, group by group: only tiles that touch the triangle are
// computed. Their sums go to a workspace, tile by tile, for a second kernel that knows where they belong.
//
// A launch computes a run of the tiles of all groups, so that the workspace may be smaller than the
// triangles; several blocks may share the terms of a tile.
#pragma once
#include "product.cuh"

HOST struct Triangle {
    i64 rows;    // of A
    i64 depth;   // terms
    i64 span;    // terms of a part, a multiple of DEPTH
    i64 parts;
    i64 first;   // this run's first tile
    Divisor count;  // tiles of the run
    Divisor tiles;  // tiles of a group
    Divisor line;   // tiles along a side, and one more
};

// A tile's group, and its first row and column.
struct TriangleTile {
    Index group, row, column;
};
// Tile `number` of a run. Rows t and side - 1 - t of the triangle together are one line of side + 1 tiles.
template <int TILE> DEVICE TriangleTile triangle_tile(const Triangle& triangle, Index number) {
    Index at = (Index)triangle.first + number, group = divide(at, triangle.tiles);
    at -= group * (Index)triangle.tiles.by;
    Index row = divide(at, triangle.line), column = at - row * (Index)triangle.line.by;
    if (column > row) {
        column -= row + 1;
        row = (Index)triangle.line.by - 2 - row;
    }
    return TriangleTile{group, row * TILE, column * TILE};
}

// Where a tile's part of the sums is in the workspace.
template <int TILE> DEVICE i64 tile_offset(const Triangle& triangle, Index part, Index number) {
    return ((i64)part * triangle.count.by + number) * (TILE * TILE);
}

// Writes all of a tile, what is outside the matrix as well.
struct TileTarget {
    typedef Acc Value;
    static constexpr int VECTOR = CHUNK;
    Acc* base;
    Index first_row, first_column;
    DEVICE Line row(Index r) const { return Line{r, (r - first_row) * TILE_COLUMNS}; }
    DEVICE Index column(Index c) const { return c - first_column; }
    DEVICE Acc start(Index, Index) const { return 0; }
    DEVICE Acc value(const Line&, Index, Acc sum) const { return sum; }
};

// What a block computes: a tile's part.
struct TriangleWork {
    Work work;
    TileTarget target;
};
DEVICE TriangleWork triangle_work(const Triangle& triangle, Acc* sums) {
    static_assert(TILE_ROWS == TILE_COLUMNS, "tiles of a triangle are squares");
    Index block = (Index)blockIdx.x, part = divide(block, triangle.count);
    Index number = block - part * (Index)triangle.count.by;
    TriangleTile tile = triangle_tile<TILE_ROWS>(triangle, number);
    Index first = part * (Index)triangle.span;
    Index last = smaller<Index>(first + (Index)triangle.span, (Index)triangle.depth);
    return TriangleWork{Work{tile.row, tile.column, first, last, part, tile.group},
                        TileTarget{sums + tile_offset<TILE_ROWS>(triangle, part, number), tile.row, tile.column}};
}

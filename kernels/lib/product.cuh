// The matrix product C = A·B, tile by tile. Where the factors lie is a loader's business, where C goes a
// target's: a gathered patch matrix and a plain matrix are the same product.
//
// The host says TILE_ROWS and TILE_COLUMNS (64 or 128), how wide each factor can be read and C be written
// (loaders' and targets' VECTOR: CHUNK or 1), MMA, the tensor cores' instruction for the half type, where
// there is one, and SPLIT where several blocks share the terms of a tile and a second pass adds them up.
//
// A loader has `ALONG_K`, whether its neighbours in memory are those in k; `row(r)` and `term(k)`, what
// there is to know about a row of A or a column of B and about an index of the sum; and `at(row, term)`,
// the offset of that element from `base`, or -1 where it is 0. A target has `row(r)`, a `Line` with the
// offset of a row of C from `base` or -1 outside; `column(c)`, what a column adds to that or -1;
// `start(r, c)`, what a sum begins with; and `value(line, c, sum)`, what becomes of it.
#pragma once
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(TILE_ROWS, TILE_COLUMNS, OUTPUT, MMA, SPLIT)

#ifndef OUTPUT
#define OUTPUT ELEMENT
#endif

#ifdef MMA
#define PRODUCT_THREADS 128
// Neighbours that are moved together, and terms of a step.
constexpr int CHUNK = 8, DEPTH = 32;
// As many as the 48 KiB of a block's shared memory hold.
constexpr int STAGES = 3;
#else
#define PRODUCT_THREADS 256
constexpr int CHUNK = 16 / sizeof(Acc), DEPTH = 64 / sizeof(Acc);
// Terms in a turn of the innermost loop: with these the largest tiles find room in the registers.
constexpr int TERMS_AHEAD = sizeof(Acc) == 8 ? 8 : 2;
#endif
typedef Pack<ELEMENT, CHUNK> Chunk;

// How blocks share the work.
HOST struct Tiling {
    i64 depth;
    i64 span;           // terms of a part, a multiple of DEPTH
    i64 columns_first;  // whether blocks follow each other along the rows of C
    i64 count;          // elements of C in the whole batch
    Divisor rows, columns;
    Divisor fast, slow;  // tiles in the direction in which blocks follow each other, and in the other
    Divisor parts;
};
struct Work {
    Index row, column, first, last, part, batch;
};
DEVICE Work work(const Tiling& tiling) {
    Index block = (Index)blockIdx.x;
    Index line = divide(block, tiling.fast), plane = divide(line, tiling.slow);
    Index fast = block - line * (Index)tiling.fast.by, slow = line - plane * (Index)tiling.slow.by;
    Work work;
    work.batch = divide(plane, tiling.parts);
    work.part = plane - work.batch * (Index)tiling.parts.by;
    work.row = (tiling.columns_first ? slow : fast) * TILE_ROWS;
    work.column = (tiling.columns_first ? fast : slow) * TILE_COLUMNS;
    work.first = work.part * (Index)tiling.span;
    work.last = smaller<Index>(work.first + (Index)tiling.span, (Index)tiling.depth);
    return work;
}

struct Line {
    Index row, offset;
};
// Writes N neighbours, of a chunk that is inside or outside as a whole if the target is a VECTOR wide.
template <int N, typename Target, typename Value>
DEVICE void write(const Target& target, const Line& line, Index column, const Pack<Value, N>& values) {
    if (line.offset < 0) return;
    if constexpr (Target::VECTOR > 1) {
        Index at = target.column(column);
        if (at >= 0) store_global<Value, N>(target.base + line.offset + at, values);
    } else {
        UNROLL
        for (int v = 0; v < N; ++v) {
            Index at = target.column(column + v);
            if (at >= 0) target.base[line.offset + at] = values.at[v];
        }
    }
}

#ifdef SPLIT
// Where the parts of sums go: part by part, the whole batch.
struct PartTarget {
    typedef Acc Value;
    static constexpr int VECTOR = 1;
    Acc* base;
    Index rows, columns;
    DEVICE PartTarget(Acc* parts, const Tiling& tiling, const Work& work)
        : rows((Index)tiling.rows.by), columns((Index)tiling.columns.by) {
        base = parts + work.part * tiling.count + (i64)work.batch * rows * columns;
    }
    DEVICE Line row(Index r) const { return Line{r, r < rows ? r * columns : -1}; }
    DEVICE Index column(Index c) const { return c < columns ? c : -1; }
    DEVICE Acc start(Index, Index) const { return 0; }
    DEVICE Acc value(const Line&, Index, Acc sum) const { return sum; }
};
#endif

struct Element {
    Index batch, row, column;
};
DEVICE Element element(const Tiling& tiling, Index at) {
    Index line = divide(at, tiling.columns), batch = divide(line, tiling.rows);
    return Element{batch, line - batch * (Index)tiling.rows.by, at - line * (Index)tiling.columns.by};
}
// Adds up the parts of a thread's element, in their order.
template <typename Target, typename Args> DEVICE void add_parts(const Args& args) {
    Index at = (Index)blockIdx.x * 256 + (Index)threadIdx.x;
    if (at >= (Index)args.tiling.count) return;
    Element of = element(args.tiling, at);
    Target target(args, of.batch);
    Acc sum = target.start(of.row, of.column);
    for (i64 part = 0; part < args.tiling.parts.by; ++part)
        sum += load(args.parts + part * args.tiling.count + at);
    Line line = target.row(of.row);
    target.base[line.offset + target.column(of.column)] = target.value(line, of.column, sum);
}

// A matrix with fixed distances between its rows and between its terms.
template <bool ALONG, int WIDTH> struct MatrixLoader {
    static constexpr bool ALONG_K = ALONG;
    static constexpr int VECTOR = WIDTH;
    typedef Index Row;
    typedef Index Term;
    const ELEMENT* base;
    Index rows, terms, row_step, term_step;
    DEVICE Index row(Index r) const { return r < rows ? r * row_step : -1; }
    DEVICE Index term(Index k) const { return k < terms ? k * term_step : -1; }
    DEVICE Index at(Index row, Index term) const { return row < 0 || term < 0 ? -1 : row + term; }
};

// What a thread moves of one factor in a step: COUNT chunks of a tile of LINES x CHUNKS of them, with the
// neighbours in memory along a line.
template <typename Loader, int TILE> struct Fetcher {
    static constexpr bool ALONG_K = Loader::ALONG_K;
    static constexpr int CHUNKS = (ALONG_K ? DEPTH : TILE) / CHUNK;
    static constexpr int LINE_STEP = PRODUCT_THREADS / CHUNKS;
    static constexpr int COUNT = TILE * DEPTH / CHUNK / PRODUCT_THREADS;
    static constexpr bool WHOLE = Loader::VECTOR == CHUNK;
    static constexpr int PIECES = WHOLE ? 1 : CHUNK;
    static_assert(WHOLE || Loader::VECTOR == 1, "a chunk is moved as a whole or by its elements");

    Loader loader;
    // Lines are rows when chunks lie along k; else a chunk's elements are.
    typename Loader::Row rows[ALONG_K ? COUNT : PIECES];

    static DEVICE int chunk() { return (int)threadIdx.x % CHUNKS; }
    static DEVICE int line(int i) { return (int)threadIdx.x / CHUNKS + i * LINE_STEP; }

    DEVICE Fetcher(const Loader& from, Index first_row) : loader(from) {
        UNROLL
        for (int i = 0; i < (ALONG_K ? COUNT : PIECES); ++i)
            rows[i] = loader.row(first_row + (ALONG_K ? line(i) : chunk() * CHUNK + i));
    }
    // Calls use(i, piece, offset) for each piece of each chunk.
    template <typename Use> DEVICE void each(Index first_term, Use use) const {
        if constexpr (ALONG_K) {
            UNROLL
            for (int v = 0; v < PIECES; ++v) {
                auto term = loader.term(first_term + chunk() * CHUNK + v);
                UNROLL
                for (int i = 0; i < COUNT; ++i) use(i, v, loader.at(rows[i], term));
            }
        } else {
            UNROLL
            for (int i = 0; i < COUNT; ++i) {
                auto term = loader.term(first_term + line(i));
                UNROLL
                for (int v = 0; v < PIECES; ++v) use(i, v, loader.at(rows[v], term));
            }
        }
    }
    DEVICE void load_chunks(Chunk (&to)[COUNT], Index first_term) const {
        each(first_term, [&](int i, int v, Index offset) {
            if constexpr (WHOLE) {
                Chunk none = {};
                to[i] = offset < 0 ? none : load_pack<ELEMENT, CHUNK>(loader.base + offset);
            } else {
                to[i].at[v] = offset < 0 ? zero<ELEMENT>() : load(loader.base + offset);
            }
        });
    }
};

#ifdef MMA

// Where a tile's chunk lies in shared memory, so that the eight rows of a matrix that load_matrices takes
// in one go, and the chunks that a warp stores, are in different banks.
template <bool ALONG_K, int TILE> DEVICE int place(int line, int chunk) {
    if (ALONG_K) return line * (DEPTH / CHUNK) + (chunk ^ (line >> 1 & 3));
    return line * (TILE / CHUNK) + (chunk ^ (line & 7));
}

// Brings one factor's tiles to shared memory, `begin` and `end` around work that need not wait for it.
template <typename Loader, int TILE> struct Mover {
    typedef Fetcher<Loader, TILE> From;
    From from;
    Chunk staged[From::WHOLE ? 1 : From::COUNT];
    DEVICE Mover(const Loader& loader, Index first_row) : from(loader, first_row) {}
    DEVICE void begin(Chunk* tile, Index first_term) {
        if constexpr (From::WHOLE) {
            from.each(first_term, [&](int i, int, Index offset) {
                Chunk* to = tile + place<From::ALONG_K, TILE>(From::line(i), From::chunk());
                copy_async_16(to, from.loader.base + (offset < 0 ? 0 : offset), offset >= 0);
            });
        } else {
            from.load_chunks(staged, first_term);
        }
    }
    DEVICE void end(Chunk* tile) {
        if constexpr (!From::WHOLE) {
            UNROLL
            for (int i = 0; i < From::COUNT; ++i)
                tile[place<From::ALONG_K, TILE>(From::line(i), From::chunk())] = staged[i];
        }
    }
};

// A 16×16 piece of a tile as four matrices, ordered as mma takes a factor: rows 0-7 and 8-15, then the
// next eight terms; or, `columns`, terms first.
template <bool ALONG_K, int TILE, bool COLUMNS>
DEVICE void load_piece(u32 (&to)[4], const Chunk* tile, int row, int term) {
    int lane = (int)threadIdx.x % 32, in = lane % 8, low = lane / 8 % 2, high = lane / 16;
    int r = COLUMNS ? high : low, k = COLUMNS ? low : high;
    if (ALONG_K)
        load_matrices(to, tile + place<ALONG_K, TILE>(row + 8 * r + in, term / 8 + k));
    else
        load_matrices_transposed(to, tile + place<ALONG_K, TILE>(term + 8 * k + in, row / 8 + r));
}

template <typename T> DEVICE u32 pair_bits(T low, T high) { return (u32)low.bits | (u32)high.bits << 16; }

// Lane t of each four gets what the four lanes have at position t.
DEVICE void transpose_quad(u32 (&values)[4]) {
    int t = (int)threadIdx.x % 4;
    UNROLL
    for (int step = 1; step < 4; step *= 2) {
        UNROLL
        for (int i = 0; i < 4; ++i) {
            if (i & step) continue;
            bool upper = t & step;
            u32 got = shuffle_xor(upper ? values[i] : values[i | step], step);
            if (upper)
                values[i] = got;
            else
                values[i | step] = got;
        }
    }
}

// Four warps, each with a quarter of the tile.
template <typename LoaderA, typename LoaderB, typename Target>
DEVICE void product(const LoaderA& a, const LoaderB& b, const Work& work, const Target& target) {
    constexpr int WARP_ROWS = TILE_ROWS / 2, WARP_COLUMNS = TILE_COLUMNS / 2;
    constexpr int ROW_PIECES = WARP_ROWS / 16, COLUMN_PIECES = WARP_COLUMNS / 8;
    constexpr int A_CHUNKS = TILE_ROWS * DEPTH / CHUNK, B_CHUNKS = TILE_COLUMNS * DEPTH / CHUNK;
    SHARED(Chunk, a_tiles, STAGES * A_CHUNKS);
    SHARED(Chunk, b_tiles, STAGES * B_CHUNKS);
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int warp_row = warp / 2 * WARP_ROWS, warp_column = warp % 2 * WARP_COLUMNS;

    Mover<LoaderA, TILE_ROWS> move_a(a, work.row);
    Mover<LoaderB, TILE_COLUMNS> move_b(b, work.column);
    f32 sums[ROW_PIECES][COLUMN_PIECES][4];
    UNROLL
    for (int i = 0; i < ROW_PIECES; ++i) {
        UNROLL
        for (int j = 0; j < COLUMN_PIECES; ++j) {
            UNROLL
            for (int e = 0; e < 4; ++e)
                sums[i][j][e] = target.start(work.row + warp_row + 16 * i + e / 2 * 8 + lane / 4,
                                             work.column + warp_column + 8 * j + lane % 4 * 2 + e % 2);
        }
    }

    int stage = 1, ahead_stage = 0;
    Index ahead = work.first;
    // The first steps only fill the pipeline.
    for (Index term = ahead - (STAGES - 1) * DEPTH; term < work.last; term += DEPTH, ahead += DEPTH) {
        bool filled = term >= work.first;
        if (filled) {
            // This step's tiles are there, for all threads, and no thread reads the previous step's any more.
            copy_async_wait<STAGES - 2>();
            barrier();
        }
        Chunk *a_ahead = a_tiles + ahead_stage * A_CHUNKS, *b_ahead = b_tiles + ahead_stage * B_CHUNKS;
        if (ahead < work.last) {
            move_a.begin(a_ahead, ahead);
            move_b.begin(b_ahead, ahead);
        }
        copy_async_commit();
        const Chunk *a_tile = a_tiles + stage * A_CHUNKS, *b_tile = b_tiles + stage * B_CHUNKS;
        UNROLL
        for (int k = 0; k < DEPTH && filled; k += 16) {
            u32 left[ROW_PIECES][4], right[COLUMN_PIECES / 2][4];
            UNROLL
            for (int i = 0; i < ROW_PIECES; ++i)
                load_piece<LoaderA::ALONG_K, TILE_ROWS, false>(left[i], a_tile, warp_row + 16 * i, k);
            UNROLL
            for (int j = 0; j < COLUMN_PIECES / 2; ++j)
                load_piece<LoaderB::ALONG_K, TILE_COLUMNS, true>(right[j], b_tile, warp_column + 16 * j, k);
            UNROLL
            for (int i = 0; i < ROW_PIECES; ++i) {
                UNROLL
                for (int j = 0; j < COLUMN_PIECES; ++j) {
                    u32 column[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
                    MMA(sums[i][j], left[i], column);
                }
            }
        }
        if (ahead < work.last) {
            move_a.end(a_ahead);
            move_b.end(b_ahead);
        }
        stage = stage == STAGES - 1 ? 0 : stage + 1;
        ahead_stage = ahead_stage == STAGES - 1 ? 0 : ahead_stage + 1;
    }

    typedef typename Target::Value Value;
    UNROLL
    for (int i = 0; i < ROW_PIECES; ++i) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            Index row = work.row + warp_row + 16 * i + 8 * half + lane / 4;
            Line line = target.row(row);
            if constexpr (Target::VECTOR > 1 && sizeof(Value) == 2) {
                // Four lanes have eight neighbours each after exchanging pairs; without, two.
                UNROLL
                for (int j = 0; j < COLUMN_PIECES; j += 4) {
                    Index first = work.column + warp_column + 8 * j;
                    u32 pairs[4];
                    UNROLL
                    for (int p = 0; p < 4; ++p) {
                        Index column = first + 8 * p + lane % 4 * 2;
                        const f32(&sum)[4] = sums[i][j + p];
                        pairs[p] = pair_bits(target.value(line, column, sum[2 * half]),
                                       target.value(line, column + 1, sum[2 * half + 1]));
                    }
                    transpose_quad(pairs);
                    Pack<Value, 8> bits;
                    UNROLL
                    for (int p = 0; p < 4; ++p) {
                        bits.at[2 * p] = Value{(u16)pairs[p]};
                        bits.at[2 * p + 1] = Value{(u16)(pairs[p] >> 16)};
                    }
                    write<8>(target, line, first + lane % 4 * 8, bits);
                }
            } else {
                UNROLL
                for (int j = 0; j < COLUMN_PIECES; ++j) {
                    Index column = work.column + warp_column + 8 * j + lane % 4 * 2;
                    Pack<Value, 2> pair = {target.value(line, column, sums[i][j][2 * half]),
                                           target.value(line, column + 1, sums[i][j][2 * half + 1])};
                    write<2>(target, line, column, pair);
                }
            }
        }
    }
}

#else

// A step's tile of one factor, as accumulators: line k holds the rows' terms k.
template <int TILE> struct Shape {
    // Keeps the vectors aligned, and spreads what a warp stores over the banks.
    static constexpr int PITCH = TILE + CHUNK;
};
template <typename From, int TILE>
DEVICE void store_chunks(Acc* tile, const Chunk (&chunks)[From::COUNT]) {
    UNROLL
    for (int i = 0; i < From::COUNT; ++i) {
        Pack<Acc, CHUNK> wide;
        UNROLL
        for (int v = 0; v < CHUNK; ++v) wide.at[v] = to_acc(chunks[i].at[v]);
        if (From::ALONG_K) {
            UNROLL
            for (int v = 0; v < CHUNK; ++v)
                tile[(From::chunk() * CHUNK + v) * Shape<TILE>::PITCH + From::line(i)] = wide.at[v];
        } else {
            store_pack(tile + From::line(i) * Shape<TILE>::PITCH + From::chunk() * CHUNK, wide);
        }
    }
}

// 16×16 threads, each with vectors of CHUNK rows and CHUNK columns at a distance of 16 of them.
template <typename LoaderA, typename LoaderB, typename Target>
DEVICE void product(const LoaderA& a, const LoaderB& b, const Work& work, const Target& target) {
    constexpr int ROWS = TILE_ROWS / 16, COLUMNS = TILE_COLUMNS / 16;
    constexpr int A_TILE = DEPTH * Shape<TILE_ROWS>::PITCH, B_TILE = DEPTH * Shape<TILE_COLUMNS>::PITCH;
    SHARED(Acc, a_tiles, 2 * A_TILE);
    SHARED(Acc, b_tiles, 2 * B_TILE);
    // The 4×8 threads of a warp read fewer different vectors than 2×16 would.
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int thread_row = (warp / 2 * 4 + lane / 8) * CHUNK, thread_column = (warp % 2 * 8 + lane % 8) * CHUNK;

    typedef Fetcher<LoaderA, TILE_ROWS> FromA;
    typedef Fetcher<LoaderB, TILE_COLUMNS> FromB;
    FromA from_a(a, work.row);
    FromB from_b(b, work.column);
    Acc sums[ROWS][COLUMNS];
    UNROLL
    for (int i = 0; i < ROWS; ++i) {
        UNROLL
        for (int j = 0; j < COLUMNS; ++j)
            sums[i][j] = target.start(work.row + i / CHUNK * (16 * CHUNK) + thread_row + i % CHUNK,
                                      work.column + j / CHUNK * (16 * CHUNK) + thread_column + j % CHUNK);
    }
    Chunk a_chunks[FromA::COUNT], b_chunks[FromB::COUNT];
    int now = 1;
    // The first step only fetches.
    for (Index term = work.first - DEPTH; term < work.last; term += DEPTH) {
        bool filled = term >= work.first, more = term + DEPTH < work.last;
        if (more) {
            from_a.load_chunks(a_chunks, term + DEPTH);
            from_b.load_chunks(b_chunks, term + DEPTH);
        }
        const Acc *a_tile = a_tiles + now * A_TILE, *b_tile = b_tiles + now * B_TILE;
        UNROLL_BY(TERMS_AHEAD)
        for (int k = 0; k < DEPTH && filled; ++k) {
            Acc left[ROWS], right[COLUMNS];
            UNROLL
            for (int i = 0; i < ROWS; i += CHUNK) {
                const Acc* at = a_tile + k * Shape<TILE_ROWS>::PITCH + 16 * i + thread_row;
                auto vector = load_pack<Acc, CHUNK>(at);
                UNROLL
                for (int v = 0; v < CHUNK; ++v) left[i + v] = vector.at[v];
            }
            UNROLL
            for (int j = 0; j < COLUMNS; j += CHUNK) {
                const Acc* at = b_tile + k * Shape<TILE_COLUMNS>::PITCH + 16 * j + thread_column;
                auto vector = load_pack<Acc, CHUNK>(at);
                UNROLL
                for (int v = 0; v < CHUNK; ++v) right[j + v] = vector.at[v];
            }
            UNROLL
            for (int i = 0; i < ROWS; ++i) {
                UNROLL
                for (int j = 0; j < COLUMNS; ++j) sums[i][j] = fused(left[i], right[j], sums[i][j]);
            }
        }
        now ^= 1;
        if (more) {
            store_chunks<FromA, TILE_ROWS>(a_tiles + now * A_TILE, a_chunks);
            store_chunks<FromB, TILE_COLUMNS>(b_tiles + now * B_TILE, b_chunks);
        }
        // The next step's tiles are there, and no thread reads this step's any more.
        barrier();
    }
    UNROLL
    for (int i = 0; i < ROWS; ++i) {
        Index row = work.row + i / CHUNK * (16 * CHUNK) + thread_row + i % CHUNK;
        Line line = target.row(row);
        UNROLL
        for (int j = 0; j < COLUMNS; j += CHUNK) {
            Index column = work.column + 16 * j + thread_column;
            Pack<typename Target::Value, CHUNK> out;
            UNROLL
            for (int v = 0; v < CHUNK; ++v) out.at[v] = target.value(line, column + v, sums[i][j + v]);
            write<CHUNK>(target, line, column, out);
        }
    }
}

#endif

// A block's tile of C, or its part of the tile's terms.
template <typename Target, typename LoaderA, typename LoaderB, typename Args>
DEVICE void tile(const LoaderA& a, const LoaderB& b, const Work& work, const Args& args) {
#ifdef SPLIT
    product(a, b, work, PartTarget(args.parts, args.tiling, work));
#else
    product(a, b, work, Target(args, work.batch));
#endif
}

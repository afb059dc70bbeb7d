// The matrix product C = A·B, tile by tile. Where the factors lie is a loader's business, where C goes a
// target's: a gathered patch matrix and a plain matrix are the same product.
//
// The host says TILE_ROWS and TILE_COLUMNS (64 or 128), how wide each factor can be read and C be written
// (loaders' and targets' VECTOR: CHUNK or 1), MMA, the tensor cores' instruction for the half type, where
// there is one, and SPLIT where several blocks share the terms of a tile and a second pass adds them up.
//
// A loader has `ALONG_K`, whether its neighbours in memory are those in k; `row(r)` and `term(k)`, what
// there is to know about a row of A or a column of B and about an index of the sum; and `at(row, term)`,
// the Offset of that element from `base`. A target has `row(r)`, a `Line` with the
// offset of a row of C from `base` or -1 outside; `column(c)`, what a column adds to that or -1; `nth(at)`, the
// column that lies at this place of a row in memory;
// `start(r, c)`, what a sum begins with; and `value(line, c, sum)`, what becomes of it.
#pragma once
#include "element.cuh"
#include "geometry.cuh"

SWITCHES(TILE_ROWS, TILE_COLUMNS, OUTPUT, MMA, SPLIT, A_VECTOR, B_VECTOR)

#ifndef OUTPUT
#define OUTPUT ELEMENT
#endif

#ifdef MMA
#include "fragments.cuh"
// Neighbours that are moved together, and terms of a step.
constexpr int CHUNK = Format::CHUNK, DEPTH = Format::DEPTH;
// As many as the 48 KiB of a block's shared memory hold.
constexpr int STAGES = 3;
constexpr int RESIDENT_THREADS = 256;
// What a warp computes: the larger, the fewer of its operations read shared memory. A thread has registers for 128
// sums of f32, or 64 of f64; in the smallest tile it has half of them. Where elements are moved one by one, twice as
// many threads share that.
#if A_VECTOR == 1 || (defined(B_VECTOR) && B_VECTOR == 1)
constexpr bool NARROW = true;
#else
constexpr bool NARROW = sizeof(Acc) == 8;
#endif
constexpr bool SMALLEST = TILE_ROWS * TILE_COLUMNS == 64 * 64;
constexpr int WARP_ROWS = SMALLEST && NARROW ? 32 : 64, WARP_COLUMNS = SMALLEST || NARROW ? 32 : 64;
constexpr int PRODUCT_THREADS = TILE_ROWS / WARP_ROWS * (TILE_COLUMNS / WARP_COLUMNS) * 32;
#else
constexpr int CHUNK = 16 / sizeof(Acc), DEPTH = 64 / sizeof(Acc);
// What a thread computes.
constexpr int THREAD_ROWS = 8, THREAD_COLUMNS = sizeof(Acc) == 8 ? 4 : 8;
constexpr int PRODUCT_THREADS = TILE_ROWS / THREAD_ROWS * (TILE_COLUMNS / THREAD_COLUMNS);
// Turns of the innermost loop, with CHUNK terms each, that are one after the other in the code.
constexpr int TURNS = sizeof(Acc) == 8 ? 4 : 2;
// Wide sums and indices, and what a thread of few has to move, take more registers.
constexpr int RESIDENT_THREADS = sizeof(Acc) == 8 || INDEX_BITS == 64 || PRODUCT_THREADS == 64 ? 256 : 384;
#endif
// Blocks on a multiprocessor at a time, at least: what leaves every thread as many registers as it can have, or,
// where each thread multiplies by itself, half of that.
constexpr int RESIDENT_BLOCKS = RESIDENT_THREADS / PRODUCT_THREADS;
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
    keep(work.last);
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
    // Threads that are neighbours write neighbours.
    Index column = target.nth(of.column);
    Acc sum = target.start(of.row, column);
    const Acc* from = args.parts + at - of.column + column;
    for (i64 part = 0; part < args.tiling.parts.by; ++part) sum += load(from + part * args.tiling.count);
    Line line = target.row(of.row);
    target.base[line.offset + target.column(column)] = target.value(line, column, sum);
}

// A matrix with fixed distances between its rows and between its terms.
template <bool ALONG, int WIDTH> struct MatrixLoader {
    static constexpr bool ALONG_K = ALONG;
    static constexpr int VECTOR = WIDTH;
    typedef Index Row;
    const ELEMENT* base;
    Index rows, terms, row_step, term_step;
    DEVICE MatrixLoader(const ELEMENT* base, Index rows, Index terms, Index row_step, Index term_step)
        : base(base), rows(rows), terms(terms), row_step(row_step), term_step(term_step) {
        keep(this->base);
    }
    DEVICE Index row(Index r) const { return r < rows ? r * row_step : OUTSIDE; }
    DEVICE Offset term(Index k) const { return Offset{times(k, term_step), k < terms}; }
    DEVICE Offset at(Index row, const Offset& term) const {
        return Offset{plus(row, term.at), row >= 0 && term.inside};
    }
};

// What a thread moves of one factor in a step: COUNT chunks of a tile of LINES x CHUNKS of them, with the
// neighbours in memory along a line. What cannot be read by chunks is read element by element; where that is along
// rows, PIECES of them at a distance of CHUNKS rows, so that the elements that a warp reads are neighbours.
template <typename Loader, int TILE> struct Fetcher {
    static constexpr bool ALONG_K = Loader::ALONG_K;
    static constexpr int CHUNKS = (ALONG_K ? DEPTH : TILE) / CHUNK;
    static constexpr int LINE_STEP = PRODUCT_THREADS / CHUNKS;
    static constexpr int COUNT = TILE * DEPTH / CHUNK / PRODUCT_THREADS;
    static constexpr bool WHOLE = Loader::VECTOR == CHUNK;
    static constexpr bool SPREAD = !WHOLE && !ALONG_K;
    static constexpr int PIECES = WHOLE ? 1 : CHUNK;
    static_assert(WHOLE || Loader::VECTOR == 1, "a chunk is moved as a whole or by its elements");
    static_assert(LINE_STEP > 0 && COUNT > 0, "every thread has chunks to move");

    Loader loader;
    // Lines are rows when chunks lie along k, and else terms.
    typename Loader::Row rows[ALONG_K ? COUNT : PIECES];
    Index first;  // of the step's terms, the first of this thread

    static DEVICE int chunk() { return (int)threadIdx.x % CHUNKS; }
    static DEVICE int line(int i) { return (int)threadIdx.x / CHUNKS + i * LINE_STEP; }
    // Where in its line a piece is.
    static DEVICE int place_of(int piece) { return SPREAD ? piece * CHUNKS + chunk() : chunk() * CHUNK + piece; }

    DEVICE Fetcher(const Loader& from, Index first_row, Index first_term)
        : loader(from), first(first_term + (ALONG_K ? chunk() * CHUNK : line(0))) {
        UNROLL
        for (int i = 0; i < (ALONG_K ? COUNT : PIECES); ++i)
            rows[i] = loader.row(first_row + (ALONG_K ? line(i) : place_of(i)));
    }
    // Calls use(i, piece, offset) for each piece of each chunk of this step, and goes on to the next.
    template <typename Use> DEVICE void each(Use use) {
        UNROLL
        for (int i = 0; i < (ALONG_K ? PIECES : COUNT); ++i) {
            auto term = loader.term(first + (ALONG_K ? i : i * LINE_STEP));
            UNROLL
            for (int j = 0; j < (ALONG_K ? COUNT : PIECES); ++j)
                ALONG_K ? use(j, i, loader.at(rows[j], term)) : use(i, j, loader.at(rows[j], term));
        }
        first += DEPTH;
    }
    DEVICE void load_chunks(Chunk (&to)[COUNT]) {
        each([&](int i, int v, Offset offset) {
            if constexpr (WHOLE) {
                Chunk none = {};
                to[i] = offset.inside ? load_pack<ELEMENT, CHUNK>(loader.base + offset.at) : none;
            } else {
                to[i].at[v] = offset.inside ? load(loader.base + offset.at) : zero<ELEMENT>();
            }
        });
    }
};

#ifdef MMA

typedef Format::Chunk TileChunk;
// The same type, or the wider one of the sums.
DEVICE TileChunk tile_chunk(const TileChunk& chunk) { return chunk; }
template <typename T> DEVICE TileChunk tile_chunk(const Pack<T, CHUNK>& chunk) {
    TileChunk wide;
    UNROLL
    for (int v = 0; v < CHUNK; ++v) wide.at[v] = to_acc(chunk.at[v]);
    return wide;
}

template <int BYTES> DEVICE void copy_async(void* to, const void* from, bool valid) {
    if constexpr (BYTES == 16) copy_async_16(to, from, valid);
    else if constexpr (BYTES == 8) copy_async_8(to, from, valid);
    else copy_async_4(to, from, valid);
}

// Brings one factor's tiles to shared memory, `begin` and `end` around work that need not wait for it: in the
// background, where elements stay what they are and are not too small for that.
template <typename Loader, int TILE> struct Mover {
    typedef Fetcher<Loader, TILE> From;
    static constexpr bool AS_IT_IS = sizeof(Chunk) == sizeof(TileChunk);
    static constexpr bool IN_BACKGROUND = AS_IT_IS && (From::WHOLE || sizeof(ELEMENT) >= 4);
    // After so many lines the places of a thread's chunks are those of its first, moved on.
    static constexpr int LINES = Format::ALIKE_LINES;
    static constexpr int ALIKE = From::LINE_STEP % LINES == 0 ? 1 : LINES / From::LINE_STEP;
    static constexpr int PLACES = ALIKE < From::COUNT ? ALIKE : From::COUNT;
    static constexpr int APART = From::LINE_STEP * ((From::ALONG_K ? DEPTH : TILE) / CHUNK);
    From from;
    TileChunk* first[PLACES];
    Chunk staged[IN_BACKGROUND ? 1 : From::COUNT];
    DEVICE Mover(const Loader& loader, TileChunk* tiles, Index first_row, Index first_term)
        : from(loader, first_row, first_term) {
        UNROLL
        for (int i = 0; i < PLACES; ++i) {
            first[i] = tiles + Format::place<From::ALONG_K, TILE>(From::line(i), From::chunk());
            keep_shared(first[i]);
        }
    }
    DEVICE TileChunk* place_of(int tile, int i) const {
        return first[i % PLACES] + (tile + i / PLACES * (PLACES * APART));
    }
    // Where in shared memory a piece of a chunk is kept.
    DEVICE typename Format::Element* place_of(TileChunk* tiles, int tile, int i, int piece) const {
        if constexpr (From::SPREAD) {
            int at = From::place_of(piece);
            return tiles[tile + Format::place<false, TILE>(From::line(i), at / CHUNK)].at + at % CHUNK;
        } else {
            return place_of(tile, i)->at + piece;
        }
    }
    DEVICE void begin(TileChunk* tiles, int tile) {
        if constexpr (!IN_BACKGROUND) {
            from.load_chunks(staged);
        } else {
            from.each([&](int i, int piece, Offset offset) {
                void* to = From::WHOLE ? place_of(tile, i)->at : place_of(tiles, tile, i, piece);
                copy_async<sizeof(ELEMENT) * CHUNK / From::PIECES>(to, from.loader.base + offset.at, offset.inside);
            });
        }
    }
    DEVICE void end(TileChunk* tiles, int tile) {
        UNROLL
        for (int i = 0; i < From::COUNT && !IN_BACKGROUND; ++i) {
            TileChunk chunk = tile_chunk(staged[i]);
            if constexpr (From::SPREAD) {
                UNROLL
                for (int v = 0; v < CHUNK; ++v) *place_of(tiles, tile, i, v) = chunk.at[v];
            } else {
                *place_of(tile, i) = chunk;
            }
        }
    }
};

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
    // What the lanes have read where the others write now is read.
    warp_barrier();
}

// Warps lie side by side on the tile.
template <typename LoaderA, typename LoaderB, typename Target>
DEVICE void product(const LoaderA& a, const LoaderB& b, const Work& work, const Target& target) {
    constexpr int WARPS_ACROSS = TILE_COLUMNS / WARP_COLUMNS;
    constexpr int ROW_PIECES = WARP_ROWS / 16, COLUMN_PIECES = WARP_COLUMNS / 8;
    constexpr int A_CHUNKS = TILE_ROWS * DEPTH / CHUNK, B_CHUNKS = TILE_COLUMNS * DEPTH / CHUNK;
    constexpr int NEIGHBOURS = Format::NEIGHBOURS, RUNS = 2 * COLUMN_PIECES / NEIGHBOURS;
    SHARED(TileChunk, a_tiles, STAGES * A_CHUNKS);
    SHARED(TileChunk, b_tiles, STAGES * B_CHUNKS);
    int warp = (int)threadIdx.x / 32;
    int warp_row = warp / WARPS_ACROSS * WARP_ROWS, warp_column = warp % WARPS_ACROSS * WARP_COLUMNS;

    Mover<LoaderA, TILE_ROWS> move_a(a, a_tiles, work.row, work.first);
    Mover<LoaderB, TILE_COLUMNS> move_b(b, b_tiles, work.column, work.first);
    typedef Format::Factor<LoaderA::ALONG_K, TILE_ROWS, WARP_ROWS, false> FactorA;
    typedef Format::Factor<LoaderB::ALONG_K, TILE_COLUMNS, WARP_COLUMNS, true> FactorB;
    FactorA factor_a(a_tiles, warp_row);
    FactorB factor_b(b_tiles, warp_column);
    Index first_row = work.row + warp_row, first_column = work.column + warp_column;
    Acc sums[ROW_PIECES][COLUMN_PIECES][4];
    UNROLL
    for (int i = 0; i < 2 * ROW_PIECES; ++i) {
        UNROLL
        for (int j = 0; j < RUNS; ++j) {
            UNROLL
            for (int v = 0; v < NEIGHBOURS; ++v)
                sums[i / 2][Format::piece(j, v)][i % 2 * 2 + Format::element(j, v)] =
                    target.start(first_row + Format::row(i / 2, i % 2), first_column + Format::column(j) + v);
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
        int a_ahead = ahead_stage * A_CHUNKS, b_ahead = ahead_stage * B_CHUNKS;
        if (ahead < work.last) {
            move_a.begin(a_tiles, a_ahead);
            move_b.begin(b_tiles, b_ahead);
        }
        copy_async_commit();
        int a_tile = stage * A_CHUNKS, b_tile = stage * B_CHUNKS;
        UNROLL
        for (int part = 0; part < DEPTH / Format::TERMS && filled; ++part) {
            typename FactorA::Operands left;
            typename FactorB::Operands right;
            factor_a.load(left, a_tile, part);
            factor_b.load(right, b_tile, part);
            Format::multiply(sums, left, right);
        }
        if (ahead < work.last) {
            move_a.end(a_tiles, a_ahead);
            move_b.end(b_tiles, b_ahead);
        }
        stage = stage == STAGES - 1 ? 0 : stage + 1;
        ahead_stage = ahead_stage == STAGES - 1 ? 0 : ahead_stage + 1;
    }

    typedef typename Target::Value Value;
    UNROLL
    for (int i = 0; i < 2 * ROW_PIECES; ++i) {
        Line line = target.row(first_row + Format::row(i / 2, i % 2));
        auto neighbours = [&](int run) {
            Index column = first_column + Format::column(run);
            Pack<Value, NEIGHBOURS> found;
            UNROLL
            for (int v = 0; v < NEIGHBOURS; ++v)
                found.at[v] = target.value(line, column + v,
                                           sums[i / 2][Format::piece(run, v)][i % 2 * 2 + Format::element(run, v)]);
            return found;
        };
        if constexpr (Target::VECTOR == 8 && sizeof(Value) == 2) {
            // Four lanes have eight neighbours each after exchanging pairs; without, two.
            UNROLL
            for (int j = 0; j < RUNS; j += 4) {
                u32 pairs[4];
                UNROLL
                for (int p = 0; p < 4; ++p) {
                    Pack<Value, NEIGHBOURS> pair = neighbours(j + p);
                    pairs[p] = pair_bits(pair.at[0], pair.at[1]);
                }
                transpose_quad(pairs);
                Pack<Value, 8> bits;
                UNROLL
                for (int p = 0; p < 4; ++p) {
                    bits.at[2 * p] = Value{(u16)pairs[p]};
                    bits.at[2 * p + 1] = Value{(u16)(pairs[p] >> 16)};
                }
                write<8>(target, line, first_column + 8 * j + lane_term() * 8, bits);
            }
        } else {
            UNROLL
            for (int j = 0; j < RUNS; ++j)
                write<NEIGHBOURS>(target, line, first_column + Format::column(j), neighbours(j));
        }
    }
}

#else

// A step's tile of one factor, as accumulators: line k holds the rows' terms k.
template <int TILE> struct Shape {
    // Chunks along k are a line apart, so that what a warp stores of them lies in different banks.
    static constexpr int PITCH = TILE + 2 * CHUNK, SIZE = DEPTH * PITCH;
    static DEVICE int line(int k) { return (k % CHUNK * (DEPTH / CHUNK) + k / CHUNK) * PITCH; }
};
template <typename From, int TILE>
DEVICE void store_chunks(Acc* tile, const Chunk (&chunks)[From::COUNT]) {
    UNROLL
    for (int i = 0; i < From::COUNT; ++i) {
        Pack<Acc, CHUNK> wide;
        UNROLL
        for (int v = 0; v < CHUNK; ++v) wide.at[v] = to_acc(chunks[i].at[v]);
        if constexpr (From::ALONG_K || From::SPREAD) {
            UNROLL
            for (int v = 0; v < CHUNK; ++v) {
                int along = From::place_of(v), across = From::line(i);
                tile[From::ALONG_K ? Shape<TILE>::line(along) + across : Shape<TILE>::line(across) + along] = wide.at[v];
            }
        } else {
            store_pack(tile + Shape<TILE>::line(From::line(i)) + From::chunk() * CHUNK, wide);
        }
    }
}
// What a thread takes of a line: SIZE elements, by vectors at a distance of all threads' vectors side by side.
template <int SIZE, int TILE> DEVICE void load_line(Acc (&to)[SIZE], const Acc* from) {
    UNROLL
    for (int i = 0; i < SIZE; i += CHUNK) {
        auto vector = load_pack<Acc, CHUNK>(from + i * (TILE / SIZE));
        UNROLL
        for (int v = 0; v < CHUNK; ++v) to[i + v] = vector.at[v];
    }
}

// Each thread has vectors of CHUNK rows and CHUNK columns.
template <typename LoaderA, typename LoaderB, typename Target>
DEVICE void product(const LoaderA& a, const LoaderB& b, const Work& work, const Target& target) {
    constexpr int ROWS = THREAD_ROWS, COLUMNS = THREAD_COLUMNS;
    constexpr int DOWN = TILE_ROWS / ROWS * CHUNK, ACROSS = TILE_COLUMNS / COLUMNS * CHUNK;
    typedef Shape<TILE_ROWS> ShapeA;
    typedef Shape<TILE_COLUMNS> ShapeB;
    SHARED(Acc, a_tiles, 2 * ShapeA::SIZE);
    SHARED(Acc, b_tiles, 2 * ShapeB::SIZE);
    // The 4×8 threads of a warp read few different vectors, rows' the same in each pair of lanes, columns' in lanes
    // that are two apart: shared memory then serves twice as many lanes at a time.
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    constexpr int WARPS_ACROSS = TILE_COLUMNS / COLUMNS / 8;
    int thread_row = (warp / WARPS_ACROSS * 4 + (lane >> 1 & 1) + (lane >> 3 & 2)) * CHUNK;
    int thread_column = (warp % WARPS_ACROSS * 8 + (lane & 1) + (lane >> 1 & 6)) * CHUNK;

    typedef Fetcher<LoaderA, TILE_ROWS> FromA;
    typedef Fetcher<LoaderB, TILE_COLUMNS> FromB;
    FromA from_a(a, work.row, work.first);
    FromB from_b(b, work.column, work.first);
    Acc sums[ROWS][COLUMNS];
    UNROLL
    for (int i = 0; i < ROWS; ++i) {
        UNROLL
        for (int j = 0; j < COLUMNS; ++j)
            sums[i][j] = target.start(work.row + i / CHUNK * DOWN + thread_row + i % CHUNK,
                                      work.column + j / CHUNK * ACROSS + thread_column + j % CHUNK);
    }
    Chunk a_chunks[FromA::COUNT], b_chunks[FromB::COUNT];
    int now = 1;
    // The first step only fetches.
    for (Index term = work.first - DEPTH; term < work.last; term += DEPTH) {
        bool filled = term >= work.first, more = term + DEPTH < work.last;
        if (more) {
            from_a.load_chunks(a_chunks);
            from_b.load_chunks(b_chunks);
        }
        const Acc* a_tile = a_tiles + now * ShapeA::SIZE + thread_row;
        const Acc* b_tile = b_tiles + now * ShapeB::SIZE + thread_column;
        UNROLL_BY(TURNS)
        for (int k = 0; k < DEPTH && filled; k += CHUNK) {
            UNROLL
            for (int v = 0; v < CHUNK; ++v) {
                Acc left[ROWS], right[COLUMNS];
                load_line<ROWS, TILE_ROWS>(left, a_tile + ShapeA::line(k + v));
                load_line<COLUMNS, TILE_COLUMNS>(right, b_tile + ShapeB::line(k + v));
                UNROLL
                for (int i = 0; i < ROWS; ++i) {
                    UNROLL
                    for (int j = 0; j < COLUMNS; ++j) sums[i][j] = fused(left[i], right[j], sums[i][j]);
                }
            }
        }
        now ^= 1;
        if (more) {
            store_chunks<FromA, TILE_ROWS>(a_tiles + now * ShapeA::SIZE, a_chunks);
            store_chunks<FromB, TILE_COLUMNS>(b_tiles + now * ShapeB::SIZE, b_chunks);
        }
        // The next step's tiles are there, and no thread reads this step's any more.
        barrier();
    }
    UNROLL
    for (int i = 0; i < ROWS; ++i) {
        Index row = work.row + i / CHUNK * DOWN + thread_row + i % CHUNK;
        Line line = target.row(row);
        UNROLL
        for (int j = 0; j < COLUMNS; j += CHUNK) {
            Index column = work.column + j / CHUNK * ACROSS + thread_column;
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

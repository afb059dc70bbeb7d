// What MMA, the tensor cores' instruction, takes of two factors and gives to the sums, lane by lane. It multiplies
// 16 rows by 8 columns. With g = lane / 4 and t = lane % 4, a lane gives operands of rows g and g + 8 and of column
// g, all of terms that depend on t, and has the sums of these two rows in columns 2t and 2t + 1.
//
// A format says where a tile's chunks lie in shared memory, which of them a lane loads, and where the sums of a
// warp's tile are: `row` and `run`, a run of NEIGHBOURS of a lane, of which `piece` and `element` find each.
#pragma once
#include "element.cuh"

SWITCHES(MMA)

DEVICE int lane_row() { return (int)threadIdx.x % 32 / 4; }
DEVICE int lane_term() { return (int)threadIdx.x % 4; }

// Elements of 16 bits: an operand has two of them, neighbours in k, and MMA takes 16 terms.
struct Halves {
    typedef ELEMENT Element;
    // Neighbours that are moved together, terms of a step and of what a lane loads at a time.
    static constexpr int CHUNK = 8, DEPTH = 32, TERMS = 16;
    typedef Pack<Element, CHUNK> Chunk;

    // Where a tile's chunk lies, so that the eight rows of a matrix that load_matrices takes in one go, and the
    // chunks that a warp stores, are in different banks, and elements that it stores one by one, eight or sixteen along
    // each of some lines. That changes neither in so many lines, nor with them.
    static constexpr int ALIKE_LINES = 8;
    template <bool ALONG_K, int TILE> static DEVICE int place(int line, int chunk) {
        if (ALONG_K) return line * (DEPTH / CHUNK) + (chunk ^ (line >> 1 & 3));
        return line * (TILE / CHUNK) + (chunk ^ (line << 1 & 6) ^ (line >> 2 & 1));
    }

    // A factor's SIZE rows, or columns, of a warp, by pieces of 16×16 as four matrices, ordered as MMA takes them:
    // rows 0-7 and 8-15, then the next eight terms; or, COLUMNS, terms first. What a lane reads is at the same
    // distance from piece to piece along the lines, and another for each across them.
    template <bool ALONG_K, int TILE, int SIZE, bool COLUMNS> struct Factor {
        typedef u32 Operands[SIZE / 16][4];
        static constexpr int ACROSS = ALONG_K ? DEPTH / 16 : SIZE / 16;
        static constexpr int APART = 16 * ((ALONG_K ? DEPTH : TILE) / CHUNK);
        const Chunk* first[ACROSS];
        DEVICE Factor(const Chunk* tiles, int row) {
            int lane = (int)threadIdx.x % 32, in = lane % 8, low = lane / 8 % 2, high = lane / 16;
            int r = COLUMNS ? high : low, k = COLUMNS ? low : high;
            UNROLL
            for (int i = 0; i < ACROSS; ++i) {
                first[i] = tiles + (ALONG_K ? place<true, TILE>(row + 8 * r + in, 2 * i + k)
                                            : place<false, TILE>(8 * k + in, row / 8 + 2 * i + r));
                keep_shared(first[i]);
            }
        }
        // Those of the tile's terms `part` times TERMS and on.
        DEVICE void load(Operands& to, int tile, int part) const {
            UNROLL
            for (int i = 0; i < SIZE / 16; ++i) {
                if constexpr (ALONG_K) load_matrices(to[i], first[part] + (tile + i * APART));
                else load_matrices_transposed(to[i], first[i] + (tile + part * APART));
            }
        }
    };

    template <int ROWS, int COLUMNS>
    static DEVICE void multiply(f32 (&sums)[ROWS][COLUMNS][4], const u32 (&left)[ROWS][4],
                                const u32 (&right)[COLUMNS / 2][4]) {
        UNROLL
        for (int i = 0; i < ROWS; ++i) {
            UNROLL
            for (int j = 0; j < COLUMNS; ++j) {
                u32 column[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
                MMA(sums[i][j], left[i], column);
            }
        }
    }

    static constexpr int NEIGHBOURS = 2;
    static DEVICE int row(int piece, int half) { return 16 * piece + 8 * half + lane_row(); }
    static DEVICE int column(int run) { return 8 * run + 2 * lane_term(); }
    static DEVICE constexpr int piece(int run, int) { return run; }
    static DEVICE constexpr int element(int, int v) { return v; }
};

// Operands of f64, and of f32 rounded to TF32: MMA takes eight terms, t and t + 4 of each lane.
DEVICE f64 operand(f64 value) { return value; }
#if __CUDA_ARCH__ >= 800
DEVICE u32 operand(f32 value) { return to_tf32(value); }
#endif

// Elements of 32 or 64 bits. In what order MMA takes rows, columns and terms is of no account, so a lane has CHUNK
// neighbours of each, as many as it can load at a time, along k or across.
template <typename T> struct Squares {
    typedef T Element;
    typedef decltype(operand(Element())) Operand;
    static constexpr int CHUNK = 16 / sizeof(Element), DEPTH = 4 * CHUNK, TERMS = DEPTH;
    typedef Pack<Element, CHUNK> Chunk;

    // Which neighbours of eight times as many are a lane's, so that sums of four lanes are neighbours too.
    static DEVICE int neighbours(int g) { return g / 2 + g % 2 * 4; }

    // Eight lanes, of two g, load at a time. Their chunks are in different banks.
    static constexpr int ALIKE_LINES = 8 * CHUNK;
    template <bool ALONG_K, int TILE> static DEVICE int place(int line, int chunk) {
        if (ALONG_K) return (line ^ (line / (4 * CHUNK) & 1)) * 4 + chunk;
        return line * (TILE / CHUNK) + (chunk ^ (line / CHUNK & 3));
    }

    template <bool ALONG_K, int TILE, int SIZE, bool> struct Factor {
        typedef Element Operands[SIZE / (8 * CHUNK)][CHUNK][CHUNK];
        // Along k, lines that are two apart are at the same distance.
        static constexpr int FIRST = ALONG_K ? 2 : 1;
        const Chunk* first[FIRST];
        DEVICE Factor(const Chunk* tiles, int row) {
            row += neighbours(lane_row()) * CHUNK;
            UNROLL
            for (int i = 0; i < FIRST; ++i) {
                first[i] = tiles + (ALONG_K ? place<true, TILE>(row + i, lane_term())
                                            : place<false, TILE>(lane_term() * CHUNK, row / CHUNK));
                keep_shared(first[i]);
            }
        }
        DEVICE void load(Operands& to, int tile, int) const {
            UNROLL
            for (int group = 0; group < SIZE / (8 * CHUNK); ++group) {
                UNROLL
                for (int i = 0; i < CHUNK; ++i) {
                    int line = ALONG_K ? (group * 8 * CHUNK + i / 2 * 2) * 4 : i * (TILE / CHUNK) + group * 8;
                    Chunk chunk = load_pack<Element, CHUNK>((first[i % FIRST] + (tile + line))->at);
                    UNROLL
                    for (int v = 0; v < CHUNK; ++v) to[group][ALONG_K ? i : v][ALONG_K ? v : i] = chunk.at[v];
                }
            }
        }
    };

    template <int ROWS, int COLUMNS>
    static DEVICE void multiply(Element (&sums)[ROWS][COLUMNS][4],
                                const Element (&left)[2 * ROWS / CHUNK][CHUNK][CHUNK],
                                const Element (&right)[COLUMNS / CHUNK][CHUNK][CHUNK]) {
        UNROLL
        for (int k = 0; k < CHUNK; k += 2) {
            UNROLL
            for (int i = 0; i < ROWS; ++i) {
                const Element(&rows)[CHUNK][CHUNK] = left[2 * i / CHUNK];
                const Element(&low)[CHUNK] = rows[2 * i % CHUNK], (&high)[CHUNK] = rows[2 * i % CHUNK + 1];
                Operand a[4] = {operand(low[k]), operand(high[k]), operand(low[k + 1]), operand(high[k + 1])};
                UNROLL
                for (int j = 0; j < COLUMNS; ++j) {
                    const Element(&column)[CHUNK] = right[j / CHUNK][j % CHUNK];
                    Operand b[2] = {operand(column[k]), operand(column[k + 1])};
                    MMA(sums[i][j], a, b);
                }
            }
        }
    }

    static constexpr int NEIGHBOURS = CHUNK;
    static DEVICE int row(int piece, int half) {
        int first = 2 * piece + half;
        return first / CHUNK * (8 * CHUNK) + neighbours(lane_row()) * CHUNK + first % CHUNK;
    }
    static DEVICE int column(int run) { return (4 * run + lane_term()) * CHUNK; }
    static DEVICE constexpr int piece(int run, int v) { return run / 2 * CHUNK + v; }
    static DEVICE constexpr int element(int run, int) { return run % 2; }
};

template <bool HALVES> struct FormatOf {
    typedef Squares<Acc> type;
};
template <> struct FormatOf<true> {
    typedef Halves type;
};
typedef FormatOf<sizeof(ELEMENT) == 2 && sizeof(Acc) == 4>::type Format;

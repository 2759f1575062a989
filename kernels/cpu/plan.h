// The plan image: all that a call needs of a plan, in one block of memory that Python makes
// (sparsebert/backends/native_pack.py) and the kernels read in place.
//
// It begins with an ImageHeader, then one HeadHeader for each distinct head, then `head_map`
// (int32 [heads]: the distinct head of each head that runs), `heads` (int32 [heads]: which heads
// of the call these are; absent if all), then the arrays. Offsets count bytes from the beginning
// of the image; arrays begin at multiples of 64.
#pragma once
#include <cstdint>

namespace sb {

constexpr int GROUP = 16;  // rows of a group
constexpr int64_t IMAGE_MAGIC = 0x31706d4962537053;

struct ImageHeader {
  int64_t magic;
  int64_t version;   // SPARSEBERT_CPU_VERSION
  int64_t bytes;     // of the whole image
  int64_t rows;      // N
  int64_t columns;   // M
  int64_t distinct;  // distinct heads
  int64_t heads;     // heads that run; 0: all heads of the call share distinct head 0
  int64_t head_map;  // offset of int32 [heads]
  int64_t listed;    // offset of int32 [heads], ascending heads of the call; 0: all of them
};

// Groups of up to 16 rows. A group has one tile, columns that many of its rows share, and for each
// row single entries, columns of its own. Every row of the mask is in a group. A row of several
// groups has a partial result from each, in slots, which are merged.
struct HeadHeader {
  int64_t groups;       // G
  int64_t rows;         // offset of int32 [G, 16]: the rows, -1 for none (at the end)
  int64_t tile_start;   // int32 [G + 1], into tile_cols and tile_words
  int64_t tile_cols;    // int32
  int64_t tile_words;   // uint16: bit r = row r of the group attends to the column
  int64_t entry_start;  // int32 [G * 16 + 1], into entry_cols
  int64_t entry_cols;   // int32
  int64_t slot;    // int32 [G]: first slot of the group's 16, -1: its rows are in no other group
  int64_t slots;   // number of slots, a multiple of 16
  int64_t merged;  // rows that several groups have
  int64_t merged_rows;   // int32 [merged]
  int64_t merged_start;  // int32 [merged + 1], into merged_slots
  int64_t merged_slots;  // int32
  int64_t cost;   // int64 [G + 1]: cost of the groups before each, about cycles; sum at the end
  int64_t loads;  // reads of k and v rows: columns of tiles and single entries
};

}  // namespace sb

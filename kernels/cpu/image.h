// Reading a plan image: what it says is checked against its size, and the call. For the driver
// alone.
#pragma once
#include <vector>

#include "abi.h"
#include "kernels.h"

namespace sb {
namespace {

// A plan image, read.
struct Plan {
  const ImageHeader* header;
  const HeadHeader* distinct;
  std::vector<HeadPlan> heads;  // distinct ones
  const int32_t *head_map, *listed;
  int64_t count;  // heads that run

  int64_t head(int64_t i) const { return listed ? listed[i] : i; }
  const HeadPlan& plan(int64_t i) const { return heads[head_map ? head_map[i] : 0]; }
};

// Whether all of a head's arrays lie in the image; of what stands in them only the ends are read.
bool is_inside(const char* base, int64_t bytes, const HeadHeader& h) {
  auto holds = [&](int64_t offset, int64_t count, int64_t size) {
    return offset >= 0 && offset <= bytes && offset % 64 == 0 && count >= 0 &&
           count <= (bytes - offset) / size;
  };
  auto last = [&](int64_t offset, int64_t at) { return ((const int32_t*)(base + offset))[at]; };
  if (!holds(h.rows, h.groups, GROUP * 4) || !holds(h.tile_start, h.groups + 1, 4) ||
      !holds(h.entry_start, h.groups * GROUP + 1, 4) || !holds(h.slot, h.groups, 4) ||
      !holds(h.cost, h.groups + 1, 8) || h.slots < 0 || h.slots > h.groups * GROUP ||
      !holds(h.merged_rows, h.merged, 4) || !holds(h.merged_start, h.merged + 1, 4))
    return false;
  const int64_t columns = last(h.tile_start, h.groups);
  return holds(h.tile_cols, columns, 4) && holds(h.tile_words, columns, 2) &&
         holds(h.entry_cols, last(h.entry_start, h.groups * GROUP), 4) &&
         holds(h.merged_slots, last(h.merged_start, h.merged), 4) &&
         ((const int64_t*)(base + h.cost))[h.groups] >= 0;
}

int64_t read_plan(const SbCall& c, Plan& p) {
  const char* base = (const char*)c.plan;
  p.header = (const ImageHeader*)base;
  if (!base || c.plan_bytes < (int64_t)sizeof(ImageHeader)) return SB_WRONG_PLAN;
  const ImageHeader& h = *p.header;
  if (h.magic != IMAGE_MAGIC || h.version != SPARSEBERT_CPU_VERSION || h.bytes != c.plan_bytes ||
      h.rows != c.N || h.columns != c.M)
    return SB_WRONG_PLAN;
  const int64_t left = h.bytes - (int64_t)sizeof(ImageHeader);
  if (h.distinct < 1 || h.distinct > left / (int64_t)sizeof(HeadHeader)) return SB_WRONG_PLAN;
  p.count = h.heads ? h.heads : c.H;
  if (p.count < 1 || p.count > c.H || (!h.listed && p.count != c.H)) return SB_WRONG_PLAN;
  auto is_array = [&](int64_t offset) {
    return offset >= 0 && offset % 64 == 0 && offset <= h.bytes && p.count * 4 <= h.bytes - offset;
  };
  if ((h.heads && !is_array(h.head_map)) || (h.listed && !is_array(h.listed)))
    return SB_WRONG_PLAN;
  p.distinct = (const HeadHeader*)(base + sizeof(ImageHeader));
  p.head_map = h.heads ? (const int32_t*)(base + h.head_map) : nullptr;
  p.listed = h.listed ? (const int32_t*)(base + h.listed) : nullptr;
  for (int64_t i = 0; i < p.count; i++) {
    if (p.head_map && (p.head_map[i] < 0 || p.head_map[i] >= h.distinct)) return SB_WRONG_PLAN;
    if (p.head(i) < (i ? p.head(i - 1) + 1 : 0) || p.head(i) >= c.H) return SB_WRONG_PLAN;
  }
  for (int64_t u = 0; u < h.distinct; u++) {
    const HeadHeader& d = p.distinct[u];
    if (!is_inside(base, h.bytes, d)) return SB_WRONG_PLAN;
    auto at = [&](int64_t offset) { return (const int32_t*)(base + offset); };
    p.heads.push_back({d.groups, at(d.rows), at(d.tile_start), at(d.tile_cols),
                       (const uint16_t*)(base + d.tile_words), at(d.entry_start), at(d.entry_cols),
                       at(d.slot), d.slots, d.merged, at(d.merged_rows), at(d.merged_start),
                       at(d.merged_slots), (const int64_t*)(base + d.cost), d.loads});
  }
  return SB_OK;
}

}  // namespace
}  // namespace sb

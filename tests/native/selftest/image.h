// Plan images of masks, cut into groups at random: every way in which a plan may say the same.
#pragma once
#include <algorithm>
#include <map>

#include "plan.h"
#include "tensors.h"

namespace selftest {

struct Mask {
  int64_t N, M;
  std::vector<char> bits;
  char& at(int64_t i, int64_t j) { return bits[(size_t)(i * M + j)]; }
  char at(int64_t i, int64_t j) const { return bits[(size_t)(i * M + j)]; }
};

class Image {
 public:
  explicit Image(const std::vector<char>& bytes) : bytes_(bytes) {}
  sb::ImageHeader* header() { return (sb::ImageHeader*)bytes_.data(); }
  sb::HeadHeader* head(int64_t u) { return (sb::HeadHeader*)(header() + 1) + u; }
  int32_t* numbers(int64_t offset) { return (int32_t*)(bytes_.data() + offset); }
  const void* data() const { return bytes_.data(); }
  int64_t bytes() const { return (int64_t)bytes_.size(); }

 private:
  std::vector<char> bytes_;
};

namespace detail {

// Rows that stand together, and for each the columns that it attends to here.
struct Part {
  std::vector<int32_t> rows;
  std::vector<std::vector<int32_t>> cols;
};

// Every row in a group, some rows in several, each column of a row in one of its groups.
inline std::vector<Part> cut(const Mask& mask, Random& random) {
  const int64_t passes = random.chance(0.6) ? 1 : random.between(2, 3);
  const double share = random.uniform(), full = random.uniform();
  std::vector<std::vector<int64_t>> passes_of((size_t)mask.N);
  std::vector<Part> parts;
  std::vector<std::vector<std::vector<int32_t>>> cols((size_t)passes);
  for (int64_t i = 0; i < mask.N; i++) {
    for (int64_t p = 0; p < passes; p++)
      if (p == 0 || random.chance(share)) passes_of[(size_t)i].push_back(p);
  }
  for (auto& of : cols) of.resize((size_t)mask.N);
  for (int64_t i = 0; i < mask.N; i++) {
    const auto& own = passes_of[(size_t)i];
    for (int64_t j = 0; j < mask.M; j++)
      if (mask.at(i, j))
        cols[(size_t)own[(size_t)random.below((int64_t)own.size())]][(size_t)i].push_back(
            (int32_t)j);
  }
  for (int64_t p = 0; p < passes; p++) {
    std::vector<int32_t> rows;
    for (int64_t i = 0; i < mask.N; i++) {
      const auto& own = passes_of[(size_t)i];
      if (std::find(own.begin(), own.end(), p) != own.end()) rows.push_back((int32_t)i);
    }
    if (random.chance(0.5)) random.shuffle(rows);
    for (size_t at = 0; at < rows.size();) {
      const size_t height = random.chance(full) ? 16 : (size_t)random.between(1, 16);
      Part part;
      for (size_t r = at; r < std::min(rows.size(), at + height); r++) {
        part.rows.push_back(rows[r]);
        part.cols.push_back(cols[(size_t)p][(size_t)rows[r]]);
      }
      at += height;
      parts.push_back(part);
    }
  }
  if (random.chance(0.5)) random.shuffle(parts);
  return parts;
}

class Writer {
 public:
  explicit Writer(int64_t distinct)
      : image_(round(sizeof(sb::ImageHeader) + (size_t)distinct * sizeof(sb::HeadHeader)), 0) {}
  template <class T>
  int64_t add(const std::vector<T>& array) {
    const size_t at = image_.size();
    image_.resize(round(at + array.size() * sizeof(T)), 0);
    if (!array.empty()) memcpy(image_.data() + at, array.data(), array.size() * sizeof(T));
    return (int64_t)at;
  }
  void put(size_t at, const void* what, size_t bytes) { memcpy(image_.data() + at, what, bytes); }
  const std::vector<char>& image() const { return image_; }

 private:
  static size_t round(size_t bytes) { return (bytes + 63) / 64 * 64; }
  std::vector<char> image_;
};

inline sb::HeadHeader write_head(Writer& writer, const Mask& mask, Random& random) {
  const std::vector<Part> parts = cut(mask, random);
  const double tiles = random.chance(0.4) ? (double)random.below(2) : random.uniform();
  std::vector<int32_t> rows, tile_start{0}, tile_cols, entry_start{0}, entry_cols, slot;
  std::vector<uint16_t> tile_words;
  std::vector<int64_t> cost{0};
  std::vector<int> groups_of((size_t)mask.N, 0);
  for (const Part& part : parts)
    for (int32_t row : part.rows) groups_of[(size_t)row]++;
  int32_t slots = 0;
  std::map<int32_t, std::vector<int32_t>> merged;
  for (const Part& part : parts) {
    const double share = random.chance(0.5) ? tiles : (double)random.below(2);
    std::map<int32_t, uint16_t> tile;
    bool shared = false;
    for (size_t r = 0; r < sb::GROUP; r++) {
      if (r < part.rows.size()) {
        shared = shared || groups_of[(size_t)part.rows[r]] > 1;
        for (int32_t col : part.cols[r])
          if (random.chance(share))
            tile[col] = (uint16_t)(tile[col] | 1u << r);
          else
            entry_cols.push_back(col);
      }
      rows.push_back(r < part.rows.size() ? part.rows[r] : -1);
      entry_start.push_back((int32_t)entry_cols.size());
    }
    std::vector<std::pair<int32_t, uint16_t>> columns(tile.begin(), tile.end());
    if (random.chance(0.3)) random.shuffle(columns);
    for (auto& [col, word] : columns) tile_cols.push_back(col), tile_words.push_back(word);
    tile_start.push_back((int32_t)tile_cols.size());
    cost.push_back(cost.back() + (random.chance(0.1) ? 0 : random.between(1, 1000)));
    slot.push_back(shared ? slots : -1);
    if (!shared) continue;
    for (size_t r = 0; r < part.rows.size(); r++)
      merged[part.rows[r]].push_back(slots + (int32_t)r);
    slots += sb::GROUP;
  }
  std::vector<int32_t> merged_rows, merged_start{0}, merged_slots;
  for (auto& [row, from] : merged) {
    merged_rows.push_back(row);
    merged_slots.insert(merged_slots.end(), from.begin(), from.end());
    merged_start.push_back((int32_t)merged_slots.size());
  }
  sb::HeadHeader head{};
  head.groups = (int64_t)parts.size();
  head.rows = writer.add(rows);
  head.tile_start = writer.add(tile_start);
  head.tile_cols = writer.add(tile_cols);
  head.tile_words = writer.add(tile_words);
  head.entry_start = writer.add(entry_start);
  head.entry_cols = writer.add(entry_cols);
  head.slot = writer.add(slot);
  head.slots = slots;
  head.merged = (int64_t)merged_rows.size();
  head.merged_rows = writer.add(merged_rows);
  head.merged_start = writer.add(merged_start);
  head.merged_slots = writer.add(merged_slots);
  head.cost = writer.add(cost);
  head.loads = (int64_t)(tile_cols.size() + entry_cols.size());
  return head;
}

}  // namespace detail

// The image of some heads: head_map empty if all heads of the call have the one mask, `listed`
// empty if all heads run.
inline Image make_image(const std::vector<Mask>& masks, const std::vector<int32_t>& head_map,
                        const std::vector<int32_t>& listed, Random& random) {
  detail::Writer writer((int64_t)masks.size());
  sb::ImageHeader header{};
  header.magic = sb::IMAGE_MAGIC;
  header.version = SPARSEBERT_CPU_VERSION;
  header.rows = masks[0].N;
  header.columns = masks[0].M;
  header.distinct = (int64_t)masks.size();
  header.heads = (int64_t)head_map.size();
  header.head_map = head_map.empty() ? 0 : writer.add(head_map);
  header.listed = listed.empty() ? 0 : writer.add(listed);
  for (size_t u = 0; u < masks.size(); u++) {
    const sb::HeadHeader head = detail::write_head(writer, masks[u], random);
    writer.put(sizeof(header) + u * sizeof(head), &head, sizeof(head));
  }
  header.bytes = (int64_t)writer.image().size();
  writer.put(0, &header, sizeof(header));
  return Image(writer.image());
}

}  // namespace selftest

// The whole header is checked in the constructor, in this order: lengths, JSON and duplicate names,
// each entry's types, ranges and sizes, and last that the tensors tile the data part without
// overlap, hole or rest. Everything after that may trust entries_.
#include "core/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <unordered_set>

#include "core/output_file.h"
#include "core/text.h"

namespace longnet {
namespace {

using Json = nlohmann::json;

/// What follows "[json.exception.parse_error.101] " in the library's text.
std::string_view reason_of(const Json::exception& e) {
  std::string_view text = e.what();
  if (const size_t end = text.find("] "); end != text.npos) text.remove_prefix(end + 2);
  return text;
}

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr int64_t kWriteChunkBytes = 16 << 20;
constexpr const char* kMetadataKey = "__metadata__";

/// Bytes of one element; 0: no such type.
int64_t dtype_bytes(const std::string& dtype) {
  for (const char* name : {"BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"})
    if (dtype == name) return 1;
  for (const char* name : {"U16", "I16", "F16", "BF16"})
    if (dtype == name) return 2;
  for (const char* name : {"U32", "I32", "F32"})
    if (dtype == name) return 4;
  for (const char* name : {"U64", "I64", "F64"})
    if (dtype == name) return 8;
  return 0;
}

/// Product of the extents; false if it does not fit. Extents are not negative.
bool multiply_extents(const std::vector<int64_t>& shape, int64_t* product) {
  *product = 1;
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) {
    *product = 0;
    return true;
  }
  for (int64_t extent : shape)
    if (__builtin_mul_overflow(*product, extent, product)) return false;
  return true;
}

/// A whole number in [0, 2^63).
bool read_count(const Json& value, int64_t* count) {
  if (!value.is_number_unsigned()) return false;  // nlohmann calls 5 unsigned, -5 and 5.0 not
  const uint64_t number = value.get<uint64_t>();
  if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return false;
  *count = static_cast<int64_t>(number);
  return true;
}

/// Reads the header in one pass and hands over each value of the outer object as soon as it is
/// whole, so that time and memory stay linear in the number of tensors. Refuses double names and
/// depth.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  using Use = std::function<void(const std::string& name, const Json& value)>;
  HeaderReader(const std::string& path, Use use) : path_(path), use_(std::move(use)) {}

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(value); }
  bool binary(binary_t&) override { return false; }  // JSON text has none
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (levels_.size() == 1 ? !names_.insert(name).second : levels_.back().value.contains(name))
      throw Error("{}: {} occurs twice in the header", path_, in_quotes(name));
    levels_.back().key = name;
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
    throw Error("{}: the header is not valid JSON ({})", path_, one_line(reason_of(e), 160));
  }

 private:
  struct Level {
    Json value;
    std::string key;  // of the member that comes next
  };
  const std::string& path_;
  Use use_;
  std::unordered_set<std::string> names_;  // of the outer object
  std::vector<Level> levels_;              // of the objects and lists that are open

  bool add(Json value) {
    Level& level = levels_.back();
    if (levels_.size() == 1)
      use_(level.key, value);
    else if (level.value.is_array())
      level.value.push_back(std::move(value));
    else
      level.value[level.key] = std::move(value);
    return true;
  }
  bool open(Json value) {
    if (levels_.size() == 3)  // the outer object, a tensor, its extents
      throw Error("{}: the header is nested too deeply; the file is damaged", path_);
    levels_.push_back({std::move(value), ""});
    return true;
  }
  bool close() {
    Json value = std::move(levels_.back().value);
    levels_.pop_back();
    return levels_.empty() || add(std::move(value));
  }
};

void parse_header(const std::string& path, const std::string& text, const HeaderReader::Use& use) {
  if (text.empty() || text[0] != '{')
    throw Error("{}: the header does not begin with '{{'; this is no .safetensors file", path);
  // nlohmann takes a zero byte for the end of the text.
  if (text.find('\0') != std::string::npos)
    throw Error("{}: the header holds a zero byte; the file is damaged", path);
  HeaderReader reader(path, use);
  Json::sax_parse(text, &reader);
}

std::map<std::string, std::string> read_metadata(const std::string& path, const Json& object) {
  if (!object.is_object())
    throw Error("{}: {} is {}, not an object", path, kMetadataKey, object.type_name());
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : object.items()) {
    if (!value.is_string())
      throw Error("{}: {} {} is {}, not a string", path, kMetadataKey, in_quotes(key),
                  value.type_name());
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

SafetensorsEntry read_entry(const std::string& where, const Json& object, int64_t data_bytes) {
  if (!object.is_object()) throw Error("{} is {}, not an object", where, object.type_name());
  for (const auto& [key, value] : object.items())
    if (key != "dtype" && key != "shape" && key != "data_offsets")
      throw Error("{} has the unknown field {}; allowed: dtype, shape, data_offsets", where,
                  in_quotes(key));
  for (const char* key : {"dtype", "shape", "data_offsets"})
    if (!object.contains(key)) throw Error("{} has no {}", where, key);

  SafetensorsEntry entry;
  const Json& dtype = object["dtype"];
  if (!dtype.is_string()) throw Error("{}: dtype is {}, not a string", where, dtype.type_name());
  entry.dtype = dtype.get<std::string>();
  const int64_t element_bytes = dtype_bytes(entry.dtype);
  if (element_bytes == 0) throw Error("{}: unknown dtype {}", where, in_quotes(entry.dtype));

  const Json& shape = object["shape"];
  if (!shape.is_array()) throw Error("{}: shape is {}, not a list", where, shape.type_name());
  for (const Json& extent : shape) {
    int64_t count = 0;
    if (!read_count(extent, &count))
      throw Error("{}: shape holds {}, not a count", where, one_line(extent.dump(), 40));
    entry.shape.push_back(count);
  }

  const Json& offsets = object["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !read_count(offsets[0], &entry.begin) ||
      !read_count(offsets[1], &entry.end))
    throw Error("{}: data_offsets is {}, not two byte counts", where, one_line(offsets.dump(), 60));
  if (entry.begin > entry.end)
    throw Error("{}: begins at byte {}, after its end {}", where, entry.begin, entry.end);
  if (entry.end > data_bytes)
    throw Error("{}: ends at byte {}, but the file holds {} bytes of data; it is cut off", where,
                entry.end, data_bytes);

  int64_t bytes = 0;
  if (!multiply_extents(entry.shape, &bytes) ||
      __builtin_mul_overflow(bytes, element_bytes, &bytes))
    throw Error("{}: the shape's product is too large", where);
  if (bytes != entry.end - entry.begin)
    throw Error("{}: {} of its shape takes {} bytes, but it spans {}", where, entry.dtype, bytes,
                entry.end - entry.begin);
  return entry;
}

/// The tensors, in the order of their bytes, cover [0, data_bytes) exactly once.
void check_tiling(const std::string& path, const std::map<std::string, SafetensorsEntry>& entries,
                  int64_t data_bytes) {
  std::vector<const std::pair<const std::string, SafetensorsEntry>*> order;
  for (const auto& item : entries) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  int64_t covered = 0;
  for (const auto* item : order) {
    const SafetensorsEntry& entry = item->second;
    if (entry.begin < covered)
      throw Error("{}: tensor {} begins at byte {}, inside the one before it, which ends at {}",
                  path, in_quotes(item->first), entry.begin, covered);
    if (entry.begin > covered)
      throw Error("{}: bytes {} to {} before tensor {} belong to no tensor", path, covered,
                  entry.begin, in_quotes(item->first));
    covered = entry.end;
  }
  if (covered != data_bytes)
    throw Error("{}: {} bytes after the last tensor belong to no tensor", path,
                data_bytes - covered);
}

float float_from_bf16(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

float float_from_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1Fu;
  const uint32_t fraction = bits & 0x3FFu;
  if (exponent == 0) {  // zero and subnormal: fraction 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t word = sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | (fraction << 13);
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

/// Reads n elements of type From at any alignment.
template <typename From, typename To, typename Convert>
void convert(const void* data, std::vector<To>* out, Convert one) {
  const char* source = static_cast<const char*>(data);
  for (size_t i = 0; i < out->size(); ++i) {
    From value;
    std::memcpy(&value, source + i * sizeof(From), sizeof(From));
    (*out)[i] = one(value);
  }
}

const char* safetensors_dtype(DType dtype) {
  return dtype == DType::kF32 ? "F32" : dtype == DType::kBF16 ? "BF16" : "I64";
}

}  // namespace

int64_t SafetensorsEntry::elements() const {
  int64_t product = 0;
  LN_CHECK(multiply_extents(shape, &product), "shape product overflows");
  return product;
}

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(path) {
  if (file_.size() < kLengthBytes)
    throw Error("{}: holds {} bytes; a .safetensors file has at least {}", path, file_.size(),
                kLengthBytes);
  uint64_t header_bytes = 0;
  file_.read(0, &header_bytes, kLengthBytes);
  const int64_t rest = file_.size() - kLengthBytes;
  if (header_bytes > static_cast<uint64_t>(kMaxHeaderBytes))
    throw Error("{}: the header claims {} bytes, allowed are {}; this is no .safetensors file",
                path, header_bytes, kMaxHeaderBytes);
  if (header_bytes > static_cast<uint64_t>(rest))
    throw Error("{}: the header claims {} bytes, but the file ends after {}; it is cut off", path,
                header_bytes, rest);
  std::string header(static_cast<size_t>(header_bytes), '\0');
  file_.read(kLengthBytes, header.data(), static_cast<int64_t>(header_bytes));
  data_begin_ = kLengthBytes + static_cast<int64_t>(header_bytes);
  const int64_t data_bytes = file_.size() - data_begin_;
  parse_header(path, header, [&](const std::string& name, const Json& value) {
    if (name == kMetadataKey)
      metadata_ = read_metadata(path, value);
    else
      entries_[name] =
          read_entry(fmt::format("{}: tensor {}", path, in_quotes(name)), value, data_bytes);
  });
  check_tiling(path, entries_, data_bytes);
}

const SafetensorsEntry& SafetensorsFile::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found != entries_.end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [other, unused] : entries_) names.push_back(other);
  const std::string near = nearest(name, names);
  throw Error("{}: has no tensor {}{}", path(), in_quotes(name),
              near.empty() ? "" : fmt::format("; nearest: {}", in_quotes(near)));
}

void SafetensorsFile::read(const std::string& name, int64_t begin, void* to, int64_t bytes) const {
  const SafetensorsEntry& e = entry(name);
  LN_CHECK(begin >= 0 && bytes >= 0 && begin <= e.end - e.begin - bytes, "{} bytes [{}, {}) of {}",
           in_quotes(name), begin, begin + bytes, e.end - e.begin);
  file_.read(data_begin_ + e.begin + begin, to, bytes);
}

std::vector<float> SafetensorsFile::floats(const std::string& name) const {
  return floats(name, 0, entry(name).elements());
}

std::vector<float> SafetensorsFile::floats(const std::string& name, int64_t begin,
                                           int64_t count) const {
  const SafetensorsEntry& e = entry(name);
  LN_CHECK(begin >= 0 && count >= 0 && begin <= e.elements() - count, "{} [{}, {}) of {}",
           in_quotes(name), begin, begin + count, e.elements());
  const int64_t size = dtype_bytes(e.dtype);
  std::vector<float> values(static_cast<size_t>(count));
  std::vector<char> raw(e.dtype == "F32" ? 0 : static_cast<size_t>(count * size));
  const void* bytes = raw.data();
  read(name, begin * size, e.dtype == "F32" ? static_cast<void*>(values.data()) : raw.data(),
       count * size);
  if (e.dtype == "F32") return values;
  if (e.dtype == "F64") {
    convert<double>(bytes, &values, [](double v) { return static_cast<float>(v); });
  } else if (e.dtype == "BF16") {
    convert<uint16_t>(bytes, &values, float_from_bf16);
  } else if (e.dtype == "F16") {
    convert<uint16_t>(bytes, &values, float_from_f16);
  } else {
    throw Error("{}: tensor {} is {}; wanted F32, F64, BF16 or F16", path(), in_quotes(name),
                e.dtype);
  }
  return values;
}

std::vector<int64_t> SafetensorsFile::integers(const std::string& name) const {
  const SafetensorsEntry& e = entry(name);
  std::vector<char> raw(static_cast<size_t>(e.end - e.begin));
  read(name, 0, raw.data(), e.end - e.begin);
  const void* bytes = raw.data();
  std::vector<int64_t> values(static_cast<size_t>(e.elements()));
  const auto widen = [](auto v) { return static_cast<int64_t>(v); };
  if (e.dtype == "I64") {
    convert<int64_t>(bytes, &values, widen);
  } else if (e.dtype == "I32") {
    convert<int32_t>(bytes, &values, widen);
  } else if (e.dtype == "U16") {
    convert<uint16_t>(bytes, &values, widen);
  } else if (e.dtype == "U8") {
    convert<uint8_t>(bytes, &values, widen);
  } else {
    throw Error("{}: tensor {} is {}; wanted I64, I32, U16 or U8", path(), in_quotes(name),
                e.dtype);
  }
  return values;
}

void write_safetensors(const std::string& path, const std::vector<SafetensorsTensor>& tensors,
                       const std::map<std::string, std::string>& metadata,
                       const std::function<void(const void*, int64_t)>& written) {
  // Member by member: an object of the library that keeps its order looks names up one by one.
  std::string text = "{";
  const auto add = [&](const std::string& name, const nlohmann::ordered_json& value) {
    if (text.size() > 1) text += ',';
    try {
      text += Json(name).dump() + ':' + value.dump();
    } catch (const Json::exception& e) {
      throw Error("{}: a name or the metadata is not UTF-8 ({})", path, one_line(reason_of(e)));
    }
  };
  if (!metadata.empty()) add(kMetadataKey, metadata);
  std::set<std::string> names;
  std::vector<int64_t> sizes;  // bytes of each tensor
  int64_t offset = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    LN_CHECK(tensor.name != kMetadataKey, "{} is no tensor name", kMetadataKey);
    LN_CHECK(names.insert(tensor.name).second, "tensor {} is given twice", in_quotes(tensor.name));
    for (int64_t extent : tensor.shape)
      LN_CHECK(extent >= 0, "tensor {} has the extent {}", in_quotes(tensor.name), extent);
    int64_t bytes = 0, end = 0;
    LN_CHECK(multiply_extents(tensor.shape, &bytes) &&
                 !__builtin_mul_overflow(bytes, dtype_size(tensor.dtype), &bytes) &&
                 !__builtin_add_overflow(offset, bytes, &end),
             "tensor {} is too large", in_quotes(tensor.name));
    LN_CHECK(bytes == 0 || tensor.data != nullptr || tensor.read, "tensor {} has no data",
             in_quotes(tensor.name));
    add(tensor.name, {{"dtype", safetensors_dtype(tensor.dtype)},
                      {"shape", tensor.shape},
                      {"data_offsets", {offset, end}}});
    sizes.push_back(bytes);
    offset = end;
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data begins at a multiple of 8
  LN_CHECK(static_cast<int64_t>(text.size()) <= kMaxHeaderBytes, "{}: a header of {} bytes", path,
           text.size());

  OutputFile file(path);
  if (written) file.set_observer(written);
  const uint64_t header_bytes = text.size();
  file.write(&header_bytes, kLengthBytes);
  file.write(text);
  std::vector<char> piece;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].data != nullptr) {
      file.write(tensors[i].data, sizes[i]);
      continue;
    }
    for (int64_t begin = 0; begin < sizes[i]; begin += kWriteChunkBytes) {
      piece.resize(static_cast<size_t>(std::min(kWriteChunkBytes, sizes[i] - begin)));
      tensors[i].read(begin, piece.data(), static_cast<int64_t>(piece.size()));
      file.write(piece.data(), static_cast<int64_t>(piece.size()));
    }
  }
  file.commit();
}

}  // namespace longnet

// See file_kind.h.
#include "data/file_kind.h"

#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "core/text.h"

namespace longnet {
namespace {

namespace fs = std::filesystem;
using namespace std::string_view_literals;

struct Magic {
  size_t offset;
  std::string_view bytes;
  const char *name, *remedy;
};

constexpr const char* kUnpack = "unpack it";
constexpr const char* kExtract = "extract its text into a file";
constexpr const char* kConvert = "convert it with: iconv -f UTF-16 -t UTF-8";
constexpr const char* kModel = "name the text or token file instead";

constexpr std::array kMagics{
    Magic{0, "PK\x03\x04"sv, "a zip archive", kUnpack},
    Magic{0, "PK\x05\x06"sv, "an empty zip archive", kUnpack},
    Magic{0, "\x1f\x8b"sv, "compressed by gzip, though its name does not end in .gz",
          "rename it to end in .gz"},
    Magic{0, "\x28\xb5\x2f\xfd"sv, "compressed by zstd", "unpack it with zstd -d"},
    Magic{0, "\xfd\x37zXZ\0"sv, "compressed by xz", "unpack it with xz -d"},
    Magic{0, "\x04\x22\x4d\x18"sv, "compressed by lz4", "unpack it with lz4 -d"},
    Magic{4, "1AY&SY"sv, "compressed by bzip2", "unpack it with bzip2 -d"},
    Magic{0, "7z\xbc\xaf\x27\x1c"sv, "a 7z archive", kUnpack},
    Magic{0, "Rar!\x1a\x07"sv, "a rar archive", kUnpack},
    Magic{257, "ustar"sv, "a tar archive", kUnpack},
    Magic{0, "\x89PNG\r\n\x1a\n"sv, "a PNG picture", kModel},
    Magic{0, "\xff\xd8\xff"sv, "a JPEG picture", kModel},
    Magic{0, "GIF87a"sv, "a GIF picture", kModel},
    Magic{0, "GIF89a"sv, "a GIF picture", kModel},
    Magic{0, "%PDF-"sv, "a PDF document", kExtract},
    Magic{0, "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"sv, "an Office document", kExtract},
    Magic{0,
          "\x7f"
          "ELF"sv,
          "a program (ELF)", kModel},
    Magic{0, "PAR1"sv, "a parquet table", kExtract},
    Magic{0, "ARROW1\0\0"sv, "an Arrow table", kExtract},
    Magic{0, "\x89HDF\r\n\x1a\n"sv, "an HDF5 file", kExtract},
    Magic{0, "SQLite format 3\0"sv, "an SQLite database", kExtract},
    Magic{0, "\x93NUMPY"sv, "a NumPy array",
          "write its tokens with .tofile() and set data.format=tokens_u16 or tokens_u32"},
    Magic{0, "MMIDIDX\0\0"sv, "a Megatron index", "name its .bin file with data.format=tokens_u16"},
    Magic{0, "GGUF"sv, "a model file (GGUF)", kModel},
    // llm.c's int32 magics: model, training state, tokenizer, evaluation.
    Magic{0, "\xc6\xd7\x34\x01"sv, "a model file of llm.c", kModel},
    Magic{0, "\xc7\xd7\x34\x01"sv, "a state file of llm.c", kModel},
    Magic{0, "\xc8\xd7\x34\x01"sv, "a tokenizer of llm.c", kModel},
    Magic{0, "\x8a\xd8\x34\x01"sv, "an evaluation file of llm.c", kModel},
    Magic{0, "\xff\xfe\0\0"sv, "UTF-32 text", "convert it with: iconv -f UTF-32 -t UTF-8"},
    Magic{0, "\0\0\xfe\xff"sv, "UTF-32 text", "convert it with: iconv -f UTF-32 -t UTF-8"},
    Magic{0, "\xff\xfe"sv, "UTF-16 text", kConvert},
    Magic{0, "\xfe\xff"sv, "UTF-16 text", kConvert},
};

/// u64 header length, then a JSON object: safetensors.
bool is_safetensors(std::string_view start) {
  uint64_t header = 0;
  if (start.size() < 10) return false;
  std::memcpy(&header, start.data(), sizeof header);
  return header >= 2 && header <= 100'000'000 && start.substr(8, 2) == "{\"";
}

/// Bits per byte of the bytes at offset, offset + stride, ...
double entropy(std::string_view bytes, size_t offset, size_t stride) {
  std::array<double, 256> counts{};
  double total = 0, bits = 0;
  for (size_t i = offset; i < bytes.size(); i += stride, ++total)
    ++counts[static_cast<unsigned char>(bytes[i])];
  for (const double count : counts)
    if (count > 0) bits -= count / total * std::log2(count / total);
  return bits;
}

double share_of_control_bytes(std::string_view bytes) {
  double count = 0;
  for (const unsigned char c : bytes)
    count += (c < 0x20 && !(c >= '\t' && c <= '\r') && c != 0x1b) || c == 0x7f;
  return count / static_cast<double>(bytes.size());
}

/// ASCII text in UTF-16 without a mark: every other byte is zero, the rest are printable.
bool is_utf16(std::string_view start) {
  if (start.size() < 16) return false;
  for (const size_t zero : {size_t{0}, size_t{1}}) {
    size_t zeros = 0, printable = 0, pairs = start.size() / 2;
    for (size_t i = 0; i < pairs; ++i) {
      const unsigned char text = static_cast<unsigned char>(start[2 * i + 1 - zero]);
      zeros += start[2 * i + zero] == 0;
      printable += (text >= 0x20 && text < 0x7f) || (text >= '\t' && text <= '\r');
    }
    if (zeros == pairs && printable == pairs) return true;
  }
  return false;
}

/// The high bytes of numbers say less than the low ones. Text in any encoding has next to no
/// control bytes; compressed, encrypted and random bytes have places that are all alike.
bool is_numbers(std::string_view start) {
  constexpr size_t kEnough = 4096;
  constexpr double kControl = 0.05, kBits = 1.0;  // text < 0.005; token files 2 to 6 bits
  if (start.size() < kEnough || share_of_control_bytes(start) < kControl) return false;
  double places[4];
  for (size_t place = 0; place < 4; ++place) places[place] = entropy(start, place, 4);
  const bool two = places[0] - places[1] > kBits && places[2] - places[3] > kBits;
  const bool four = places[0] > 4 && places[0] - places[2] > kBits && places[3] < 0.1;
  return two || four;
}

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

}  // namespace

ForeignKind recognise(std::string_view start) {
  for (const Magic& magic : kMagics)
    if (start.size() >= magic.offset + magic.bytes.size() &&
        start.substr(magic.offset, magic.bytes.size()) == magic.bytes)
      return {magic.name, magic.remedy};
  if (is_safetensors(start)) return {"a model file (safetensors)", kModel};
  if (is_utf16(start)) return {"UTF-16 text without a byte-order mark", kConvert};
  if (is_numbers(start))
    return {"not text; it looks like whole numbers of 2 or 4 bytes",
            "set data.format=tokens_u16 or data.format=tokens_u32"};
  return {};
}

bool is_run_folder(const std::string& folder) {
  const fs::path path(folder);
  if (is_there(path / "run.lock") ||
      (is_there(path / "log.txt") && is_there(path / "metrics.jsonl")) ||
      (is_there(path / "state.json") && is_there(path / "model.safetensors")))
    return true;
  std::error_code error;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error))
    if (it->path().filename().string().rfind("step-", 0) == 0 &&
        is_there(it->path() / "state.json") && is_there(it->path() / "model.safetensors"))
      return true;
  return false;
}

}  // namespace longnet

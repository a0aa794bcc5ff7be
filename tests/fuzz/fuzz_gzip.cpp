// Fuzz target: the reader of .gz files, against zlib's own on what it takes.
//
// The input's first byte b says what the file is. Below 128: the bytes that follow. Else they are
// packed by zlib into 1 + b % 4 members; then b / 4 % 8 of the file's bytes are overwritten, at
// places that the last bytes name, and b / 32 % 2 cuts it: damage behind right headers. What is
// unpacked without Error must be what gzread() gives, which is told to the last byte.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>

#include "core/error.h"
#include "data/gzip.h"

namespace {

constexpr size_t kMost = 4 << 20;  // of one file's unpacked bytes: more only takes time

[[noreturn]] void found(const std::string& what) {
  std::cerr << "fuzz_gzip: " << what << std::endl;
  std::abort();
}

std::string packed(const std::string& bytes) {
  z_stream stream{};
  if (deflateInit2(&stream, 6, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK)
    found("zlib cannot start");
  std::string out(deflateBound(&stream, bytes.size()) + 64, 0);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  if (deflate(&stream, Z_FINISH) != Z_STREAM_END) found("zlib does not pack");
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string file_of(const uint8_t* data, size_t size) {
  const uint8_t kind = data[0];
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (kind < 128) return bytes;
  std::string file;
  const size_t members = 1 + kind % 4, part = bytes.size() / members + 1;
  for (size_t m = 0; m < members; ++m)
    file += packed(bytes.substr(std::min(bytes.size(), m * part), part));
  const auto number = [&](size_t i) {  // from the end of the input
    return static_cast<size_t>(data[size - 1 - i % size]) * 257 + data[size - 1 - (i + 1) % size];
  };
  for (size_t i = 0; i < size_t{kind} / 4 % 8; ++i)
    file[number(3 * i) % file.size()] = static_cast<char>(number(3 * i + 2));
  if (kind / 32 % 2 == 1) file.resize(number(31) % file.size());
  return file;
}

/// Read again by zlib alone; it drops what is no member after the first without a word.
std::string by_zlib(const std::string& path) {
  gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) found("gzopen");
  std::string all;
  char piece[65536];
  int count = 0;
  while ((count = gzread(file, piece, sizeof piece)) > 0)
    all.append(piece, static_cast<size_t>(count));
  gzclose(file);
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  static const int memory = memfd_create("fuzz.gz", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(memory);
  const std::string file = file_of(data, size);
  if (ftruncate(memory, 0) != 0 ||
      pwrite(memory, file.data(), file.size(), 0) != static_cast<ssize_t>(file.size()))
    found("no file in memory");
  std::string got;
  struct TooMuch {
    int unused = 0;
  };
  try {
    longnet::unpack_gzip(path, [&](const void* piece, int64_t bytes) {
      if (got.size() > kMost) throw TooMuch{};
      got.append(static_cast<const char*>(piece), static_cast<size_t>(bytes));
    });
  } catch (const TooMuch&) {
    return 0;
  } catch (const longnet::Error& e) {
    if (std::string(e.what()).rfind("internal error", 0) == 0)
      found(std::string("internals: ") + e.what());
    return 0;
  }
  if (got != by_zlib(path)) found("zlib unpacks it to other bytes");
  return 0;
}
